//! Secrets at rest: encrypted with XChaCha20-Poly1305 under a key in a file of its own, so that a copy of the database
//! alone opens none of them. Each is bound to its purpose: under another one it can't be unsealed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::rand_core::RngCore as _;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::secret_file;

/// Why nothing can be sealed or unsealed.
#[derive(Debug, thiserror::Error)]
pub enum SealingKeyError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is missing, and {what} were sealed with it: bring it back, or they stay closed")]
    Lost { path: PathBuf, what: &'static str },
    #[error("{path} is not 32 bytes long: it is not the file that {what} were sealed with")]
    Damaged { path: PathBuf, what: &'static str },
}

/// What is sealed was sealed with another key, or for another purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUnsealed;

/// A secret as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// 24 bytes.
    pub nonce: Vec<u8>,
    pub sealed: Vec<u8>,
}

/// A key, ready for use.
pub struct SealingKey(XChaCha20Poly1305);

impl SealingKey {
    /// Reads the key at `path`, which only root may read. Without one, it is created if nothing `was_sealed` so far.
    /// `what` is sealed with it, in words and in the plural.
    pub fn open<E: From<SealingKeyError>>(
        path: &Path,
        what: &'static str,
        was_sealed: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Self, E> {
        let failed = |source| SealingKeyError::File { path: path.to_owned(), source };
        let key = match fs::read(path) {
            Ok(key) => Zeroizing::new(key),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if was_sealed()? {
                    return Err(SealingKeyError::Lost { path: path.to_owned(), what }.into());
                }
                let mut key = Zeroizing::new(vec![0; 32]);
                OsRng.fill_bytes(&mut key);
                secret_file::write(path, &key).map_err(failed)?;
                key
            }
            Err(error) => return Err(failed(error).into()),
        };
        let damaged = |_| SealingKeyError::Damaged { path: path.to_owned(), what };
        Ok(Self(XChaCha20Poly1305::new_from_slice(&key).map_err(damaged)?))
    }

    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Sealed {
        let mut nonce = [0; 24];
        OsRng.fill_bytes(&mut nonce);
        let payload = Payload { msg: secret, aad: purpose.as_bytes() };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload).expect("a secret is shorter than 256 GiB");
        Sealed { nonce: nonce.to_vec(), sealed }
    }

    pub fn unseal(&self, purpose: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, NotUnsealed> {
        let nonce = <[u8; 24]>::try_from(&*sealed.nonce).map_err(|_| NotUnsealed)?;
        let payload = Payload { msg: &sealed.sealed, aad: purpose.as_bytes() };
        let opened = self.0.decrypt(&XNonce::from(nonce), payload).map_err(|_| NotUnsealed)?;
        Ok(Zeroizing::new(opened))
    }
}

/// Fills in random bytes, good for keys.
pub fn random(bytes: &mut [u8]) {
    OsRng.fill_bytes(bytes);
}
