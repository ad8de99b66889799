//! Fetching a file from the appliance: HTTP/1.1 with Range, resumed where the last connection ended, retried without
//! limit, and hashed as it arrives. Blocks that an older file has are copied from there.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use pxe_contract::backoff::Backoff;
use pxe_contract::blocks::Blocks;
use pxe_contract::hex;
use sha2::{Digest as _, Sha256};

use crate::appliance::{Appliance, Connection, PATIENCE};
use crate::delta::{self, Piece, Place};
use crate::head::{Head, Part};
use crate::say;

/// A file on the appliance.
#[derive(Clone, Debug)]
pub struct Remote {
    pub server: Appliance,
    pub path: String,
    pub size: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// The result of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    /// Bytes that crossed the link.
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    /// How often the link was lost on the way.
    pub(crate) resumed: u32,
}

/// Errors after which a retry is useless.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(
        "the appliance refuses {path} (HTTP status {status}): the image was removed or replaced since this machine \
         was told to boot it; boot again"
    )]
    Refused { path: String, status: u16 },
    #[error("{path} has {found} bytes on the appliance, and {expected} were announced")]
    OtherSize { path: String, found: u64, expected: u64 },
    #[error(
        "the image is damaged: SHA-256 {found} of what arrived, {expected} announced. Remove and add it again on the \
         appliance (`bridgehead image rm`, `gc`, `add`); if that does not help, look at this machine's memory"
    )]
    Digest { found: String, expected: String },
    #[error("reading an older image: {0}")]
    Older(io::Error),
    #[error("keeping the image: {0}")]
    Keep(io::Error),
}

const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
const PIECE: usize = 256 * 1024;
/// The interval of progress lines on the console.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Writes all of `remote` into `into`, without fetching blocks that `older` files have. What was written
/// is valid only if this succeeds, because the digest is over the whole.
pub(crate) fn fetch(remote: &Remote, older: &[File], into: &mut impl Write) -> Result<Fetched, FetchError> {
    let started = Instant::now();
    let mut source = Source { remote, stream: None, resumed: 0, bytes: 0 };
    let mut made = Made { into, hash: Sha256::new(), at: 0, size: remote.size, told: started };
    for Piece { len, from } in source.plan(older)? {
        match from {
            Some(Place { file, at }) => copy(&older[file], at, len, &mut made)?,
            None => source.range(made.at..made.at + len, |bytes| made.put(bytes))?,
        }
    }
    let found = hex::encode(&made.hash.finalize());
    if found != remote.sha256 {
        return Err(FetchError::Digest { found, expected: remote.sha256.clone() });
    }
    Ok(Fetched { bytes: source.bytes, took: started.elapsed(), resumed: source.resumed })
}

/// Passes on the bytes of some parts of `remote`, with their positions. Returns how often the link was lost.
pub(crate) fn parts(
    remote: &Remote,
    parts: impl IntoIterator<Item = Range<u64>>,
    mut take: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<u32, FetchError> {
    let mut source = Source { remote, stream: None, resumed: 0, bytes: 0 };
    for part in parts {
        let mut at = part.start;
        source.range(part, |bytes| {
            take(bytes, at).map_err(FetchError::Keep)?;
            at += bytes.len() as u64;
            Ok(())
        })?;
    }
    Ok(source.resumed)
}

fn copy(file: &File, mut at: u64, mut len: u64, made: &mut Made<'_, impl Write>) -> Result<(), FetchError> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    while len > 0 {
        let piece = &mut buffer[..usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
        file.read_exact_at(piece, at).map_err(FetchError::Older)?;
        made.put(piece)?;
        at += piece.len() as u64;
        len -= piece.len() as u64;
    }
    Ok(())
}

/// SHA-256 of the whole `file`, in hexadecimal.
pub(crate) fn sha256(mut file: impl io::Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex::encode(&hash.finalize())),
            len => hash.update(&piece[..len]),
        }
    }
}

/// How one connection ended.
enum Ended {
    /// The next one may do better.
    Lost(io::Error),
    ForGood(FetchError),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// The file that is written from the received bytes.
struct Made<'a, W> {
    into: &'a mut W,
    hash: Sha256,
    /// Bytes that were written and hashed.
    at: u64,
    size: u64,
    told: Instant,
}

impl<W: Write> Made<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.into.write_all(bytes).map_err(FetchError::Keep)?;
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        if self.told.elapsed() > TELL_EVERY {
            self.told = Instant::now();
            say!("{} of the image are here", Share(self.at, self.size));
        }
        Ok(())
    }
}

/// Fetches parts of a file on the appliance, over one connection for as long as it lasts.
struct Source<'a> {
    remote: &'a Remote,
    stream: Option<BufReader<Connection>>,
    /// How often it was lost.
    resumed: u32,
    /// Bytes received.
    bytes: u64,
}

impl Source<'_> {
    /// Which parts of the file are to be fetched: all of it, if no older one helps.
    fn plan(&mut self, older: &[File]) -> Result<Vec<Piece>, FetchError> {
        let size = self.remote.size;
        let whole = vec![Piece { len: size, from: None }];
        if older.is_empty() {
            return Ok(whole);
        }
        let list = Blocks::read(size, |range| {
            let mut part = Vec::new();
            self.range(range, |bytes| {
                part.extend(bytes);
                Ok(())
            })?;
            Ok(part)
        })?;
        let older = older.iter().map(|file| {
            let read = |range: Range<u64>| {
                let mut part = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut part, range.start).map(|()| part)
            };
            let list = file.metadata().and_then(|meta| Blocks::read(meta.len(), read));
            list.ok().flatten().unwrap_or_default()
        });
        Ok(list.map_or(whole, |list| delta::plan(&list, size, older)))
    }

    /// Passes on all bytes of `range`, in order.
    fn range(
        &mut self,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]) -> Result<(), FetchError>,
    ) -> Result<(), FetchError> {
        let mut at = range.start;
        let mut pauses = PAUSES;
        while at < range.end {
            let before = at;
            let idled = self.stream.is_some();
            let lost = match self.attempt(&mut at, range.end, &mut take) {
                Ok(()) => continue,
                Err(Ended::Lost(lost)) => lost,
                Err(Ended::ForGood(error)) => return Err(error),
            };
            self.stream = None;
            if at > before {
                pauses.reset();
            } else if idled {
                // The appliance closes a connection that is not used for some seconds.
                continue;
            }
            self.resumed += 1;
            let Remote { server, size, .. } = self.remote;
            say!("{server} sends no more ({lost}); going on from {}", Share(at, *size));
            std::thread::sleep(pauses.pause());
        }
        Ok(())
    }

    /// One request, for what is missing.
    fn attempt(
        &mut self,
        at: &mut u64,
        end: u64,
        take: &mut impl FnMut(&[u8]) -> Result<(), FetchError>,
    ) -> Result<(), Ended> {
        let Remote { server, path, size, .. } = self.remote;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(BufReader::with_capacity(PIECE, server.connect()?)),
        };
        let last = end - 1;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nRange: bytes={at}-{last}\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes())?;
        stream.get_mut().flush()?;
        let head = Head::read(stream)?;
        match head.part {
            Some(part) if part == (Part { range: *at..end, size: *size }) => {}
            Some(Part { size: found, .. }) if found != *size => {
                let expected = *size;
                return Err(Ended::ForGood(FetchError::OtherSize { path: path.clone(), found, expected }));
            }
            _ => match head.status {
                status @ 400..=499 => {
                    return Err(Ended::ForGood(FetchError::Refused { path: path.clone(), status }));
                }
                status => {
                    let words = format!("answered with status {status}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, words).into());
                }
            },
        }
        let mut body = stream.take(end - *at);
        while *at < end {
            let piece = body.fill_buf().map_err(|e| match e.kind() {
                // The error of a socket's own timeout.
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing came for {} s", PATIENCE.as_secs()),
                ),
                _ => e,
            })?;
            if piece.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended").into());
            }
            take(piece).map_err(Ended::ForGood)?;
            let len = piece.len();
            body.consume(len);
            *at += len as u64;
            self.bytes += len as u64;
        }
        Ok(())
    }
}

/// `120 of 600 MiB`
struct Share(u64, u64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} MiB", self.0 >> 20, self.1.div_ceil(1 << 20))
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
pub(crate) mod tests;
