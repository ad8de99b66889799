//! Queries. Readers have connections of their own: in WAL mode a commit does not block them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use pxe_common::Mac;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, params};

use super::connect;
use crate::base::lock::Unpoisoned as _;
use crate::store::{
    AssignmentRow, AuditRow, Document, EventRow, LeaseRow, NamedRow, NodeRow, ReadError, Reader, SealedKey,
    TokenRow, VolumeKeyId,
};

/// Idle connections that are kept for the next reader. If more read at a time, more are opened.
const KEPT: usize = 4;

/// The readers' connections.
pub(super) struct Connections {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    pub(super) fn to(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::default() }
    }

    /// Lends a connection to one reader. A connection that failed is not used again.
    fn with<T>(
        &self,
        what: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, ReadError> {
        let idle = self.idle.lock().unpoisoned().pop();
        let read = idle.map_or_else(|| connect(&self.path), Ok).and_then(|db| Ok((read(&db)?, db)));
        let failed = |source: rusqlite::Error| {
            let place = self.path.display().to_string();
            ReadError { what, place, source: source.into() }
        };
        let (found, db) = read.map_err(failed)?;
        let mut idle = self.idle.lock().unpoisoned();
        if idle.len() < KEPT {
            idle.push(db);
        }
        Ok(found)
    }

    fn all<T>(
        &self,
        what: &'static str,
        query: &str,
        values: impl Params,
        row: impl FnMut(&Row<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<Vec<T>, ReadError> {
        self.with(what, |db| db.prepare_cached(query)?.query_map(values, row)?.collect())
    }
}

impl Reader for Arc<Connections> {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn leases(&self) -> Result<Vec<LeaseRow>, ReadError> {
        let query = "SELECT address, mac, state, durable_until, client_ids, uuid FROM lease";
        self.all("leases", query, [], |row| {
            let client_ids: String = row.get(4)?;
            Ok(LeaseRow {
                address: parsed(row, 0)?,
                mac: parsed(row, 1)?,
                state: row.get(2)?,
                durable_until: parsed(row, 3)?,
                client_ids: client_ids.split_whitespace().map(str::to_owned).collect(),
                uuid: row.get(5)?,
            })
        })
    }

    fn events_since(&self, after: u64, limit: usize) -> Result<Vec<EventRow>, ReadError> {
        let query = "SELECT id, mac, moves, body FROM event WHERE id > ? ORDER BY id LIMIT ?";
        self.all("the timeline", query, params![after, limit as u64], event)
    }

    fn last_events(&self) -> Result<Vec<EventRow>, ReadError> {
        let query = "SELECT id, mac, moves, body FROM event
                     WHERE id IN (SELECT max(id) FROM event WHERE moves GROUP BY mac)";
        self.all("the timeline", query, [], event)
    }

    fn last_event_id(&self) -> Result<u64, ReadError> {
        let query = "SELECT coalesce(max(id), 0) FROM event";
        self.with("the timeline", |db| db.query_row(query, [], |row| row.get(0)))
    }

    fn documents(&self, document: Document) -> Result<Vec<(Mac, String)>, ReadError> {
        let query = match document {
            Document::Hold => "SELECT mac, hold FROM hold",
            Document::KernelTrial => "SELECT mac, history FROM kernel_trial",
            Document::BootSession => "SELECT mac, boot FROM boot_session",
        };
        let rows = self.all(document.what(), query, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let known = rows.into_iter().filter_map(|(mac, text): (String, String)| {
            let known = mac.parse().ok();
            if known.is_none() {
                tracing::warn!(mac, "{} of what is no machine: left alone", document.what());
            }
            Some((known?, text))
        });
        Ok(known.collect())
    }

    fn assignments(&self) -> Result<Vec<AssignmentRow>, ReadError> {
        let query = "SELECT workload, node FROM assignment";
        let row = |row: &Row<'_>| Ok(AssignmentRow { workload: row.get(0)?, node: row.get(1)? });
        self.all("assignments of workloads", query, [], row)
    }

    fn volume_key(&self, id: &VolumeKeyId) -> Result<Option<SealedKey>, ReadError> {
        let query = "SELECT nonce, sealed FROM volume_key WHERE owner = ? AND plan = ? AND volume = ?";
        let row = |row: &Row<'_>| Ok(SealedKey { nonce: row.get(0)?, sealed: row.get(1)? });
        self.with("the key of a volume", |db| {
            db.prepare_cached(query)?.query_row(params![id.owner, id.plan, id.volume], row).optional()
        })
    }

    fn has_volume_keys(&self) -> Result<bool, ReadError> {
        let query = "SELECT EXISTS (SELECT 1 FROM volume_key)";
        self.with("the keys of volumes", |db| db.query_row(query, [], |row| row.get(0)))
    }

    fn tokens(&self) -> Result<Vec<TokenRow>, ReadError> {
        self.all("tokens", "SELECT name, hash, role, added, expires FROM token", [], |row| {
            let expires: Option<String> = row.get(4)?;
            let expires = expires.map(|_| parsed(row, 4)).transpose()?;
            let (name, hash, role) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(TokenRow { name, hash, role, added: parsed(row, 3)?, expires })
        })
    }

    fn audit_since(&self, after: u64, limit: usize) -> Result<Vec<AuditRow>, ReadError> {
        let query = "SELECT id, body FROM audit WHERE id > ? ORDER BY id LIMIT ?";
        let row = |row: &Row<'_>| Ok(AuditRow { id: row.get(0)?, body: row.get(1)? });
        self.all("the audit", query, params![after, limit as u64], row)
    }

    fn last_audit_id(&self) -> Result<u64, ReadError> {
        let query = "SELECT coalesce(max(id), 0) FROM audit";
        self.with("the audit", |db| db.query_row(query, [], |row| row.get(0)))
    }

    fn nodes(&self) -> Result<Vec<NodeRow>, ReadError> {
        self.all("machines", "SELECT name, mac, body FROM node ORDER BY name", [], |row| {
            Ok(NodeRow { name: row.get(0)?, mac: parsed(row, 1)?, body: row.get(2)? })
        })
    }

    fn named(&self) -> Result<Vec<NamedRow>, ReadError> {
        self.all("names of machines", "SELECT name, facts FROM named ORDER BY name", [], |row| {
            Ok(NamedRow { name: row.get(0)?, facts: row.get(1)? })
        })
    }
}

fn event(row: &Row<'_>) -> Result<EventRow, rusqlite::Error> {
    Ok(EventRow { id: row.get(0)?, mac: parsed(row, 1)?, moves: row.get(2)?, body: row.get(3)? })
}

fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> Result<T, rusqlite::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}
