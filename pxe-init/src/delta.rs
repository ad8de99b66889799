//! What a node need not fetch of an image because its disk has an older one: each ends in a list of
//! its data blocks (the daemon's `image/blocks.rs` says how it looks).
//!
//! No list is trusted. What is put together has the digest that was announced, or is thrown away.

use std::collections::HashMap;
use std::ops::Range;

/// A file's data blocks, one after another.
#[derive(Debug, Default)]
pub struct Blocks {
    /// Where the first one begins.
    start: u64,
    blocks: Vec<Block>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Block {
    len: u32,
    /// The first half of its SHA-256.
    digest: [u8; DIGEST],
}

/// Consecutive bytes of a file that is put together.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub len: u64,
    /// Where an older file has them; none has where they are to be fetched.
    pub from: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the older files.
    pub file: usize,
    pub at: u64,
}

const MAGIC: &[u8] = b"bhblocks";
const FOOTER: u64 = 16;
const DIGEST: usize = 16;
const ENTRY: u64 = 4 + DIGEST as u64;
/// Blocks of 128 KiB before they are packed: enough for 100 GB, and 16 MiB of memory.
const MAX_BLOCKS: u64 = 800_000;

impl Blocks {
    /// Finds the list of a file with `size` bytes, of which `read` gives some. Without a list that makes
    /// sense, there is none.
    pub fn read<E>(
        size: u64,
        mut read: impl FnMut(Range<u64>) -> Result<Vec<u8>, E>,
    ) -> Result<Option<Self>, E> {
        let Some(footer_at) = size.checked_sub(FOOTER) else { return Ok(None) };
        let footer = read(footer_at..size)?;
        let Some((start, count)) = footer.strip_prefix(MAGIC).and_then(numbers) else { return Ok(None) };
        let Some(list_at) = footer_at.checked_sub(u64::from(count) * ENTRY) else { return Ok(None) };
        if u64::from(count) > MAX_BLOCKS {
            return Ok(None);
        }
        let list = read(list_at..footer_at)?;
        let blocks: Option<Vec<Block>> = list.chunks(ENTRY as usize).map(Block::parse).collect();
        let found = blocks.map(|blocks| Self { start: u64::from(start), blocks });
        Ok(found.filter(|found| found.end() <= list_at))
    }

    fn end(&self) -> u64 {
        self.start + self.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>()
    }
}

impl Block {
    fn parse(entry: &[u8]) -> Option<Self> {
        let (len, digest) = entry.split_first_chunk()?;
        Some(Self { len: u32::from_le_bytes(*len), digest: digest.try_into().ok()? })
    }
}

/// The two numbers of a footer.
fn numbers(bytes: &[u8]) -> Option<(u32, u32)> {
    let (start, count) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*start), u32::from_le_bytes(count.try_into().ok()?)))
}

/// How a file of `size` bytes is put together from start to end: what one of the `older` has, the
/// first of them first, is copied.
pub fn plan(wanted: &Blocks, size: u64, older: impl IntoIterator<Item = Blocks>) -> Vec<Piece> {
    let mut places: HashMap<&Block, Option<Place>> =
        wanted.blocks.iter().map(|block| (block, None)).collect();
    for (file, blocks) in older.into_iter().enumerate() {
        let mut at = blocks.start;
        for block in &blocks.blocks {
            if let Some(place @ None) = places.get_mut(block) {
                *place = Some(Place { file, at });
            }
            at += u64::from(block.len);
        }
    }
    let mut pieces = Vec::new();
    put(&mut pieces, wanted.start, None);
    for block in &wanted.blocks {
        put(&mut pieces, u64::from(block.len), places.get(block).copied().flatten());
    }
    // Inodes, directories, tables, and the list itself.
    put(&mut pieces, size.saturating_sub(wanted.end()), None);
    pieces
}

/// Adds a piece, to the last one where it goes on.
fn put(pieces: &mut Vec<Piece>, len: u64, from: Option<Place>) {
    match pieces.last_mut() {
        Some(last) if last.from.map(|Place { file, at }| Place { file, at: at + last.len }) == from => {
            last.len += len;
        }
        _ => pieces.push(Piece { len, from }),
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
pub(crate) mod tests;
