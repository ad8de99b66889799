//! Logins of browsers. A browser sends no token by itself, so a link lets it in once, and a cookie from then on.
//!
//! Links are in memory only. Sessions are kept by the hash of their secret, so that a page that somebody looks at goes on
//! when the daemon is back. Time is passed in.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Caller, Hash, Role, Through, find, hash, secret};
use crate::base::lock::Unpoisoned as _;
use crate::base::text::{hex, unhex};
use crate::store::{Change, LoginRow, ReadError, Store};

/// How long a link can be used, once.
pub const CODE_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// How long a browser stays logged in.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Number of links, and of browsers, that are remembered: the oldest is dropped.
const KEPT: usize = 256;

/// Links and sessions of browsers. Cloning it is cheap.
#[derive(Clone)]
pub struct Logins(Arc<Inner>);

struct Inner {
    store: Store,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    codes: Vec<Login>,
    sessions: Vec<Login>,
}

struct Login {
    hash: Hash,
    caller: Caller,
    ends: Timestamp,
}

/// The contents of a link.
pub struct Code {
    pub code: Zeroizing<String>,
    pub expires: Timestamp,
}

impl Logins {
    /// Opens the stored sessions. One that can't be read is left out.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let sessions = store.reader().logins()?.into_iter().filter_map(|row| {
            let hash = unhex(&row.hash)?.try_into().ok()?;
            Some(Login { hash, caller: serde_json::from_str(&row.body).ok()?, ends: row.ends })
        });
        let kept = Mutex::new(Kept { codes: Vec::new(), sessions: sessions.collect() });
        Ok(Self(Arc::new(Inner { store, kept })))
    }

    /// A link's code, requested by `caller`. The first to present it is logged in as `role`, which is at most the
    /// caller's.
    pub fn invite(&self, caller: &Caller, role: Role, now: Timestamp) -> Code {
        let code = secret("");
        let caller = Caller { through: Through::Page, role: role.min(caller.role), ..caller.clone() };
        let expires = now + CODE_LIFETIME;
        remember(&mut self.kept().codes, Login { hash: hash(&code), caller, ends: expires }, now);
        Code { code, expires }
    }

    /// The secret of a new session, for a valid code, which becomes invalid. Blocks until it is stored.
    pub fn enter(&self, code: &str, now: Timestamp) -> Option<(Caller, Zeroizing<String>)> {
        let mut kept = self.kept();
        let wanted = hash(code);
        let at = find(kept.codes.iter().enumerate().map(|(at, login)| (&login.hash, at)), &wanted)?;
        let login = kept.codes.remove(at);
        if login.ends <= now {
            return None;
        }
        let secret = secret("");
        let session =
            Login { hash: hash(&secret), caller: login.caller.clone(), ends: now + SESSION_LIFETIME };
        remember(&mut kept.sessions, session, now);
        self.store(kept);
        Some((login.caller, secret))
    }

    /// The session's caller, until the session ends.
    pub fn judge(&self, secret: &str, now: Timestamp) -> Option<Caller> {
        let kept = self.kept();
        let login = find(kept.sessions.iter().map(|login| (&login.hash, login)), &hash(secret))?;
        (login.ends > now).then(|| login.caller.clone())
    }

    /// Ends the logins that a token or user created, when it is removed. Blocks until that is stored.
    pub fn end(&self, who: &str) {
        let mut kept = self.kept();
        kept.codes.retain(|login| login.caller.who != who);
        kept.sessions.retain(|login| login.caller.who != who);
        self.store(kept);
    }

    /// Ends one browser's session. Blocks until that is stored.
    pub fn leave(&self, secret: &str) {
        let mut kept = self.kept();
        let hash = hash(secret);
        kept.sessions.retain(|login| login.hash != hash);
        self.store(kept);
    }

    /// Stores the sessions as they are. They are handed over under the lock, so in order. If the disk refuses them, they
    /// end with the daemon; one that was ended could come back with it, which the log says.
    fn store(&self, kept: MutexGuard<'_, Kept>) {
        let row = |login: &Login| LoginRow {
            hash: hex(&login.hash),
            ends: login.ends,
            body: serde_json::to_string(&login.caller).expect("it has only text keys"),
        };
        let pending = self.0.store.write(vec![Change::SetLogins(kept.sessions.iter().map(row).collect())]);
        drop(kept);
        if let Err(error) = pending.wait() {
            tracing::error!(%error, "logins were not kept");
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unpoisoned()
    }
}

fn remember(logins: &mut Vec<Login>, new: Login, now: Timestamp) {
    logins.retain(|login| login.ends > now);
    if logins.len() >= KEPT {
        logins.remove(0);
    }
    logins.push(new);
}
