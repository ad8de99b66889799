//! Who the appliance is before BMCs: users and passwords by name. Passwords are [sealed](crate::base::sealing) in the
//! database, each bound to its name and user, and are unsealed for the time of one order.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::PowerError;
use crate::base::lock::Unpoisoned as _;
use crate::base::sealing::{Sealed, SealingKey, SealingKeyError};
use crate::base::text::one_line;
use crate::config::power::{CREDENTIALS_NAME_MAX, is_credentials_name};
use crate::store::{Change, CredentialsRow, ReadError, Store, WriteError};

/// The sealing key's file in the state directory, readable only by root.
pub const SEALING_KEY: &str = "power.key";
/// Bytes of a user's name, and of a password. Redfish's users have fewer.
pub const SECRET_MAX: usize = 256;
/// Credentials that are kept at most.
const KEPT_MAX: usize = 1024;

/// Credentials, without what is secret of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Known {
    pub name: String,
    pub user: String,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub added: Timestamp,
}

/// A user and a password, for the time of one order.
pub struct Login {
    /// The credentials' name.
    pub name: String,
    pub user: String,
    pub password: Zeroizing<String>,
    /// Changes when they are added anew: sessions of before are not used any more.
    pub added: Timestamp,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("name", &self.name).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Login {
    /// What a BMC said, in one bounded line, and without the password, should it repeat that.
    pub(super) fn scrub(&self, said: &str) -> String {
        match self.password.is_empty() {
            true => bounded(said),
            false => bounded(&said.replace(self.password.as_str(), "…")),
        }
    }
}

/// Somebody's words, in one line of at most 200 characters.
pub(super) fn bounded(said: &str) -> String {
    const SHOWN: usize = 200;
    let line = one_line(said.trim());
    let shown: String = line.chars().take(SHOWN).collect();
    match (shown.is_empty(), line.len() > shown.len()) {
        (true, _) => "it gives no reason".to_owned(),
        (false, true) => format!("{shown}…"),
        (false, false) => shown,
    }
}

/// Credentials can't be kept so.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error(
        "{0:?} can't be the name of credentials: 1 to {CREDENTIALS_NAME_MAX} letters, digits and `.`, `_`, `@`, `-`"
    )]
    Name(String),
    #[error("the user is 1 to {SECRET_MAX} characters, none of them a control character")]
    User,
    #[error("the password is 1 to {SECRET_MAX} bytes, none of them a control character")]
    Password,
    #[error("{KEPT_MAX} credentials are kept already")]
    Full,
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// All credentials. Cloning it is cheap.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    sealing_key: PathBuf,
    store: Store,
    /// Held while they are changed, so that only one creates the sealing key.
    changing: Mutex<()>,
}

impl Credentials {
    pub fn new(state_dir: &Path, store: Store) -> Self {
        Self(Arc::new(Inner { sealing_key: state_dir.join(SEALING_KEY), store, changing: Mutex::default() }))
    }

    /// All of them, by name. Blocks.
    pub fn list(&self) -> Result<Vec<Known>, ReadError> {
        let rows = self.0.store.reader().credentials()?;
        let known = |row: CredentialsRow| Known { name: row.name, user: row.user, added: row.added };
        Ok(rows.into_iter().map(known).collect())
    }

    /// Keeps them, in place of those of this name. They are on disk when this returns, which blocks.
    pub fn add(&self, name: &str, user: &str, password: &str, now: Timestamp) -> Result<Known, AddError> {
        if !is_credentials_name(name) {
            return Err(AddError::Name(name.chars().take(CREDENTIALS_NAME_MAX).collect()));
        }
        let fits = |text: &str| (1..=SECRET_MAX).contains(&text.len()) && !text.contains(char::is_control);
        // A basic authentication ends the user at a colon (RFC 7617 section 2).
        if !fits(user) || user.contains(':') {
            return Err(AddError::User);
        }
        if !fits(password) {
            return Err(AddError::Password);
        }
        let _one_at_a_time = self.0.changing.lock().unpoisoned();
        let kept = self.list()?;
        if kept.len() >= KEPT_MAX && kept.iter().all(|known| known.name != name) {
            return Err(AddError::Full);
        }
        let key = self.key::<AddError>()?;
        let Sealed { nonce, sealed } = key.seal(&purpose(name, user), password.as_bytes());
        let known = Known { name: name.to_owned(), user: user.to_owned(), added: now };
        let row =
            CredentialsRow { name: known.name.clone(), user: known.user.clone(), nonce, sealed, added: now };
        self.0.store.write(vec![Change::PutCredentials(row)]).wait()?;
        Ok(known)
    }

    /// Forgets them; `None` when there are none of this name. Blocks.
    pub fn remove(&self, name: &str) -> Result<Option<Known>, AddError> {
        let _one_at_a_time = self.0.changing.lock().unpoisoned();
        let Some(known) = self.list()?.into_iter().find(|known| known.name == name) else { return Ok(None) };
        self.0.store.write(vec![Change::RemoveCredentials(name.to_owned())]).wait()?;
        Ok(Some(known))
    }

    /// Unseals them. Blocks.
    pub fn login(&self, name: &str) -> Result<Login, PowerError> {
        let rows = self.0.store.reader().credentials()?;
        let row = rows.into_iter().find(|row| row.name == name);
        let CredentialsRow { name, user, nonce, sealed, added } =
            row.ok_or_else(|| PowerError::NoCredentials(name.to_owned()))?;
        let unsealed = || PowerError::Unsealed(name.clone());
        let opened = self.key::<PowerError>()?.unseal(&purpose(&name, &user), &Sealed { nonce, sealed });
        let opened = opened.map_err(|_| unsealed())?;
        let password = std::str::from_utf8(&opened).map_err(|_| unsealed())?.to_owned();
        Ok(Login { user, password: Zeroizing::new(password), added, name: name.clone() })
    }

    fn key<E: std::convert::From<SealingKeyError> + std::convert::From<ReadError>>(
        &self,
    ) -> Result<SealingKey, E> {
        SealingKey::open(&self.0.sealing_key, "credentials", || {
            Ok(!self.0.store.reader().credentials()?.is_empty())
        })
    }
}

fn purpose(name: &str, user: &str) -> String {
    serde_json::json!(["power", name, user]).to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(dir: &Path) -> Credentials {
        Credentials::new(dir, Store::open(&dir.join("bridgehead.db")).unwrap())
    }

    const PASSWORD: &str = "correct horse battery";

    #[test]
    fn a_password_lies_open_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = open(dir.path());
        let known = credentials.add("rack", "root", PASSWORD, Timestamp::UNIX_EPOCH).unwrap();
        assert!(!format!("{known:?} {}", serde_json::to_string(&known).unwrap()).contains(PASSWORD));
        let login = open(dir.path()).login("rack").unwrap();
        assert_eq!((&*login.user, login.password.as_str()), ("root", PASSWORD));
        assert!(!format!("{login:?}").contains(PASSWORD));
        assert_eq!(login.scrub(&format!("no {PASSWORD} here\r\n\u{1b}[2J")), "no … here   [2J");
        for entry in fs::read_dir(dir.path()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
            let open = bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
            assert!(!open, "the password lies open in a file");
        }

        assert!(credentials.add("rack", "admin", "other", Timestamp::UNIX_EPOCH).is_ok(), "in its place");
        assert_eq!(credentials.list().unwrap().len(), 1);
        assert_eq!(credentials.login("rack").unwrap().password.as_str(), "other");
        assert_eq!(credentials.remove("rack").unwrap().unwrap().user, "admin");
        assert!(credentials.remove("rack").unwrap().is_none());
        assert!(matches!(credentials.login("rack"), Err(PowerError::NoCredentials(_))));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = open(dir.path());
        let add = |name: &str, user: &str, password: &str| {
            credentials.add(name, user, password, Timestamp::UNIX_EPOCH).map(|_| ()).unwrap_err()
        };
        assert!(matches!(add("a b", "root", "x"), AddError::Name(_)));
        assert!(matches!(add("rack", "", "x"), AddError::User));
        assert!(matches!(add("rack", "a:b", "x"), AddError::User));
        assert!(matches!(add("rack", "root", ""), AddError::Password));
        assert!(matches!(add("rack", "root", "a\nb"), AddError::Password));
        assert!(matches!(add("rack", "root", &"x".repeat(257)), AddError::Password));
    }

    #[test]
    fn a_row_of_another_is_not_unsealed() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = open(dir.path());
        credentials.add("rack", "root", PASSWORD, Timestamp::UNIX_EPOCH).unwrap();
        let database = rusqlite::Connection::open(dir.path().join("bridgehead.db")).unwrap();
        database.execute("UPDATE credentials SET user = 'guest'", []).unwrap();
        assert!(matches!(credentials.login("rack"), Err(PowerError::Unsealed(_))));
        database.execute("UPDATE credentials SET user = 'root'", []).unwrap();
        fs::remove_file(dir.path().join(SEALING_KEY)).unwrap();
        assert!(matches!(credentials.login("rack"), Err(PowerError::Sealing(SealingKeyError::Lost { .. }))));
    }
}
