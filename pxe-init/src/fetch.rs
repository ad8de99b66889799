//! Fetching a file from the appliance: HTTP/1.1 with Range, from where the last connection ended,
//! for as long as it takes, and hashed as it comes.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::say;

/// A file on the appliance.
#[derive(Clone, Debug)]
pub struct Remote {
    pub server: SocketAddrV4,
    pub path: String,
    pub size: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// How a transfer went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    pub(crate) took: Duration,
    /// How often the link was lost on the way.
    pub(crate) resumed: u32,
}

/// Why there is no use in trying again.
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
    #[error("keeping the image: {0}")]
    Keep(io::Error),
}

/// An answer, or a connection without one, for at most so long.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const PIECE: usize = 256 * 1024;
/// An answer's head is a few lines.
const HEAD_MAX: u64 = 8 * 1024;
/// Between lines about progress on the console.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Writes all of `remote` into `into`. What was written is only good when this returns in order:
/// the digest is over the whole.
pub(crate) fn fetch(remote: &Remote, into: &mut impl Write) -> Result<Fetched, FetchError> {
    let started = Instant::now();
    let mut progress = Progress { remote, into, hash: Sha256::new(), at: 0, told: started };
    let mut resumed = 0;
    let mut pause = PAUSES.0;
    while progress.at < remote.size {
        let before = progress.at;
        let lost = match progress.attempt() {
            Ok(()) => continue,
            Err(Ended::Lost(lost)) => lost,
            Err(Ended::ForGood(error)) => return Err(error),
        };
        if progress.at > before {
            pause = PAUSES.0;
        }
        resumed += 1;
        say!("{} sends no more ({lost}); going on from {}", remote.server, Share(progress.at, remote.size));
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
    let found = hex(&progress.hash.finalize());
    if found != remote.sha256 {
        return Err(FetchError::Digest { found, expected: remote.sha256.clone() });
    }
    Ok(Fetched { took: started.elapsed(), resumed })
}

/// SHA-256 of all that `file` has, in hexadecimal.
pub(crate) fn sha256(mut file: impl io::Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&hash.finalize())),
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

struct Progress<'a, W> {
    remote: &'a Remote,
    into: &'a mut W,
    hash: Sha256,
    /// Bytes that were written and hashed.
    at: u64,
    told: Instant,
}

impl<W: Write> Progress<'_, W> {
    /// One connection, for what is missing.
    fn attempt(&mut self) -> Result<(), Ended> {
        let Remote { server, path, size, .. } = self.remote;
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(*server), CONNECT_PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {server}\r\nRange: bytes={}-\r\nConnection: close\r\n\r\n",
            self.at
        );
        stream.write_all(request.as_bytes())?;
        let mut stream = BufReader::with_capacity(PIECE, stream);
        let mut head = String::new();
        let mut limited = (&mut stream).take(HEAD_MAX);
        while !head.ends_with("\r\n\r\n") {
            if limited.read_line(&mut head)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an answer cut short").into());
            }
        }
        match part(&head) {
            Some(Part { from, size: found }) if from == self.at && found == *size => {}
            Some(Part { size: found, .. }) if found != *size => {
                let expected = *size;
                return Err(Ended::ForGood(FetchError::OtherSize { path: path.clone(), found, expected }));
            }
            _ => match status(&head) {
                Some(status @ 400..=499) => {
                    return Err(Ended::ForGood(FetchError::Refused { path: path.clone(), status }));
                }
                _ => {
                    let words = format!("answered {:?}", head.lines().next().unwrap_or_default());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, words).into());
                }
            },
        }
        let mut body = stream.take(size - self.at);
        while self.at < *size {
            let piece = body.fill_buf().map_err(|e| match e.kind() {
                // What a socket's own timeout is called.
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing came for {} s", PATIENCE.as_secs()),
                ),
                _ => e,
            })?;
            if piece.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended").into());
            }
            self.into.write_all(piece).map_err(|e| Ended::ForGood(FetchError::Keep(e)))?;
            self.hash.update(piece);
            let len = piece.len();
            body.consume(len);
            self.at += len as u64;
            if self.told.elapsed() > TELL_EVERY {
                self.told = Instant::now();
                say!("{} of the image are here", Share(self.at, *size));
            }
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

/// Which part of the file an answer brings: from where to its end, and how large the whole is.
#[derive(Debug, PartialEq)]
struct Part {
    from: u64,
    size: u64,
}

/// Reads the head of an answer that has what was asked for (RFC 9110 section 15.3.7): 206 and
/// `Content-Range: bytes FROM-TO/SIZE`, up to the end.
fn part(head: &str) -> Option<Part> {
    if status(head) != Some(206) {
        return None;
    }
    let range = head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-range").then(|| value.trim())
    })?;
    let (range, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, size): (u64, u64, u64) = (from.parse().ok()?, to.parse().ok()?, size.parse().ok()?);
    (from <= to && to.checked_add(1)? == size).then_some(Part { from, size })
}

/// `HTTP/1.1 204 No Content`
pub(crate) fn status(head: &str) -> Option<u16> {
    head.lines().next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
