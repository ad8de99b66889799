//! Immutable bytes with a name: what TFTP, HTTP and the kernel's block map serve.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::text::hex;

/// The identity of a blob's contents: equal keys mean equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlobKey {
    /// SHA-256 of the contents.
    Digest([u8; 32]),
    /// A file as it was when opened. A file that is replaced or written to gets another key.
    File { device: u64, inode: u64, modified_ns: i128, len: u64 },
}

impl BlobKey {
    fn of(meta: &Metadata) -> Self {
        Self::File {
            device: meta.dev(),
            inode: meta.ino(),
            modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            len: meta.len(),
        }
    }
}

/// A handle on immutable bytes; cloning it is cheap. A blob stays readable while a handle is held,
/// also when the file behind it is unlinked or replaced.
#[derive(Clone, Debug)]
pub struct Blob(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: BlobKey,
    len: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Memory(Bytes),
    File(File),
    Elsewhere(Box<dyn ReadAt>),
}

/// Bytes that are stored elsewhere.
pub trait ReadAt: std::fmt::Debug + Send + Sync {
    /// Fills `buf` from `offset`. The caller asks only for bytes that exist.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Blob {
    /// Generated contents: a grub.cfg, a script.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let key = BlobKey::Digest(Sha256::digest(&bytes).into());
        Self(Arc::new(Inner { key, len: bytes.len() as u64, source: Source::Memory(bytes) }))
    }

    /// A regular file. Fails with `IsADirectory` on a directory and `InvalidInput` on a device.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// A regular file that is already open.
    pub fn from_file(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let key = BlobKey::of(&meta);
        Ok(Self(Arc::new(Inner { key, len: meta.len(), source: Source::File(file) })))
    }

    /// Bytes whose key is known already, and that are read from elsewhere.
    pub fn elsewhere(key: BlobKey, len: u64, source: Box<dyn ReadAt>) -> Self {
        Self(Arc::new(Inner { key, len, source: Source::Elsewhere(source) }))
    }

    pub fn key(&self) -> BlobKey {
        self.0.key
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty blob is served like any other")]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// A strong HTTP entity tag (RFC 9110 section 8.8.3), quotes included.
    pub fn etag(&self) -> String {
        match self.0.key {
            BlobKey::Digest(digest) => format!("\"{}\"", hex(&digest[..16])),
            BlobKey::File { device, inode, modified_ns, len } => {
                format!("\"{device:x}-{inode:x}-{modified_ns:x}-{len:x}\"")
            }
        }
    }

    /// When the file was written, in whole seconds as in HTTP; `None` for blobs that are identified by their contents.
    pub fn modified(&self) -> Option<Timestamp> {
        match self.0.key {
            BlobKey::Digest(_) => None,
            BlobKey::File { modified_ns, .. } => {
                Timestamp::from_second(i64::try_from(modified_ns.div_euclid(1_000_000_000)).ok()?).ok()
            }
        }
    }

    /// Whether the file behind it is still as it was when opened. One that is written to in place has other bytes, which
    /// its key does not name.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        match &self.0.source {
            Source::File(file) => Ok(BlobKey::of(&file.metadata()?) == self.0.key),
            Source::Memory(_) | Source::Elsewhere(_) => Ok(true),
        }
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the blob.
    ///
    /// A file that was truncated meanwhile is an error, not a short read, because its length was announced.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.0.len.saturating_sub(offset);
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let buf = &mut buf[..want];
        match &self.0.source {
            Source::Memory(bytes) => {
                let at = offset as usize;
                buf.copy_from_slice(&bytes[at..at + want]);
            }
            Source::File(file) => file.read_exact_at(buf, offset)?,
            Source::Elsewhere(source) => source.read_exact_at(offset, buf)?,
        }
        Ok(want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let blob = Blob::from_bytes(&b"0123456789"[..]);
        let mut buf = [0u8; 8];
        assert_eq!(blob.read_at(4, &mut buf).unwrap(), 6);
        assert_eq!(&buf[..6], b"456789");
        assert_eq!(blob.read_at(10, &mut buf).unwrap(), 0);
        assert_eq!(blob.read_at(u64::MAX, &mut buf).unwrap(), 0);
    }

    #[test]
    fn a_replaced_file_is_another_blob_and_the_old_one_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "old").unwrap();
        let old = Blob::open(&path).unwrap();
        std::fs::write(dir.path().join("g"), "newer").unwrap();
        std::fs::rename(dir.path().join("g"), &path).unwrap();
        let new = Blob::open(&path).unwrap();
        assert_ne!(old.key(), new.key());
        let mut buf = [0u8; 3];
        old.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"old");
    }

    #[test]
    fn a_directory_is_refused() {
        let err = Blob::open(Path::new("/")).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::IsADirectory);
    }
}
