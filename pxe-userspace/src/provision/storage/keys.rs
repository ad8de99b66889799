//! Keys of encrypted volumes: 256 random bits for each volume of each machine, generated when first requested. In the
//! database they are [sealed](crate::base::sealing), so that a copy of the database opens no disk. Each is bound to its
//! machine and volume.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::base::sealing::{self, Sealed, SealingKey, SealingKeyError};
use crate::store::{Change, ReadError, SealedKey, Store, VolumeKeyId, WriteError};

/// The sealing key's file in the state directory, readable only by root.
pub const SEALING_KEY: &str = "volume-keys.key";

/// Why there is no key for a volume.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    #[error(
        "the key of volume {volume} of {owner} can't be unsealed: the database and the key's file do not belong together"
    )]
    Unsealed { owner: String, volume: String },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The keys.
pub struct Keys {
    sealing_key: PathBuf,
    store: Store,
}

impl Keys {
    pub fn new(state_dir: &Path, store: Store) -> Self {
        Self { sealing_key: state_dir.join(SEALING_KEY), store }
    }

    /// The key of a volume of `owner`. When this returns, the key survives a power failure: a disk whose key is lost is
    /// lost, too.
    pub fn of(&mut self, owner: &str, plan: &str, volume: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let sealing_key = SealingKey::open(&self.sealing_key, "volumes' keys", || {
            self.store.reader().has_volume_keys().map_err(KeyError::from)
        })?;
        let purpose = serde_json::json!([owner, plan, volume]).to_string();
        let id = VolumeKeyId { owner: owner.into(), plan: plan.into(), volume: volume.into() };
        let unsealed = || KeyError::Unsealed { owner: owner.to_owned(), volume: volume.to_owned() };
        let mut key = Zeroizing::new([0; 32]);
        if let Some(SealedKey { nonce, sealed }) = self.store.reader().volume_key(&id)? {
            let opened = sealing_key.unseal(&purpose, &Sealed { nonce, sealed }).map_err(|_| unsealed())?;
            if opened.len() != key.len() {
                return Err(unsealed());
            }
            key.copy_from_slice(&opened);
            return Ok(key);
        }
        sealing::random(&mut *key);
        let Sealed { nonce, sealed } = sealing_key.seal(&purpose, &*key);
        self.store.write(vec![Change::AddVolumeKey(id, SealedKey { nonce, sealed })]).wait()?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path) -> Keys {
        Keys::new(dir, Store::open(&dir.join("bridgehead.db")).unwrap())
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
            // The store deletes its log after its last user has ended, in a thread of its own.
            let bytes = match fs::read(entry.unwrap().path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                bytes => bytes.unwrap(),
            };
            assert!(!bytes.windows(32).any(|window| window == &key[..]), "a key lies open in a file");
        }
    }

    #[test]
    fn another_sealing_key_and_a_swapped_row_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = open(dir.path());
        keys.of("n1", "data", "db").unwrap();
        let database = rusqlite::Connection::open(dir.path().join("bridgehead.db")).unwrap();
        database.execute("UPDATE volume_key SET owner = 'n2'", []).unwrap();
        assert!(matches!(keys.of("n2", "data", "db"), Err(KeyError::Unsealed { .. })));
        database.execute("UPDATE volume_key SET owner = 'n1'", []).unwrap();
        keys.of("n1", "data", "db").unwrap();

        let sealing = dir.path().join(SEALING_KEY);
        fs::write(&sealing, [7; 32]).unwrap();
        assert!(matches!(keys.of("n1", "data", "db"), Err(KeyError::Unsealed { .. })));
        fs::write(&sealing, "short").unwrap();
        assert!(matches!(
            keys.of("n1", "data", "db"),
            Err(KeyError::Sealing(SealingKeyError::Damaged { .. }))
        ));
        fs::remove_file(&sealing).unwrap();
        assert!(matches!(keys.of("n1", "data", "db"), Err(KeyError::Sealing(SealingKeyError::Lost { .. }))));
    }
}
