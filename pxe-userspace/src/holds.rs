//! Machines that somebody wants to stop in stage 1. Kept in the database; [`Machines`] shows it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pxe_common::Mac;
use rusqlite::{Connection, params};

use crate::database::{self, DatabaseError, Durability};
use crate::machines::{Hold, Machines};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS hold (
    mac   TEXT PRIMARY KEY,
    hold  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// The holds' handle. Cloning it is cheap. Methods write to the database.
#[derive(Clone)]
pub struct Holds(Arc<Inner>);

struct Inner {
    db: Mutex<Connection>,
    machines: Machines,
}

impl Holds {
    /// Opens the table in the database at `path`, and tells `machines` of its contents.
    pub fn open(path: &Path, machines: Machines) -> Result<Self, DatabaseError> {
        let db = database::open(path, Durability::All, SCHEMA)?;
        let rows = || -> Result<Vec<(String, String)>, rusqlite::Error> {
            let mut query = db.prepare("SELECT mac, hold FROM hold")?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        for (mac, hold) in rows().map_err(|source| database::unreadable(path, source))? {
            let known = HOLDS.iter().find(|(_, name)| *name == hold);
            match (mac.parse(), known) {
                (Ok(mac), Some((hold, _))) => machines.hold(mac, Some(*hold)),
                _ => tracing::warn!(mac, hold, "a hold that means nothing is left alone"),
            }
        }
        Ok(Self(Arc::new(Inner { db: Mutex::new(db), machines })))
    }

    /// Stops the machine's next boot in stage 1.
    pub fn hold(&self, mac: Mac, hold: Hold) -> Result<(), rusqlite::Error> {
        let db = self.db();
        let name = HOLDS.iter().find(|(h, _)| *h == hold).map(|(_, name)| *name);
        db.execute("INSERT OR REPLACE INTO hold (mac, hold) VALUES (?, ?)", params![mac.to_string(), name])?;
        self.0.machines.hold(mac, Some(hold));
        Ok(())
    }

    /// Lets it go on, at once where it is held now.
    pub fn release(&self, mac: Mac) -> Result<(), rusqlite::Error> {
        let db = self.db();
        db.execute("DELETE FROM hold WHERE mac = ?", [mac.to_string()])?;
        self.0.machines.hold(mac, None);
        Ok(())
    }

    /// The machine says that it stopped, and asks whether it is to stay so.
    pub fn stopped(&self, mac: Mac) -> Result<bool, rusqlite::Error> {
        let hold = self.0.machines.get(mac).and_then(|machine| machine.hold);
        if hold == Some(Hold::Once) {
            self.hold(mac, Hold::Reached)?;
        }
        Ok(hold.is_some())
    }

    /// The machine boots anew: a hold for one boot is over when that boot was held.
    pub fn restarted(&self, mac: Mac) -> Result<(), rusqlite::Error> {
        match self.0.machines.get(mac).and_then(|machine| machine.hold) {
            Some(Hold::Reached) => self.release(mac),
            Some(Hold::Once | Hold::UntilReleased) | None => Ok(()),
        }
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.0.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const HOLDS: [(Hold, &str); 3] =
    [(Hold::Once, "once"), (Hold::Reached, "reached"), (Hold::UntilReleased, "until-released")];

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_hold_outlives_the_daemon_and_one_for_a_boot_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let machines = Machines::default();
            (Holds::open(&dir.path().join("db"), machines.clone()).unwrap(), machines)
        };
        let held = |machines: &Machines| machines.get(MAC).is_some_and(|machine| machine.stops_in_stage1());

        let (holds, _) = open();
        assert!(!holds.stopped(MAC).unwrap());
        holds.hold(MAC, Hold::Once).unwrap();
        let (holds, machines) = open();
        assert!(held(&machines));
        holds.restarted(MAC).unwrap();
        assert!(held(&machines), "no boot was held yet");
        assert!(holds.stopped(MAC).unwrap());
        let (holds, machines) = open();
        assert!(holds.stopped(MAC).unwrap() && !held(&machines), "this boot stays, the next does not stop");
        holds.restarted(MAC).unwrap();
        assert!(!holds.stopped(MAC).unwrap());

        holds.hold(MAC, Hold::UntilReleased).unwrap();
        assert!(holds.stopped(MAC).unwrap());
        holds.restarted(MAC).unwrap();
        assert!(held(&machines));
        holds.release(MAC).unwrap();
        let (holds, machines) = open();
        assert!(!held(&machines) && !holds.stopped(MAC).unwrap());
    }
}
