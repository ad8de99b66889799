//! Leases on disk: one table in the appliance's database, written with full synchronisation.
//!
//! The store knows an end for each lease that is never before what the client was told
//! (design invariant 1), so that after a power cut no address has two machines.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::leases::{Change, Lease, LeaseState};
use crate::database::{self, DatabaseError, Durability};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS lease (
    address       TEXT PRIMARY KEY,
    mac           TEXT NOT NULL,
    state         TEXT NOT NULL,
    durable_until TEXT NOT NULL,
    client_ids    TEXT NOT NULL,
    uuid          TEXT
) STRICT, WITHOUT ROWID;
";

/// Leases could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing leases to {path}: {source}; nothing is offered until this works again")]
pub struct WriteError {
    path: PathBuf,
    source: rusqlite::Error,
}

/// The leases' table.
#[derive(Debug)]
pub struct LeaseStore {
    path: PathBuf,
    db: Connection,
}

impl LeaseStore {
    /// Opens the table in the database at `path`; both are created when missing.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        // Anything less would lose the last commits in a power cut: addresses that clients already have.
        let db = database::open(path, Durability::All, SCHEMA)?;
        let found: Option<String> = db
            .query_row("PRAGMA quick_check(lease)", [], |row| row.get(0))
            .optional()
            .map_err(|source| database::unreadable(path, source))?;
        match found.filter(|f| f != "ok") {
            Some(found) => Err(DatabaseError::Damaged { path: path.to_owned(), found }),
            None => Ok(Self { path: path.to_owned(), db }),
        }
    }

    /// Every lease. What memory knew more precisely is gone: a lease runs to its durable end.
    pub fn load(&self) -> Result<Vec<Lease>, DatabaseError> {
        let rows = || -> Result<Vec<Lease>, rusqlite::Error> {
            self.db
                .prepare("SELECT address, mac, state, durable_until, client_ids, uuid FROM lease")?
                .query_map([], lease)?
                .collect()
        };
        rows().map_err(|source| database::unreadable(&self.path, source))
    }

    /// Writes `changes` in order, in one transaction. When this returns, they survive a power cut.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), WriteError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(changes).map_err(|source| WriteError { path: self.path.clone(), source })
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), rusqlite::Error> {
        let transaction = self.db.transaction()?;
        for change in changes {
            match change {
                Change::Put(lease) => {
                    transaction
                        .prepare_cached(
                            "INSERT OR REPLACE INTO lease (address, mac, state, durable_until, client_ids, uuid)
                             VALUES (?, ?, ?, ?, ?, ?)",
                        )?
                        .execute(params![
                            lease.address.to_string(),
                            lease.mac.to_string(),
                            state_name(lease.state),
                            lease.durable_until.to_string(),
                            lease.client_ids.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
                            lease.uuid,
                        ])?;
                }
                Change::Remove(address) => {
                    transaction
                        .prepare_cached("DELETE FROM lease WHERE address = ?")?
                        .execute([address.to_string()])?;
                }
            }
        }
        transaction.commit()
    }
}

const STATES: [(LeaseState, &str); 4] = [
    (LeaseState::Offered, "offered"),
    (LeaseState::Bound, "bound"),
    (LeaseState::Released, "released"),
    (LeaseState::Declined, "declined"),
];

fn state_name(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Offered => STATES[0].1,
        LeaseState::Bound => STATES[1].1,
        LeaseState::Released => STATES[2].1,
        LeaseState::Declined => STATES[3].1,
    }
}

fn lease(row: &Row<'_>) -> Result<Lease, rusqlite::Error> {
    let state: String = row.get(2)?;
    let client_ids: String = row.get(4)?;
    let durable_until: Timestamp = parsed(row, 3)?;
    Ok(Lease {
        address: parsed(row, 0)?,
        mac: parsed(row, 1)?,
        state: STATES
            .iter()
            .find(|(_, name)| *name == state)
            .map(|(state, _)| *state)
            .ok_or_else(|| unreadable(2, format!("unknown lease state {state:?}")))?,
        expires: durable_until,
        durable_until,
        client_ids: client_ids.split_whitespace().map(str::to_owned).collect(),
        uuid: row.get(5)?,
    })
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> Result<T, rusqlite::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn unreadable(column: usize, what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
