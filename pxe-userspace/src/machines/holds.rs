//! Holds: machines that are to stop in stage 1. They are kept in the store and in [`Machines`].

use pxe_common::Mac;

use crate::machines::{Hold, Machines};
use crate::store::{Change, Document, Pending, ReadError, Store, WriteError};

/// The holds' handle. Cloning it is cheap.
#[derive(Clone)]
pub struct Holds {
    store: Store,
    machines: Machines,
}

impl Holds {
    /// Tells `machines` of the holds in the store.
    pub fn open(store: Store, machines: Machines) -> Result<Self, ReadError> {
        for (mac, hold) in store.reader().documents(Document::Hold)? {
            match HOLDS.iter().find(|(_, name)| *name == hold) {
                Some((hold, _)) => drop(machines.change_hold(mac, |_| Some(*hold), |_| ())),
                None => tracing::warn!(%mac, hold, "a hold that means nothing is left alone"),
            }
        }
        Ok(Self { store, machines })
    }

    /// Stops the machine's next boot in stage 1. Blocks until that survives a power cut.
    pub fn hold(&self, mac: Mac, hold: Hold) -> Result<(), WriteError> {
        self.change(mac, |_| Some(hold)).map_or(Ok(()), Pending::wait)
    }

    /// Releases the machine, at once if it is held now. Blocks until that survives a power cut.
    pub fn release(&self, mac: Mac) -> Result<(), WriteError> {
        self.change(mac, |_| None).map_or(Ok(()), Pending::wait)
    }

    /// The machine reports that it stopped; returns whether it is to stay stopped.
    pub fn stopped(&self, mac: Mac) -> bool {
        let mut held = false;
        let change = self.change(mac, |hold| {
            held = hold.is_some();
            match hold {
                Some(Hold::Once) => Some(Hold::Reached),
                other => other,
            }
        });
        // After a power cut before it is stored, the next boot stops, too.
        drop(change);
        held
    }

    /// The machine reboots: a hold for one boot is over if that boot was held. Never blocks.
    pub fn restarted(&self, mac: Mac) {
        let change = self.change(mac, |hold| hold.filter(|hold| *hold != Hold::Reached));
        drop(change);
    }

    /// Changes what [`Machines`] has, and hands the same to the store before anybody else changes it.
    fn change(&self, mac: Mac, change: impl FnOnce(Option<Hold>) -> Option<Hold>) -> Option<Pending> {
        self.machines.change_hold(mac, change, |hold| {
            self.store.write(vec![match hold {
                None => Change::RemoveDocument(Document::Hold, mac),
                Some(hold) => Change::PutDocument(Document::Hold, mac, name(hold).to_owned()),
            }])
        })
    }
}

fn name(hold: Hold) -> &'static str {
    match hold {
        Hold::Once => HOLDS[0].1,
        Hold::Reached => HOLDS[1].1,
        Hold::UntilReleased => HOLDS[2].1,
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
            let (store, machines) = (Store::open(&dir.path().join("db")).unwrap(), Machines::default());
            (Holds::open(store, machines.clone()).unwrap(), machines)
        };
        let held = |machines: &Machines| machines.get(MAC).is_some_and(|machine| machine.stops_in_stage1());

        let (holds, _) = open();
        assert!(!holds.stopped(MAC));
        holds.hold(MAC, Hold::Once).unwrap();
        let (holds, machines) = open();
        assert!(held(&machines));
        holds.restarted(MAC);
        assert!(held(&machines), "no boot was held yet");
        assert!(holds.stopped(MAC));
        let (holds, machines) = open();
        assert!(holds.stopped(MAC) && !held(&machines), "this boot stays, the next does not stop");
        holds.restarted(MAC);
        assert!(!holds.stopped(MAC));

        holds.hold(MAC, Hold::UntilReleased).unwrap();
        assert!(holds.stopped(MAC));
        holds.restarted(MAC);
        assert!(held(&machines));
        holds.release(MAC).unwrap();
        let (holds, machines) = open();
        assert!(!held(&machines) && !holds.stopped(MAC));
    }
}
