//! The list of data blocks that follows an image's SquashFS, by which a node that has an older image fetches only what
//! changed:
//!
//! ```text
//! SquashFS, up to 4 KiB | each block: length (u32), SHA-256 (its first 16 bytes) | footer
//! footer: "bhblocks", where the first block begins (u32), how many follow it (u32)
//! ```
//!
//! Numbers are little-endian. The list is part of the file, so it is wherever the image is, and covered by the same
//! digest. Half a SHA-256 is enough: it only says where to look. docs/decisions/014-delta.md has the reasons.

use alloc::vec::Vec;
use core::ops::Range;

/// A file's data blocks, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Where the first one begins.
    start: u32,
    blocks: Vec<Block>,
}

/// A block, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Bytes.
    pub len: u32,
    /// The first half of its SHA-256.
    pub digest: [u8; DIGEST],
}

/// Bytes of a block's digest.
pub const DIGEST: usize = 16;
/// Bytes behind the list.
pub const FOOTER: u64 = 16;
/// Bytes of the list for each block.
pub const ENTRY: u64 = 4 + DIGEST as u64;

const MAGIC: &[u8; 8] = b"bhblocks";
/// Blocks of 128 KiB before they are packed: enough for 100 GB, and 16 MiB of memory.
const MAX_BLOCKS: u64 = 800_000;

impl Blocks {
    /// An empty list, whose first block will begin at `start`.
    pub fn from(start: u32) -> Self {
        Self { start, blocks: Vec::new() }
    }

    /// The next block, as it is stored: its length, and its SHA-256.
    pub fn add(&mut self, len: u32, sha256: [u8; 32]) {
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&sha256[..DIGEST]);
        self.blocks.push(Block { len, digest });
    }

    /// The bytes to append to the SquashFS.
    pub fn list(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(self.blocks.len() * ENTRY as usize + FOOTER as usize);
        for Block { len, digest } in &self.blocks {
            list.extend(len.to_le_bytes());
            list.extend(digest);
        }
        list.extend(MAGIC);
        list.extend(self.start.to_le_bytes());
        list.extend((self.blocks.len() as u32).to_le_bytes());
        list
    }

    /// Finds the list of a file with `size` bytes, which `read` reads. An invalid list counts as none.
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
        let found = blocks.map(|blocks| Self { start, blocks });
        Ok(found.filter(|found| found.end() <= list_at))
    }

    /// Where the first one begins.
    pub fn start(&self) -> u64 {
        self.start.into()
    }

    /// Where the last one ends.
    pub fn end(&self) -> u64 {
        self.start() + self.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>()
    }

    /// In order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
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
