//! Netascii (RFC 764): lines end with CR LF, and a lone CR is followed by a zero.
//!
//! A file is converted as it is sent, a piece at a time: kept as a whole, the copies of a few hundred requests would
//! take the appliance's memory.

use std::io;

use sha2::{Digest as _, Sha256};

use crate::provision::blob::{Blob, BlobKey, ReadAt};

/// Bytes of the file between two known positions. To find a block, at most this much before it is converted.
const PIECE: usize = 8 << 10;

/// `blob` in netascii. Reads it once, to learn the text's length.
pub(super) fn converted(blob: &Blob) -> io::Result<Blob> {
    let (mut places, mut len, mut digest) = (Vec::new(), 0, Sha256::new());
    let mut text = Vec::with_capacity(2 * PIECE);
    for at in (0..blob.len()).step_by(PIECE) {
        places.push(len);
        piece(blob, at, &mut text)?;
        digest.update(&text);
        len += text.len() as u64;
    }
    let key = BlobKey::Digest(digest.finalize().into());
    Ok(Blob::elsewhere(key, len, Box::new(Converted { blob: blob.clone(), places })))
}

/// A file that is converted wherever it is read.
#[derive(Debug)]
struct Converted {
    blob: Blob,
    /// Where each piece of the file begins in the text.
    places: Vec<u64>,
}

impl ReadAt for Converted {
    fn read_exact_at(&self, offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let mut text = Vec::with_capacity(2 * PIECE);
        let first = self.places.partition_point(|place| *place <= offset).saturating_sub(1);
        let mut skip = (offset - self.places.get(first).copied().unwrap_or_default()) as usize;
        let mut at = first as u64 * PIECE as u64;
        while !buf.is_empty() {
            if at >= self.blob.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece(&self.blob, at, &mut text)?;
            at += PIECE as u64;
            let part = text.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(text.len());
            let count = part.len().min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            now.copy_from_slice(&part[..count]);
            buf = later;
        }
        Ok(())
    }
}

/// The piece from `at` on, in netascii.
fn piece(blob: &Blob, at: u64, text: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; PIECE];
    let read = blob.read_at(at, &mut bytes)?;
    text.clear();
    encode(&bytes[..read], text);
    Ok(())
}

fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            other => out.push(*other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_and_returns() {
        let mut out = Vec::new();
        encode(b"a\nb\r\nc", &mut out);
        assert_eq!(out, b"a\r\nb\r\0\r\nc");
    }

    /// A text whose bytes reveal their position, with many line ends.
    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| if n % 3 == 0 { b"\n\r"[n / 3 % 2] } else { (n / 7) as u8 }).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
        #[test]
        fn a_block_is_the_same_wherever_it_is_read(
            len in prop_oneof![0..40usize, PIECE - 2..PIECE + 3, 0..5 * PIECE],
            reads in prop::collection::vec((any::<prop::sample::Index>(), 0..20_000usize), 1..20),
        ) {
            let bytes = text(len);
            let mut whole = Vec::new();
            encode(&bytes, &mut whole);
            let blob = converted(&Blob::from_bytes(bytes)).unwrap();
            prop_assert_eq!(blob.len(), whole.len() as u64);
            prop_assert_eq!(blob.key(), Blob::from_bytes(whole.clone()).key());
            for (at, wanted) in reads {
                let at = at.index(whole.len() + 1);
                let mut buf = vec![0; wanted];
                let read = blob.read_at(at as u64, &mut buf).unwrap();
                prop_assert_eq!(read, wanted.min(whole.len() - at));
                prop_assert_eq!(&buf[..read], &whole[at..at + read]);
            }
        }
    }
}
