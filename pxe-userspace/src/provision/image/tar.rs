//! Reads tar archives as container tools write them: ustar, GNU long names, PAX records.
//!
//! The `tar` crate decodes the headers. Its own iteration is not used, because it cuts PAX records at line feeds. The
//! binary value of `security.capability` may contain one (CAP_DAC_OVERRIDE with CAP_FOWNER is 0x0a): the cut record
//! would hide the entry's size, and everything after it would be misplaced.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::Header;

pub(super) use super::sparse::SparseMap;
use super::sparse::{self, Pax};

const BLOCK: u64 = 512;

/// No file system could store larger PAX records and long names.
const MAX_EXTENSION: u64 = 1024 * 1024;

/// An archive that is read sequentially.
pub(super) struct TarReader<R> {
    inner: R,
    /// Bytes read so far.
    at: u64,
    /// The position of the next header.
    next: u64,
    /// The end of the current entry's data.
    data_end: u64,
}

#[derive(Debug)]
pub(super) struct TarEntry {
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    /// The target of a hard or symbolic link.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u32,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The position of the contents in the archive.
    pub(super) offset: u64,
    pub(super) size: u64,
    /// The map of a sparse file.
    pub(super) sparse: Option<SparseMap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the archive ends in the middle of an entry, at byte {at}")]
    Truncated { at: u64 },
    #[error("no tar header at byte {at}: its checksum is wrong")]
    Checksum { at: u64 },
    #[error("the {field} of the header at byte {at} is not a number that fits")]
    Number { field: &'static str, at: u64 },
    #[error("a malformed PAX record at byte {at}")]
    Pax { at: u64 },
    #[error("the entry at byte {at} has a list of holes that does not fit its contents")]
    Sparse { at: u64 },
    #[error("an entry of type {kind:?} at byte {at}, which is not supported")]
    Kind { kind: char, at: u64 },
    // Not transparent: the cause is to be found by who looks for a limit.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The values of extension headers, for the entry that follows them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<i64>,
    gid: Option<i64>,
    mtime: Option<u32>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: Pax,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, at: 0, next: 0, data_end: 0 }
    }

    /// The next entry, whose contents are not read yet; `None` at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let at = self.at - BLOCK;
            let kind = header.as_bytes()[156];
            let header_size = number("size", at, header.entry_size())?;
            match kind {
                b'x' => extension.records(&self.extension_data(header_size)?, at)?,
                b'L' => extension.path = Some(until_nul(self.extension_data(header_size)?)),
                b'K' => extension.link = Some(until_nul(self.extension_data(header_size)?)),
                // A comment for the whole archive (git archive), which Docker skips, too.
                b'g' => drop(self.extension_data(header_size)?),
                // The archive's label (`tar --label`).
                b'V' => drop(self.extension_data(header_size)?),
                _ => return self.entry(&header, at, kind, header_size, extension).map(Some),
            }
        }
    }

    /// The unread rest of the current entry's contents.
    pub(super) fn data(&mut self) -> impl Read {
        Data(self)
    }

    fn entry(
        &mut self,
        header: &Header,
        at: u64,
        kind: u8,
        header_size: u64,
        extension: Extension,
    ) -> Result<TarEntry, TarError> {
        let path =
            extension.sparse.name().or(extension.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let typeflag = kind;
        let kind = match typeflag {
            // Before POSIX, a directory was a file whose name ends with a slash.
            0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            // The second is from GNU tar's incremental backups, and contains the directory's names.
            b'5' | b'D' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Kind { kind: other.into(), at }),
        };
        let mut map = None;
        if typeflag == b'S' {
            map = Some(self.gnu_sparse(header, at)?);
        }
        // Links, devices and directories may state a size, but have no contents.
        let has_data = matches!(typeflag, 0 | b'0' | b'7' | b'S' | b'D');
        self.expect_data(if has_data { extension.size.unwrap_or(header_size) } else { 0 })?;
        if kind == EntryKind::File
            && let Some(pax) = extension.sparse.map(|| sparse::text(&mut Data(self))).map_err(|e| e.at(at))?
        {
            map = Some(pax);
        }
        let size = self.data_end - self.at;
        let sparse = map.map(|map| map.fitting(size).ok_or(TarError::Sparse { at })).transpose()?;
        let old = header.as_old();
        let id = |field, pax: Option<i64>, raw: &[u8; 8], parsed: io::Result<u64>| {
            let id = match (pax, raw) {
                (Some(id), _) => id,
                // A negative number in base 256.
                (None, [0xff, ..]) => i64::from_be_bytes(*raw),
                (None, _) => number(field, at, or_blank(raw, parsed))?.cast_signed(),
            };
            owner(id).ok_or(TarError::Number { field, at })
        };
        let device =
            |part: io::Result<Option<u32>>| number("device", at, part).map(Option::unwrap_or_default);
        Ok(TarEntry {
            path,
            kind,
            link: extension
                .link
                .unwrap_or_else(|| header.link_name_bytes().map_or_else(Vec::new, Into::into)),
            mode: number("mode", at, or_blank(&old.mode, header.mode()))? & 0o7777,
            uid: id("owner", extension.uid, &old.uid, header.uid())?,
            gid: id("group", extension.gid, &old.gid, header.gid())?,
            // Times before 1970 and after 2106 don't fit into an initrd; nothing depends on them.
            mtime: extension.mtime.unwrap_or_else(|| {
                header.mtime().map_or(0, |seconds| u32::try_from(seconds).unwrap_or_default())
            }),
            device: if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
                (device(header.device_major())?, device(header.device_minor())?)
            } else {
                (0, 0)
            },
            xattrs: extension.xattrs,
            offset: self.at,
            size: if kind == EntryKind::File { size } else { 0 },
            sparse,
        })
    }

    /// The map of an entry in GNU's own format: four segments in the header, the others in blocks after it.
    fn gnu_sparse(&mut self, header: &Header, at: u64) -> Result<SparseMap, TarError> {
        let wrong = || TarError::Sparse { at };
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        let size = number("size", at, gnu.real_size())?;
        let mut segments = Vec::new();
        let mut more = gnu.is_extended();
        sparse::gnu(&mut segments, &gnu.sparse).ok_or_else(wrong)?;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.inner.read_exact(block.as_mut_bytes()).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => TarError::Truncated { at: self.at },
                _ => e.into(),
            })?;
            self.at += BLOCK;
            sparse::gnu(&mut segments, block.sparse()).ok_or_else(wrong)?;
            more = block.is_extended();
        }
        Ok(SparseMap { size, segments })
    }

    /// The next header block; `None` at the end: a block of zeros, or the end of the file.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let gap = self.next - self.at;
        let skipped = io::copy(&mut (&mut self.inner).take(gap), &mut io::sink())?;
        self.at += skipped;
        if skipped < gap {
            return Err(TarError::Truncated { at: self.at });
        }
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated { at: self.at + filled as u64 }),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let at = self.at;
        self.at += BLOCK;
        self.next = self.at;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(TarError::Checksum { at });
        }
        Ok(Some(header))
    }

    fn expect_data(&mut self, size: u64) -> Result<(), TarError> {
        let too_far = TarError::Number { field: "size", at: self.at - BLOCK };
        let end = self.at.checked_add(size);
        let Some((end, next)) = end.and_then(|e| Some((e, e.checked_next_multiple_of(BLOCK)?))) else {
            return Err(too_far);
        };
        (self.data_end, self.next) = (end, next);
        Ok(())
    }

    fn extension_data(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::Number { field: "size", at: self.at - BLOCK });
        }
        self.expect_data(size)?;
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Extension {
    /// Processes PAX records: `LENGTH KEY=VALUE\n`, where the length counts the whole record (POSIX pax, "pax Extended
    /// Header").
    fn records(&mut self, mut data: &[u8], at: u64) -> Result<(), TarError> {
        let malformed = || TarError::Pax { at };
        while !data.is_empty() {
            let space = data.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = text(&data[..space]).and_then(|t| t.parse().ok()).ok_or_else(malformed)?;
            let record = data.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let some = Some(value).filter(|value| !value.is_empty());
            let id = || match some {
                Some(value) => text(value).and_then(|t| t.parse().ok()).ok_or_else(malformed).map(Some),
                None => Ok(None),
            };
            match key {
                // Without a value, the header's own field applies again.
                b"path" => self.path = some.map(Into::into),
                b"linkpath" => self.link = some.map(Into::into),
                b"size" => {
                    let size = |value| text(value).and_then(|t| t.parse().ok()).ok_or_else(malformed);
                    self.size = some.map(size).transpose()?;
                }
                b"uid" => self.uid = id()?,
                b"gid" => self.gid = id()?,
                b"mtime" => {
                    let seconds = value.split(|b| *b == b'.').next().and_then(text);
                    self.mtime = Some(seconds.and_then(|t| t.parse().ok()).unwrap_or_default());
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.insert(name.to_owned(), value.to_owned());
                    } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.record(name, value).ok_or(TarError::Sparse { at })?;
                    }
                }
            }
            data = &data[length..];
        }
        Ok(())
    }
}

struct Data<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.0.data_end - self.0.at).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        if want == 0 {
            // The decoder is not called: zstd's reports an error after repeated calls with an empty buffer.
            return Ok(0);
        }
        let n = self.0.inner.read(&mut buf[..want])?;
        self.0.at += n as u64;
        if n == 0 {
            let truncated = TarError::Truncated { at: self.0.at };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, truncated.to_string()));
        }
        Ok(n)
    }
}

fn number<T>(field: &'static str, at: u64, value: io::Result<T>) -> Result<T, TarError> {
    value.map_err(|_| TarError::Number { field, at })
}

/// A blank field is zero, as in every other reader.
fn or_blank<T: Default>(raw: &[u8], parsed: io::Result<T>) -> io::Result<T> {
    if raw.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { parsed }
}

/// As for `lchown`: negative numbers wrap, and -1 leaves the owner unchanged, which is root.
fn owner(id: i64) -> Option<u32> {
    let id = match id {
        0.. => u32::try_from(id).ok()?,
        _ => i32::try_from(id).ok()?.cast_unsigned(),
    };
    Some(if id == u32::MAX { 0 } else { id })
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(nul);
    }
    bytes
}
