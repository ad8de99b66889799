//! The stored parts of images: blobs named by their SHA-256, and one file of records. Both are replaced as a whole
//! (written to a temporary file, synced, renamed), so a crash leaves either the old or the new.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{ImageRecord, KernelList};
use crate::base::text::hex;
use crate::provision::blob::Blob;

/// A blob in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Stored {
    /// Hexadecimal.
    pub sha256: String,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is no list of ours ({source}): move it away and add what was in it again")]
    Records { path: PathBuf, source: serde_json::Error },
}

/// The records' files.
const IMAGES: &str = "images.json";
const KERNELS: &str = "kernels.json";

#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store in `root`, which is created if missing.
    pub(super) fn open(root: PathBuf) -> Result<Self, StoreError> {
        let store = Self { root };
        for directory in [store.blobs(), store.work()] {
            std::fs::create_dir_all(&directory)
                .map_err(|source| StoreError::File { path: directory, source })?;
        }
        store.clear_work();
        Ok(store)
    }

    /// Removes what an import of a killed daemon left. At start no import is in progress.
    fn clear_work(&self) {
        let left = std::fs::read_dir(self.work()).into_iter().flatten().flatten();
        for path in left.map(|entry| entry.path()) {
            let removed = match path.is_dir() && !path.is_symlink() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "what a killed import left is still there");
            }
        }
    }

    /// For files without a name, or without one yet: on the same file system as the blobs.
    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Stores what `write` writes.
    pub(super) fn put<E: From<io::Error>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Stored, E> {
        let mut file = Hashing {
            inner: io::BufWriter::with_capacity(256 * 1024, NamedTempFile::new_in(self.work())?),
            hash: Sha256::new(),
            size: 0,
        };
        write(&mut file)?;
        let stored = Stored { sha256: hex(&file.hash.finalize()), size: file.size };
        let file = file.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        persist(file, &self.blob_path(&stored))?;
        Ok(stored)
    }

    /// Stores a complete file of the work directory, from its current position, which is its start.
    pub(super) fn take(&self, mut file: NamedTempFile) -> io::Result<Stored> {
        let mut hash = Sha256::new();
        let size = io::copy(file.as_file_mut(), &mut hash)?;
        let stored = Stored { sha256: hex(&hash.finalize()), size };
        persist(file, &self.blob_path(&stored))?;
        Ok(stored)
    }

    pub(super) fn blob(&self, stored: &Stored) -> Result<Blob, StoreError> {
        let path = self.blob_path(stored);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let blob = Blob::open(&path).map_err(failed)?;
        if blob.len() != stored.size {
            let message = format!("{} bytes instead of {}", blob.len(), stored.size);
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        Ok(blob)
    }

    /// A blob by its name only, which must be a SHA-256.
    pub(super) fn find(&self, sha256: &str) -> io::Result<Option<Blob>> {
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        match Blob::open(&self.blobs().join(sha256)) {
            Ok(blob) => Ok(Some(blob)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A blob as a file, to be read in this process.
    pub(super) fn file(&self, stored: &Stored) -> Result<File, StoreError> {
        let path = self.blob_path(stored);
        File::open(&path).map_err(|source| StoreError::File { path, source })
    }

    /// The whole of a small blob.
    pub(super) fn read(&self, stored: &Stored) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(stored);
        std::fs::read(&path).map_err(|source| StoreError::File { path, source })
    }

    pub(super) fn records(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.list(IMAGES)
    }

    pub(super) fn set_records(&self, records: &[&ImageRecord]) -> Result<(), StoreError> {
        self.set_list(IMAGES, records)
    }

    pub(super) fn kernels(&self) -> Result<KernelList, StoreError> {
        self.list(KERNELS)
    }

    pub(super) fn set_kernels(&self, kernels: &KernelList) -> Result<(), StoreError> {
        self.set_list(KERNELS, kernels)
    }

    fn list<T: Default + DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        let path = self.root.join(name);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(source) => return Err(StoreError::File { path, source }),
            Ok(bytes) => bytes,
        };
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Records { path, source })
    }

    fn set_list<T: Serialize + ?Sized>(&self, name: &str, list: &T) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let write = || -> io::Result<()> {
            let mut file = NamedTempFile::new_in(self.work())?;
            serde_json::to_writer_pretty(&mut file, list)?;
            persist(file, &path)
        };
        write().map_err(|source| StoreError::File { path: path.clone(), source })
    }

    /// Removes every blob that is not in `kept`, and what a crash left half-written. Returns the number of blobs and
    /// bytes. A blob that is being sent stays readable until then.
    pub(super) fn sweep(&self, kept: &BTreeSet<String>) -> Result<(u64, u64), StoreError> {
        let mut freed = (0, 0);
        for directory in [self.blobs(), self.work()] {
            let failed = |source| StoreError::File { path: directory.clone(), source };
            for entry in std::fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                    continue;
                }
                let metadata = entry.metadata().map_err(failed)?;
                // What somebody sends just now. It is removed by who receives it, or at the next start.
                if metadata.is_dir() {
                    continue;
                }
                let size = metadata.len();
                std::fs::remove_file(entry.path()).map_err(failed)?;
                freed = (freed.0 + 1, freed.1 + size);
            }
        }
        Ok(freed)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn blob_path(&self, stored: &Stored) -> PathBuf {
        self.blobs().join(&stored.sha256)
    }
}

/// Gives a finished file its name, durably: contents first, then the directory.
fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
