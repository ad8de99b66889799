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
    AssignmentRow, AuditRow, CredentialsRow, Document, EventRow, LaunchEventRow, LaunchMachineRow, LaunchRow,
    LaunchedRow, LeaseRow, LoginRow, NamedRow, NodeRow, PinRow, ReadError, Reader, SealedKey, TokenRow,
    VolumeKeyId,
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
        self.all("the timeline", query, params![beyond(after), limit as u64], event)
    }

    fn events_of(&self, mac: Mac, after: u64, limit: usize) -> Result<Vec<EventRow>, ReadError> {
        // Each half has an index.
        let query = "SELECT id, mac, moves, body FROM (
                         SELECT * FROM (SELECT * FROM event WHERE moves AND mac = ?1 AND id > ?2
                                        ORDER BY id DESC LIMIT ?3)
                         UNION ALL
                         SELECT * FROM (SELECT * FROM event WHERE NOT moves AND mac = ?1 AND id > ?2
                                        ORDER BY id DESC LIMIT ?3)
                     ) ORDER BY id DESC LIMIT ?3";
        self.all("the timeline", query, params![mac.to_string(), after, limit as u64], event)
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
        let query = documents(document);
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

    fn document(&self, document: Document, mac: Mac) -> Result<Option<String>, ReadError> {
        let query = format!("{} WHERE mac = ?", documents(document));
        self.with(document.what(), |db| {
            db.prepare_cached(&query)?.query_row([mac.to_string()], |row| row.get(1)).optional()
        })
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

    fn logins(&self) -> Result<Vec<LoginRow>, ReadError> {
        self.all("logins", "SELECT hash, ends, body FROM login ORDER BY rowid", [], |row| {
            Ok(LoginRow { hash: row.get(0)?, ends: parsed(row, 1)?, body: row.get(2)? })
        })
    }

    fn audit_before(&self, before: u64, limit: usize) -> Result<Vec<AuditRow>, ReadError> {
        let query = "SELECT id, body FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?";
        let before = before.min(i64::MAX as u64);
        let row = |row: &Row<'_>| Ok(AuditRow { id: row.get(0)?, body: row.get(1)? });
        self.all("the audit", query, params![before, limit as u64], row)
    }

    fn audit_since(&self, after: u64, limit: usize) -> Result<Vec<AuditRow>, ReadError> {
        let query = "SELECT id, body FROM audit WHERE id > ? ORDER BY id LIMIT ?";
        let row = |row: &Row<'_>| Ok(AuditRow { id: row.get(0)?, body: row.get(1)? });
        self.all("the audit", query, params![beyond(after), limit as u64], row)
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

    fn credentials(&self) -> Result<Vec<CredentialsRow>, ReadError> {
        let query = "SELECT name, user, nonce, sealed, added FROM credentials ORDER BY name";
        self.all("credentials", query, [], |row| {
            let (nonce, sealed) = (row.get(2)?, row.get(3)?);
            Ok(CredentialsRow { name: row.get(0)?, user: row.get(1)?, nonce, sealed, added: parsed(row, 4)? })
        })
    }

    fn pins(&self) -> Result<Vec<PinRow>, ReadError> {
        self.all("certificates of BMCs", "SELECT place, fingerprint, since FROM pin", [], |row| {
            Ok(PinRow { place: row.get(0)?, fingerprint: row.get(1)?, since: parsed(row, 2)? })
        })
    }

    fn launched(&self) -> Result<Vec<LaunchedRow>, ReadError> {
        self.all("what machines are to boot", "SELECT mac, body FROM launched", [], |row| {
            Ok(LaunchedRow { mac: parsed(row, 0)?, body: row.get(1)? })
        })
    }

    fn launches(&self) -> Result<Vec<LaunchRow>, ReadError> {
        self.all("launches", "SELECT id, body FROM launch ORDER BY id", [], |row| {
            Ok(LaunchRow { id: row.get(0)?, body: row.get(1)? })
        })
    }

    fn launch_machines(&self, launch: u64) -> Result<Vec<LaunchMachineRow>, ReadError> {
        let query = "SELECT launch, turn, mac, body FROM launch_machine WHERE launch = ? ORDER BY turn";
        self.all("launches", query, [beyond(launch)], |row| {
            let (launch, turn, body) = (row.get(0)?, row.get(1)?, row.get(3)?);
            Ok(LaunchMachineRow { launch, turn, mac: parsed(row, 2)?, body })
        })
    }

    fn launch_events_since(&self, after: u64, limit: usize) -> Result<Vec<LaunchEventRow>, ReadError> {
        let query = "SELECT id, launch, body FROM launch_event WHERE id > ? ORDER BY id LIMIT ?";
        let row =
            |row: &Row<'_>| Ok(LaunchEventRow { id: row.get(0)?, launch: row.get(1)?, body: row.get(2)? });
        self.all("launches", query, params![beyond(after), limit as u64], row)
    }

    fn last_launch_event_id(&self) -> Result<u64, ReadError> {
        let query = "SELECT coalesce(max(id), 0) FROM launch_event";
        self.with("launches", |db| db.query_row(query, [], |row| row.get(0)))
    }
}

/// An id from a client, as the database has numbers: no row is beyond the largest one.
fn beyond(id: u64) -> u64 {
    id.min(i64::MAX as u64)
}

fn documents(document: Document) -> &'static str {
    match document {
        Document::Hold => "SELECT mac, hold FROM hold",
        Document::KernelTrial => "SELECT mac, history FROM kernel_trial",
        Document::BootSession => "SELECT mac, boot FROM boot_session",
        Document::Facts => "SELECT mac, facts FROM facts",
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
