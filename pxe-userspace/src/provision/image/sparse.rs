//! Sparse files in tar archives, in all four formats (GNU tar manual, "Sparse Formats"): GNU's own type `S`, and PAX
//! 0.0, 0.1 and 1.0. An archive stores the segments between the holes one after another.

use std::io::{self, Read};

use tar::GnuSparseHeader;

use super::tar::TarError;

/// The same limit as in Go's reader, and so in Docker's.
const MAX_SEGMENTS: usize = 1 << 20;

/// A list in the contents is padded to blocks of this many bytes.
const BLOCK: usize = 512;

/// The offsets of the stored segments. Everything else is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Length of the whole file.
    pub(super) size: u64,
    /// Offsets and lengths, in order.
    pub(super) segments: Vec<(u64, u64)>,
}

impl SparseMap {
    /// The map, if it is valid for this many stored bytes.
    pub(super) fn fitting(self, stored: u64) -> Option<Self> {
        let mut end = 0;
        let mut sum: u64 = 0;
        for (offset, len) in &self.segments {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*len).filter(|end| *end <= self.size)?;
            sum = sum.checked_add(*len)?;
        }
        (sum <= stored).then_some(self)
    }

    /// The file's contents, including the holes.
    pub(super) fn expand<R: Read>(&self, stored: R) -> impl Read + use<R> {
        Expanded { map: self.clone(), stored, at: 0, next: 0 }
    }
}

struct Expanded<R> {
    map: SparseMap,
    stored: R,
    at: u64,
    /// The first segment that does not end before `at`.
    next: usize,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = |left: u64| buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        while let Some((offset, len)) = self.map.segments.get(self.next) {
            let end = offset + len;
            if self.at >= end {
                self.next += 1;
            } else if self.at < *offset {
                let want = room(offset - self.at);
                buf[..want].fill(0);
                self.at += want as u64;
                return Ok(want);
            } else {
                let want = room(end - self.at);
                if want == 0 {
                    return Ok(0);
                }
                let n = self.stored.read(&mut buf[..want])?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.at += n as u64;
                return Ok(n);
            }
        }
        let want = room(self.map.size.saturating_sub(self.at));
        buf[..want].fill(0);
        self.at += want as u64;
        Ok(want)
    }
}

/// The PAX records about an entry's holes.
#[derive(Default)]
pub(super) struct Pax {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// The list is in the contents: version 1.0.
    inside: bool,
    segments: Vec<(u64, u64)>,
    /// The offset whose length comes next: version 0.0.
    offset: Option<u64>,
}

/// Why there is no list.
pub(super) enum MapError {
    Wrong,
    Io(io::Error),
}

impl MapError {
    /// For the entry at this byte.
    pub(super) fn at(self, at: u64) -> TarError {
        match self {
            Self::Wrong => TarError::Sparse { at },
            Self::Io(error) => error.into(),
        }
    }
}

impl Pax {
    /// Processes the record `GNU.sparse.KEY`; `None` if it is invalid.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.inside = number(value)? == 1,
            b"name" => self.name = Some(value.to_owned()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => {
                let offset = self.offset.take()?;
                self.push(offset, number(value)?)?;
            }
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(number).collect();
                for pair in numbers?.chunks(2) {
                    let [offset, len] = pair else { return None };
                    self.push(*offset, *len)?;
                }
            }
            // minor and numblocks, which are not needed.
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, offset: u64, len: u64) -> Option<()> {
        self.segments.push((offset, len));
        (self.segments.len() <= MAX_SEGMENTS).then_some(())
    }

    /// The file's real name; the header has a substitute for readers that don't know sparse files.
    pub(super) fn name(&self) -> Option<Vec<u8>> {
        self.name.clone()
    }

    /// The map, if there is one. `inside` reads its list from the contents.
    pub(super) fn map(
        self,
        inside: impl FnOnce() -> Result<Vec<(u64, u64)>, MapError>,
    ) -> Result<Option<SparseMap>, MapError> {
        let Some(size) = self.size else { return Ok(None) };
        let segments = if self.inside { inside()? } else { self.segments };
        Ok(Some(SparseMap { size, segments }))
    }
}

/// Reads the list at the beginning of the contents: decimal numbers, one a line; their count, then offsets and lengths.
pub(super) fn text(contents: &mut impl Read) -> Result<Vec<(u64, u64)>, MapError> {
    let mut reader = Numbers { contents, block: [0; BLOCK], at: BLOCK };
    let count = usize::try_from(reader.next()?).ok().filter(|count| *count <= MAX_SEGMENTS);
    let count = count.ok_or(MapError::Wrong)?;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push((reader.next()?, reader.next()?));
    }
    Ok(segments)
}

struct Numbers<'a, R> {
    contents: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> Result<u64, MapError> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                self.contents.read_exact(&mut self.block).map_err(MapError::Io)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return value.ok_or(MapError::Wrong),
                b'0'..=b'9' => {
                    let more = value
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(byte - b'0')));
                    value = Some(more.ok_or(MapError::Wrong)?);
                }
                _ => return Err(MapError::Wrong),
            }
        }
    }
}

/// Adds the segments of one header. The first blank one ends the list.
pub(super) fn gnu(segments: &mut Vec<(u64, u64)>, headers: &[GnuSparseHeader]) -> Option<()> {
    for header in headers.iter().take_while(|header| !header.is_empty()) {
        segments.push((header.offset().ok()?, header.length().ok()?));
    }
    (segments.len() <= MAX_SEGMENTS).then_some(())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
