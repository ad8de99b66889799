//! Logins of browsers. A browser sends no token by itself, so a link lets it in once, and a cookie from then on.
//!
//! In memory only: after a restart people log in again. Pure except for its secrets; time is passed in.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Caller, Hash, Role, Through, find, hash, secret};
use crate::base::lock::Unpoisoned as _;

/// How long a link can be used, once.
pub const CODE_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// How long a browser stays logged in.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Number of links, and of browsers, that are remembered: the oldest is dropped.
const KEPT: usize = 256;

/// Links and sessions of browsers. Cloning it is cheap.
#[derive(Clone, Default)]
pub struct Logins(Arc<Mutex<Kept>>);

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
    /// A link's code, requested by `caller`. The first to present it is logged in as `role`, which is at most the
    /// caller's.
    pub fn invite(&self, caller: &Caller, role: Role, now: Timestamp) -> Code {
        let code = secret("");
        let caller = Caller { through: Through::Page, role: role.min(caller.role), ..caller.clone() };
        let expires = now + CODE_LIFETIME;
        remember(&mut self.kept().codes, Login { hash: hash(&code), caller, ends: expires }, now);
        Code { code, expires }
    }

    /// The secret of a new session, for a valid code, which becomes invalid.
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
        Some((login.caller, secret))
    }

    /// The session's caller, until the session ends.
    pub fn judge(&self, secret: &str, now: Timestamp) -> Option<Caller> {
        let kept = self.kept();
        let login = find(kept.sessions.iter().map(|login| (&login.hash, login)), &hash(secret))?;
        (login.ends > now).then(|| login.caller.clone())
    }

    /// Ends the logins that a token or user created, when it is removed.
    pub fn end(&self, who: &str) {
        let mut kept = self.kept();
        kept.codes.retain(|login| login.caller.who != who);
        kept.sessions.retain(|login| login.caller.who != who);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unpoisoned()
    }
}

fn remember(logins: &mut Vec<Login>, new: Login, now: Timestamp) {
    logins.retain(|login| login.ends > now);
    if logins.len() >= KEPT {
        logins.remove(0);
    }
    logins.push(new);
}
