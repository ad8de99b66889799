//! The appliance's database: one SQLite file. Leases and timeline keep a table each in it, by a
//! connection of their own; how it is opened, and what is wrong with it, is said here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

/// Its name in the state directory.
pub const FILE: &str = "bridgehead.db";

/// Grows when a table changes in a way that an older program would misread.
const LAYOUT: i64 = 1;

/// What of a commit survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every commit.
    All,
    /// All but the last ones.
    AllButLast,
}

/// The database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("opening {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{path} is damaged or not Bridgehead's: {found}. Move it away to start without leases and timeline \
         (machines keep their addresses as they ask again), or restore a copy"
    )]
    Damaged { path: PathBuf, found: String },
    #[error(
        "{path} is a newer Bridgehead's (its layout is {found}, this program knows {LAYOUT}): run that one, \
         or move the file away to start without leases and timeline"
    )]
    Newer { path: PathBuf, found: i64 },
}

/// A connection to the database at `path`, which is created when missing, with the tables of `schema`.
pub fn open(path: &Path, durability: Durability, schema: &str) -> Result<Connection, DatabaseError> {
    let failed = |source| unreadable(path, source);
    let db = Connection::open(path).map_err(failed)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    let found = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > LAYOUT {
        return Err(DatabaseError::Newer { path: path.to_owned(), found });
    }
    let synchronous = match durability {
        Durability::All => "FULL",
        // In WAL mode that costs the last commits at most, never the file (sqlite.org/pragma.html).
        Durability::AllButLast => "NORMAL",
    };
    let prepared = db
        .pragma_update(None, "journal_mode", "WAL")
        .and_then(|()| db.pragma_update(None, "synchronous", synchronous))
        .and_then(|()| db.pragma_update(None, "user_version", LAYOUT))
        .and_then(|()| db.execute_batch(schema));
    prepared.map_err(failed).map(|()| db)
}

/// What SQLite found wrong with the file is told apart from what kept it from looking.
pub fn unreadable(path: &Path, source: rusqlite::Error) -> DatabaseError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::Unknown) | None => {
            DatabaseError::Damaged { path, found: source.to_string() }
        }
        Some(_) => DatabaseError::Open { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let opened = open(&dir.path().join(name), Durability::All, "CREATE TABLE IF NOT EXISTS t (x)");
            opened.map(drop)
        };

        std::fs::write(dir.path().join("noise.db"), [b'x'; 8192]).unwrap();
        let error = open("noise.db").unwrap_err();
        assert!(matches!(error, DatabaseError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("noise.db"), "{error}");

        assert!(matches!(open("no/such/dir.db"), Err(DatabaseError::Open { .. })));

        open("new.db").unwrap();
        open("new.db").unwrap();
        let db = Connection::open(dir.path().join("new.db")).unwrap();
        db.pragma_update(None, "user_version", LAYOUT + 1).unwrap();
        let error = open("new.db").unwrap_err();
        assert!(
            error.to_string().contains("newer Bridgehead's (its layout is 2, this program knows 1)"),
            "{error}"
        );
    }
}
