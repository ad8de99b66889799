//! The timeline's table: one writer thread that batches, one reader connection.

use std::path::Path;
use std::sync::{Mutex, mpsc};

use rusqlite::{Connection, Row, params};

use super::Event;
use crate::database::{self, DatabaseError, Durability};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS event (
    id    INTEGER PRIMARY KEY,
    mac   TEXT NOT NULL,
    body  TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_by_mac ON event (mac, id);
";

/// Events older than the newest this many are forgotten.
const KEPT: u64 = 1_000_000;

/// Events in one transaction at most.
const BATCH: usize = 512;

pub(super) struct Writer(Connection);
pub(super) struct Reader(Mutex<Connection>);

/// Both ends on the database at `path`, which is created when missing.
pub(super) fn open(path: &Path) -> Result<(Writer, Reader), DatabaseError> {
    let writer = database::open(path, Durability::AllButLast, SCHEMA)?;
    let reader = database::open(path, Durability::AllButLast, "")?;
    Ok((Writer(writer), Reader(Mutex::new(reader))))
}

impl Writer {
    /// Writes what arrives until every sender is gone.
    pub(super) fn run(mut self, events: &mpsc::Receiver<Event>) {
        while let Ok(first) = events.recv() {
            let batch: Vec<Event> = std::iter::once(first).chain(events.try_iter().take(BATCH - 1)).collect();
            if let Err(error) = self.write(&batch) {
                tracing::error!(%error, lost = batch.len(), "the timeline could not be written");
            }
        }
    }

    fn write(&mut self, batch: &[Event]) -> Result<(), rusqlite::Error> {
        let transaction = self.0.transaction()?;
        for event in batch {
            let body = serde_json::to_string(event).expect("an event has only text keys");
            transaction
                .prepare_cached("INSERT OR REPLACE INTO event (id, mac, body) VALUES (?, ?, ?)")?
                .execute(params![event.id, event.mac.to_string(), body])?;
        }
        // As many rows as the batch adds, found by the primary key: no need to do it more seldom.
        if let Some(last) = batch.last() {
            transaction
                .prepare_cached("DELETE FROM event WHERE id <= ?")?
                .execute([last.id.saturating_sub(KEPT)])?;
        }
        transaction.commit()
    }
}

impl Reader {
    pub(super) fn since(&self, after: u64, limit: usize) -> Result<Vec<Event>, rusqlite::Error> {
        let db = self.0.lock().expect("no reader panics");
        let mut query = db.prepare_cached("SELECT body FROM event WHERE id > ? ORDER BY id LIMIT ?")?;
        query.query_map(params![after, limit as u64], event)?.collect()
    }

    pub(super) fn last_of_each_machine(&self) -> Result<Vec<Event>, rusqlite::Error> {
        let db = self.0.lock().expect("no reader panics");
        let mut query = db.prepare(
            "SELECT body FROM event WHERE id IN (SELECT max(id) FROM event
             WHERE body ->> 'stage' <> 'warning' AND body ->> 'late' IS NULL GROUP BY mac)",
        )?;
        query.query_map([], event)?.collect()
    }

    pub(super) fn last_id(&self) -> Result<u64, rusqlite::Error> {
        let db = self.0.lock().expect("no reader panics");
        db.query_row("SELECT coalesce(max(id), 0) FROM event", [], |row| row.get(0))
    }
}

fn event(row: &Row<'_>) -> Result<Event, rusqlite::Error> {
    let body: String = row.get(0)?;
    serde_json::from_str(&body)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}
