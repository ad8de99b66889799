//! The head of an HTTP answer: RFC 9112 section 4, as httparse reads it.

use std::io::{self, BufRead, Read as _};
use std::ops::Range;

/// A head is a few lines.
const MAX: u64 = 16 * 1024;
const MOST_FIELDS: usize = 32;

/// The relevant parts of a head.
#[derive(Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// The body's length, if given.
    pub(crate) length: Option<u64>,
    /// Which part of a file the body is, with status 206.
    pub(crate) part: Option<Part>,
}

/// The part of a file in an answer, and the size of the whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    pub(crate) size: u64,
}

impl Head {
    /// Reads up to the body. An invalid head is [`io::ErrorKind::InvalidData`].
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut limited = reader.by_ref().take(MAX);
        let mut bytes = Vec::new();
        loop {
            let start = bytes.len();
            if limited.read_until(b'\n', &mut bytes)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an answer cut short"));
            }
            if matches!(&bytes[start..], b"\r\n" | b"\n") {
                break;
            }
        }
        Self::parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer in HTTP"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        if !answer.parse(bytes).ok()?.is_complete() {
            return None;
        }
        let field = |name: &str| {
            let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            Some(str::from_utf8(field.value).ok()?.trim())
        };
        let status = answer.code?;
        let length = match field("content-length") {
            Some(length) => Some(number(length)?),
            None => None,
        };
        Some(Self { status, length, part: field("content-range").filter(|_| status == 206).and_then(part) })
    }
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110 section 14.4).
fn part(text: &str) -> Option<Part> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (number(first)?, number(last)?, number(size)?);
    let range = first..last.checked_add(1)?;
    (first <= last && last < size).then_some(Part { range, size })
}

/// Digits only: `parse` takes `+1`, too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut text: &str) -> io::Result<Head> {
        // Head::read advances the slice past what it reads.
        let mut bytes = text.as_bytes();
        let head = Head::read(&mut bytes)?;
        text = str::from_utf8(bytes).unwrap();
        assert_eq!(text, "body");
        Ok(head)
    }

    fn head(status: u16) -> Head {
        Head { status, length: None, part: None }
    }

    #[test]
    fn heads_are_read_strictly() {
        let range = |range: &str| {
            let head = format!("HTTP/1.1 206 Partial Content\r\nX: y\r\nContent-Range: {range}\r\n\r\nbody");
            read(&head).unwrap().part
        };
        assert_eq!(range("bytes 5-9/10"), Some(Part { range: 5..10, size: 10 }));
        assert_eq!(range("bytes 5-8/10"), Some(Part { range: 5..9, size: 10 }));
        for bad in [
            "bytes 9-5/6",
            "bytes */10",
            "bytes 5-10/10",
            "bytes 0-18446744073709551615/0",
            "bytes -1-9/10",
            "bytes +5-9/10",
            "5-9/10",
            "",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
        let whole = read("HTTP/1.1 200 OK\r\nContent-Range: bytes 5-9/10\r\n\r\nbody").unwrap();
        assert_eq!(whole, head(200));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\nbody").unwrap(), head(204));
        assert_eq!(read("HTTP/1.0 200\r\n\r\nbody").unwrap(), head(200));
        let with_length = read("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody").unwrap();
        assert_eq!(with_length, Head { length: Some(4), ..head(200) });
    }

    #[test]
    fn what_is_no_head_is_told_from_one_that_is_cut_short() {
        let kind = |text: &str| read(text).unwrap_err().kind();
        for cut in ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nX: y\r\n"] {
            assert_eq!(kind(cut), io::ErrorKind::UnexpectedEof, "{cut:?}");
        }
        assert_eq!(kind(&"x".repeat(1 << 20)), io::ErrorKind::UnexpectedEof, "no more is read");
        for bad in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nbody", "\r\n"] {
            assert_eq!(kind(bad), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }
}
