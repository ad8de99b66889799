//! Whom nodes and appliance believe, and why: docs/trust.md.
//!
//! A machine that boots loads a small initrd with a ticket in it ([`pxe_contract::ticket`]), which has the CA's
//! certificate and a token. What the machine then trades the token for is its session ([`boots`]): a certificate of the
//! appliance's own CA ([`authority`]).

pub mod authority;
pub mod boots;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use jiff::Timestamp;
use pxe_common::Mac;
use rusqlite::{Connection, params};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::database::{self, DatabaseError, Durability};
use crate::text::hex;
use crate::timeline::{Happened, Timeline, Who};

pub use authority::{Authority, AuthorityError, Identity, Usage};
use boots::{Boot, Boots, Good, Misused, Refused};
pub use boots::{Running, Scope};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS boot_session (
    mac  TEXT NOT NULL PRIMARY KEY,
    boot TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// A session ends with the next boot; its certificate only has to last as long as machines run.
const SESSION: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// Tokens, sessions and the CA. Cloning it is cheap.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    authority: Authority,
    known: Mutex<Known>,
    timeline: Timeline,
}

struct Known {
    boots: Boots,
    db: Connection,
}

/// Trust can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(transparent)]
    Running(#[from] Running),
    #[error("the database of boots: {0}")]
    Database(#[from] rusqlite::Error),
}

/// Why a token was not traded.
#[derive(Debug, thiserror::Error)]
pub enum TradeError {
    #[error("the token is refused: {0}")]
    Refused(Refused),
    #[error("the request for a certificate is refused: {0}")]
    Request(AuthorityError),
    #[error("the database of boots: {0}")]
    Database(#[from] rusqlite::Error),
}

impl Trust {
    pub fn open(state_dir: &Path, database: &Path, timeline: Timeline) -> Result<Self, TrustError> {
        let authority = Authority::open(state_dir, authority::NODES)?;
        let db = database::open(database, Durability::AllButLast, SCHEMA)?;
        let boots = Boots::kept(kept(&db).map_err(|source| database::unreadable(database, source))?);
        Ok(Self(Arc::new(Inner { authority, known: Mutex::new(Known { boots, db }), timeline })))
    }

    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// A token for a boot of the machine, which asks from `address`; `keys` are those that the boot may have.
    pub fn issue(&self, mac: Mac, address: Ipv4Addr, keys: Option<Scope>) -> Result<String, IssueError> {
        let mut token = [0; 32];
        OsRng.fill_bytes(&mut token);
        let token = hex(&token);
        let mut known = self.known();
        known.boots.issue(mac, address, &token, keys, Timestamp::now())?;
        known.keep(mac)?;
        Ok(token)
    }

    /// A certificate, in PEM, for the key of `request`, which came with `token` from `mac` at `address`. A token
    /// that turns up where it should not is a warning in the timeline of the machine whose it was.
    pub fn trade(
        &self,
        mac: Mac,
        address: Ipv4Addr,
        token: &str,
        request: &[u8],
    ) -> Result<String, TradeError> {
        let mut known = self.known();
        match known.boots.judge(mac, address, token, request, Timestamp::now()) {
            Ok(Good::Again(certificate)) => Ok(certificate),
            Ok(Good::First) => {
                let name = mac.to_string();
                let signed = self.0.authority.sign(request, &name, Some(address), Usage::Client, SESSION);
                let certificate = signed.map_err(TradeError::Request)?;
                known.boots.begin(mac, request, certificate.clone());
                known.keep(mac)?;
                Ok(certificate)
            }
            Err(Misused { owner, why }) => {
                tracing::warn!(%mac, %address, owner = owner.map(|o| o.to_string()), %why, "a token is refused");
                if let Some(owner) = owner {
                    known.keep(owner)?;
                    drop(known);
                    let words = format!(
                        "a token of this machine's came from {mac} at {address} and was refused: {why}. Somebody may \
                         have read it off the boot segment"
                    );
                    self.0.timeline.record(Happened::warning(Who::Mac(owner), words));
                }
                Err(TradeError::Refused(why))
            }
        }
    }

    /// Whether a connection may speak for the machine, by the certificate that was shown on it. Where a boot has
    /// a session, nothing counts without it; where it has none, no certificate does.
    pub fn speaks_for(&self, mac: Mac, shown: Option<&CertificateDer<'_>>) -> bool {
        let known = self.known();
        let session = known.boots.get(mac).and_then(|boot| boot.session.as_ref());
        match (session, shown) {
            (None, None) => true,
            (Some(session), Some(shown)) => {
                let own = CertificateDer::from_pem_slice(session.certificate.as_bytes());
                own.is_ok_and(|own| own == *shown)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// The keys that the machine's boot may have, where it has a session.
    pub fn keys(&self, mac: Mac) -> Option<Scope> {
        self.known().boots.get(mac).filter(|boot| boot.session.is_some())?.keys.clone()
    }

    /// The machine started anew.
    pub fn restarted(&self, mac: Mac) {
        self.known().boots.restarted(mac);
    }

    /// Any machine may have.
    pub fn all_restarted(&self) {
        self.known().boots.all_restarted();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn keep(&self, mac: Mac) -> Result<(), rusqlite::Error> {
        let Some(boot) = self.boots.get(mac) else { return Ok(()) };
        let boot = serde_json::to_string(boot).expect("it has only text keys");
        let upsert = "INSERT INTO boot_session (mac, boot) VALUES (?1, ?2) \
                      ON CONFLICT (mac) DO UPDATE SET boot = ?2";
        self.db.execute(upsert, params![mac.to_string(), boot]).map(drop)
    }
}

/// A row that can't be read is a boot without a session: its machine needs another.
fn kept(db: &Connection) -> Result<Vec<(Mac, Boot)>, rusqlite::Error> {
    let mut query = db.prepare("SELECT mac, boot FROM boot_session")?;
    let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    Ok(rows
        .into_iter()
        .filter_map(|(mac, boot)| Some((mac.parse().ok()?, serde_json::from_str(&boot).ok()?)))
        .collect())
}
