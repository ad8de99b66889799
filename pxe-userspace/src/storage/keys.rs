//! Keys of encrypted volumes: 256 random bits for each volume of each machine, made when first asked for. In the
//! database they are sealed with XChaCha20-Poly1305 under a key of its own file, so that a copy of the database
//! opens no disk; each is bound to what it is for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::rand_core::RngCore as _;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::database::{self, DatabaseError, Durability};
use crate::secret_file;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS volume_key (
    owner  TEXT NOT NULL,
    plan   TEXT NOT NULL,
    volume TEXT NOT NULL,
    nonce  BLOB NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (owner, plan, volume)
) STRICT, WITHOUT ROWID;
";

/// The sealing key's file in the state directory, readable by root alone.
pub const SEALING_KEY: &str = "volume-keys.key";

/// A volume's key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path}: {source}")]
    SealingKey { path: PathBuf, source: io::Error },
    #[error(
        "{0} is missing, and volumes' keys were sealed with it: bring it back, or their disks stay closed"
    )]
    SealingKeyLost(PathBuf),
    #[error("{0} is not 32 bytes long: it is not the file that volumes' keys were sealed with")]
    SealingKeyDamaged(PathBuf),
    #[error(
        "the key of volume {volume} of {owner} can't be unsealed: the database and the key's file do not belong together"
    )]
    Unsealed { owner: String, volume: String },
    #[error("the database of volumes' keys: {0}")]
    Database(#[from] rusqlite::Error),
}

/// The keys' table.
pub struct Keys {
    sealing_key: PathBuf,
    db: Connection,
}

impl Keys {
    pub fn open(state_dir: &Path, database: &Path) -> Result<Self, DatabaseError> {
        // A disk that was encrypted with a key that a power cut took is lost.
        let db = database::open(database, Durability::All, SCHEMA)?;
        Ok(Self { sealing_key: state_dir.join(SEALING_KEY), db })
    }

    /// The key of a volume of `owner`'s. When this returns, it survives a power cut.
    pub fn of(&mut self, owner: &str, plan: &str, volume: &str) -> Result<[u8; 32], KeyError> {
        let cipher = self.cipher()?;
        let purpose = serde_json::json!([owner, plan, volume]).to_string();
        let select = "SELECT nonce, sealed FROM volume_key WHERE owner = ? AND plan = ? AND volume = ?";
        let found: Option<(Vec<u8>, Vec<u8>)> = self
            .db
            .query_row(select, params![owner, plan, volume], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let unsealed = || KeyError::Unsealed { owner: owner.to_owned(), volume: volume.to_owned() };
        if let Some((nonce, sealed)) = found {
            let nonce = <[u8; 24]>::try_from(nonce).map_err(|_| unsealed())?;
            let payload = Payload { msg: &sealed, aad: purpose.as_bytes() };
            let key = cipher.decrypt(&XNonce::from(nonce), payload).map_err(|_| unsealed())?;
            return key.try_into().map_err(|_| unsealed());
        }
        let (mut key, mut nonce) = ([0; 32], [0; 24]);
        OsRng.fill_bytes(&mut key);
        OsRng.fill_bytes(&mut nonce);
        let payload = Payload { msg: &key, aad: purpose.as_bytes() };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| unsealed())?;
        let insert = "INSERT INTO volume_key (owner, plan, volume, nonce, sealed) VALUES (?, ?, ?, ?, ?)";
        self.db.execute(insert, params![owner, plan, volume, nonce.as_slice(), sealed])?;
        Ok(key)
    }

    /// Reads the sealing key, or makes it when nothing was sealed yet.
    fn cipher(&self) -> Result<XChaCha20Poly1305, KeyError> {
        let path = &self.sealing_key;
        let failed = |source| KeyError::SealingKey { path: path.clone(), source };
        let key = match fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let sealed: i64 =
                    self.db.query_row("SELECT count(*) FROM volume_key", [], |row| row.get(0))?;
                if sealed > 0 {
                    return Err(KeyError::SealingKeyLost(path.clone()));
                }
                let mut key = vec![0; 32];
                OsRng.fill_bytes(&mut key);
                secret_file::write(path, &key).map_err(failed)?;
                key
            }
            Err(error) => return Err(failed(error)),
        };
        XChaCha20Poly1305::new_from_slice(&key).map_err(|_| KeyError::SealingKeyDamaged(path.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path) -> Keys {
        Keys::open(dir, &dir.join("bridgehead.db")).unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_kept_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let key = open(dir.path()).of("n1", "data", "db").unwrap();
        let mut keys = open(dir.path());
        assert_eq!(keys.of("n1", "data", "db").unwrap(), key);
        assert_ne!(keys.of("n2", "data", "db").unwrap(), key);
        drop(keys);

        let sealing = dir.path().join(SEALING_KEY);
        assert_eq!(fs::metadata(&sealing).unwrap().permissions().mode() & 0o777, 0o600);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(32).any(|window| window == key), "a key lies open in a file");
        }
    }

    #[test]
    fn another_sealing_key_and_a_swapped_row_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = open(dir.path());
        keys.of("n1", "data", "db").unwrap();
        keys.db.execute("UPDATE volume_key SET owner = 'n2'", []).unwrap();
        assert!(matches!(keys.of("n2", "data", "db"), Err(KeyError::Unsealed { .. })));
        keys.db.execute("UPDATE volume_key SET owner = 'n1'", []).unwrap();
        keys.of("n1", "data", "db").unwrap();

        let sealing = dir.path().join(SEALING_KEY);
        fs::write(&sealing, [7; 32]).unwrap();
        assert!(matches!(keys.of("n1", "data", "db"), Err(KeyError::Unsealed { .. })));
        fs::write(&sealing, "short").unwrap();
        assert!(matches!(keys.of("n1", "data", "db"), Err(KeyError::SealingKeyDamaged(_))));
        fs::remove_file(&sealing).unwrap();
        assert!(matches!(keys.of("n1", "data", "db"), Err(KeyError::SealingKeyLost(_))));
    }
}
