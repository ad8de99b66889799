//! Who may do what through the API: roles, tokens, and logins of browsers. docs/api.md, "Who may do what".
//!
//! A secret is 256 random bits. Only its SHA-256 is kept, so that a copy of the state opens nothing.

mod logins;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::net::IpAddr;

use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::base::text::hex;

pub use logins::{CODE_LIFETIME, Code, Logins, SESSION_LIFETIME};
pub use tokens::{AddTokenError, NAME_MAX, Token, Tokens};

/// What a caller may do. Each role includes those before it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look at everything that is no secret.
    Viewer,
    /// And change the boots of machines, and look into them: launch, hold, release, rescue, trace.
    Operator,
    /// And change what machines boot, and who may do what.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// How a caller was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Through {
    /// The UNIX socket: a user of this host, identified by the kernel.
    Socket,
    Token,
    /// A browser that logged in with a link.
    Page,
    /// A signal to the daemon, whose sender is unknown.
    Signal,
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Caller {
    /// The name of a user or token. For a login, the one that created the link.
    pub who: String,
    pub through: Through,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<IpAddr>,
    pub role: Role,
}

impl Caller {
    /// A user of this host. Whoever may open the socket may do everything.
    pub fn local(uid: u32) -> Self {
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let who = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
        Self { who, through: Through::Socket, uid: Some(uid), from: None, role: Role::Admin }
    }

    /// The sender of SIGHUP.
    pub fn signal() -> Self {
        let who = "SIGHUP".to_owned();
        Self { who, through: Through::Signal, uid: None, from: None, role: Role::Admin }
    }
}

/// A new secret, in hexadecimal after `prefix`.
fn secret(prefix: &str) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut *bytes);
    Zeroizing::new(format!("{prefix}{}", &*Zeroizing::new(hex(&*bytes))))
}

/// A secret's SHA-256.
type Hash = [u8; 32];

fn hash(secret: &str) -> Hash {
    Sha256::digest(secret).into()
}

/// The entry of `all` with this hash. All are compared completely, so that the time reveals nothing about any.
fn find<'a, T>(all: impl Iterator<Item = (&'a Hash, T)>, wanted: &Hash) -> Option<T> {
    let mut found = None;
    for (hash, one) in all {
        if bool::from(hash.ct_eq(wanted)) {
            found = Some(one);
        }
    }
    found
}
