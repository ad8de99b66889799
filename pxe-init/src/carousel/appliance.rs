//! What is said to the appliance, by HTTP: is there a round, this is what I lack; and the parts of an
//! image that a round did not bring.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fetch::{self, FetchError, Remote};
use crate::say;

const PATIENCE: Duration = Duration::from_secs(3);
/// For a part of the image, as for all of it.
const PART_PATIENCE: Duration = Duration::from_secs(5);
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// An answer is a few lines.
const ANSWER_MAX: u64 = 8 * 1024;

/// How a round goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// After the highest sequence number that came.
    pub(super) sequence: u32,
    /// Packets that came.
    pub(super) came: u64,
    pub(super) lacks: Vec<Lack>,
    /// Nothing more is wanted of the round.
    pub(super) done: bool,
}

/// Blocks, both included, of which so many symbols are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Lack {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) symbols: u32,
}

/// Where and how a round is to be received.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Offer {
    pub(super) group: SocketAddrV4,
    pub(super) symbol_size: u16,
    pub(super) block_symbols: u16,
    /// Milliseconds between reports.
    pub(super) report_every: u64,
    /// Bytes a second that HTTP would bring.
    pub(super) http_rate: u64,
}

/// The appliance, asked about one image.
#[derive(Clone)]
pub(super) struct Appliance {
    server: SocketAddrV4,
    path: String,
    /// It knows no rounds, or none of this image.
    never: bool,
    /// The address that it is reached from: the boot interface's.
    own: Option<SocketAddr>,
}

impl Appliance {
    pub(super) fn new(server: SocketAddrV4, sha256: &str) -> Self {
        Self { server, path: format!("/carousel/{sha256}"), never: false, own: None }
    }

    /// The round to listen to, if there is one. No answer means that there is none.
    pub(super) fn ask(&mut self, report: &Report) -> Option<Offer> {
        if self.never {
            return None;
        }
        let (status, body) = self.exchange(report).ok()?;
        match status {
            200 => serde_json::from_slice(&body).ok(),
            400..=499 => {
                self.never = true;
                None
            }
            _ => None,
        }
    }

    /// Nothing more is wanted.
    pub(super) fn leave(&mut self) {
        let _ = self.ask(&Report { done: true, ..Report::default() });
    }

    /// The address of the boot interface, once the appliance was asked.
    pub(super) fn own(&self) -> Option<SocketAddr> {
        self.own
    }

    fn exchange(&mut self, report: &Report) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = connect(self.server, PATIENCE)?;
        self.own = stream.local_addr().ok();
        let body = serde_json::to_string(report)?;
        let (path, server, len) = (&self.path, self.server, body.len());
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut reader = BufReader::new(stream.take(ANSWER_MAX));
        let head = head(&mut reader)?;
        let mut body = Vec::new();
        reader.read_to_end(&mut body)?;
        let status = fetch::status(&head).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body))
    }
}

/// Hands on all bytes of a part of the image, with their places, for as long as it takes. How often the
/// link was lost.
pub(super) fn range(
    remote: &Remote,
    range: Range<u64>,
    mut take: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<u32, FetchError> {
    let mut at = range.start;
    let mut pause = PAUSES.0;
    let mut resumed = 0;
    while at < range.end {
        let before = at;
        match attempt(remote, &mut at, range.end, &mut take) {
            Ok(()) => {}
            Err(Ended::ForGood(error)) => return Err(error),
            Err(Ended::Lost(error)) => {
                if at > before {
                    pause = PAUSES.0;
                }
                resumed += 1;
                say!("{} sends no more ({error}); going on", remote.server);
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
    Ok(resumed)
}

/// How one request ended.
enum Ended {
    Lost(io::Error),
    ForGood(FetchError),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

fn attempt(
    remote: &Remote,
    at: &mut u64,
    end: u64,
    take: &mut impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<(), Ended> {
    let Remote { server, path, .. } = remote;
    let mut stream = connect(*server, PART_PATIENCE)?;
    let last = end - 1;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nRange: bytes={at}-{last}\r\nConnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let head = head(&mut reader)?;
    let whole = remote.size;
    let expected = format!("content-range: bytes {at}-{last}/{whole}");
    match fetch::status(&head) {
        Some(206) if head.lines().any(|line| line.eq_ignore_ascii_case(&expected)) => {}
        Some(status @ 400..=499) => {
            return Err(Ended::ForGood(FetchError::Refused { path: path.clone(), status }));
        }
        _ => {
            let words = format!("answered {:?}", head.lines().next().unwrap_or_default());
            return Err(io::Error::new(io::ErrorKind::InvalidData, words).into());
        }
    }
    let mut body = reader.take(end - *at);
    while *at < end {
        let piece = body.fill_buf()?;
        if piece.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        take(piece, *at).map_err(|error| Ended::ForGood(FetchError::Keep(error)))?;
        let len = piece.len();
        body.consume(len);
        *at += len as u64;
    }
    Ok(())
}

fn connect(server: SocketAddrV4, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(server), PATIENCE)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn head(reader: &mut impl io::BufRead) -> io::Result<String> {
    let mut head = String::new();
    let mut limited = reader.take(ANSWER_MAX);
    while !head.ends_with("\r\n\r\n") {
        if limited.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_those_that_the_appliance_knows() {
        let example: serde_json::Value = serde_json::from_str(include_str!("example.json")).unwrap();
        let lacks =
            vec![Lack { first: 3, last: 3, symbols: 12 }, Lack { first: 5, last: 140, symbols: 1024 }];
        let report = Report { sequence: 7000, came: 6900, lacks, done: false };
        assert_eq!(serde_json::to_value(report).unwrap(), example["report"]);
        let offer: Offer = serde_json::from_value(example["offer"].clone()).unwrap();
        let group = "239.255.77.1:7477".parse().unwrap();
        assert_eq!((offer.group, offer.symbol_size, offer.block_symbols), (group, 1408, 1024));
        assert_eq!((offer.report_every, offer.http_rate), (640, 195_000));
    }
}
