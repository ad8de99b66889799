//! Tokens: who may use the API by TCP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Caller, Hash, Role, Through, find, hash, secret};
use crate::base::lock::Unpoisoned as _;
use crate::base::text::{hex, unhex, word};
use crate::store::{Change, ReadError, Store, TokenRow, WriteError};

/// Every token begins with this, so that scanners of source code and logs recognise one.
const PREFIX: &str = "bh_";

/// Maximum length of a token's name, in characters.
pub const NAME_MAX: usize = 64;

/// A token as it is shown, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Token {
    pub name: String,
    pub role: Role,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub added: Timestamp,
    #[serde(
        serialize_with = "crate::base::text::micros_if_any",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub expires: Option<Timestamp>,
}

/// Why a token can't be created.
#[derive(Debug, thiserror::Error)]
pub enum AddTokenError {
    #[error("{0:?} can't be a token's name: 1 to {NAME_MAX} letters, digits and `.`, `_`, `@`, `-`")]
    Name(String),
    #[error("there is a token {0} already")]
    Taken(String),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The tokens. Cloning it is cheap.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    store: Store,
    by_name: Mutex<BTreeMap<String, (Hash, Token)>>,
}

impl Tokens {
    /// Opens the stored tokens. One that can't be read is left out, and the log says so.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let rows = store.reader().tokens()?;
        let known = rows.into_iter().filter_map(|row| {
            let name = row.name.clone();
            let known = read(row);
            if known.is_none() {
                tracing::warn!(name, "a token in the database that can't be read: it opens nothing");
            }
            Some((name, known?))
        });
        let by_name = Mutex::new(known.collect());
        Ok(Self(Arc::new(Inner { store, by_name })))
    }

    /// Creates a token, whose secret is returned only here. It is stored when this returns.
    pub fn add(
        &self,
        name: &str,
        role: Role,
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Token, Zeroizing<String>), AddTokenError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
            return Err(AddTokenError::Name(name.to_owned()));
        }
        let secret = secret(PREFIX);
        let (hash, token) = (hash(&secret), Token { name: name.to_owned(), role, added: now, expires });
        let row = TokenRow {
            name: token.name.clone(),
            hash: hex(&hash),
            role: word(role),
            added: token.added,
            expires,
        };
        let mut by_name = self.by_name();
        if by_name.contains_key(name) {
            return Err(AddTokenError::Taken(name.to_owned()));
        }
        self.0.store.write(vec![Change::AddToken(row)]).wait()?;
        by_name.insert(token.name.clone(), (hash, token.clone()));
        Ok((token, secret))
    }

    /// All tokens, by name, including expired ones.
    pub fn list(&self) -> Vec<Token> {
        self.by_name().values().map(|(_, token)| token.clone()).collect()
    }

    /// Removes a token, which is refused from now on. `None` if there is none of that name.
    pub fn remove(&self, name: &str) -> Result<Option<Token>, WriteError> {
        let mut by_name = self.by_name();
        // From memory first, so that it is refused even if the disk is full.
        let Some((_, token)) = by_name.remove(name) else { return Ok(None) };
        self.0.store.write(vec![Change::RemoveToken(name.to_owned())]).wait()?;
        Ok(Some(token))
    }

    /// The token's caller, until the token expires.
    pub fn judge(&self, secret: &str, now: Timestamp) -> Option<Caller> {
        let by_name = self.by_name();
        let token = find(by_name.values().map(|(hash, token)| (hash, token)), &hash(secret))?;
        if token.expires.is_some_and(|end| end <= now) {
            return None;
        }
        let (who, role) = (token.name.clone(), token.role);
        Some(Caller { who, through: Through::Token, uid: None, from: None, role })
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<String, (Hash, Token)>> {
        self.0.by_name.lock().unpoisoned()
    }
}

fn read(row: TokenRow) -> Option<(Hash, Token)> {
    let hash = unhex(&row.hash)?.try_into().ok()?;
    let role = serde_json::from_value(row.role.into()).ok()?;
    Some((hash, Token { name: row.name, role, added: row.added, expires: row.expires }))
}
