//! The store on SQLite: one file in WAL mode, so that readers and the writer don't block each other.

mod migrations;
mod read;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _};

use super::{BoxError, Change, Durability, Engine, OpenError, Reader};
use read::Connections;

/// The writer's side.
pub struct Sqlite {
    db: Connection,
    /// What the connection's `synchronous` is set to.
    durability: Durability,
    readers: Arc<Connections>,
}

/// Opens the database at `path`: creates it if it is missing, checks it, and migrates it.
pub fn open(path: &Path) -> Result<Sqlite, OpenError> {
    let mut db = connect(path).map_err(|source| unusable(path, source))?;
    db.pragma_update(None, "journal_mode", "WAL").map_err(|source| unusable(path, source))?;
    check(&db, path)?;
    migrations::run(&mut db, path)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(|source| unusable(path, source))?;
    Ok(Sqlite { db, durability: Durability::All, readers: Arc::new(Connections::to(path)) })
}

impl Engine for Sqlite {
    fn apply(&mut self, changes: &[&Change], durability: Durability) -> Result<(), BoxError> {
        if self.durability != durability {
            let synchronous = match durability {
                Durability::All => "FULL",
                // In WAL mode this can lose the last commits, but never damages the file (sqlite.org/pragma.html).
                Durability::AllButLast => "NORMAL",
            };
            self.db.pragma_update(None, "synchronous", synchronous)?;
            self.durability = durability;
        }
        write::apply(&mut self.db, changes)?;
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(self.readers.clone())
    }
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let db = Connection::open(path)?;
    // Somebody may have it open in SQLite's shell.
    db.busy_timeout(Duration::from_secs(5))?;
    Ok(db)
}

/// Reads every page once, so that damage is found before anything relies on the damaged rows.
fn check(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let found: Option<String> = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()
        .map_err(|source| unusable(path, source))?;
    match found.filter(|found| found != "ok") {
        Some(found) => Err(OpenError::Damaged { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// Tells a damaged file from a file that SQLite could not read.
fn unusable(path: &Path, source: rusqlite::Error) -> OpenError {
    let path: PathBuf = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::Unknown) | None => {
            OpenError::Damaged { path, found: source.to_string() }
        }
        Some(_) => OpenError::Open { path, source: source.into() },
    }
}

#[cfg(test)]
mod tests;
