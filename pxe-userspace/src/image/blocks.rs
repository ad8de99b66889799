//! The list of data blocks that follows an image's SquashFS, by which a node that has an older image
//! fetches only what changed (pxe-init's `delta` reads it):
//!
//! ```text
//! SquashFS, up to 4 KiB | each block: length (u32), SHA-256 (its first 16 bytes) | footer
//! footer: "bhblocks", where the first block begins (u32), how many follow it (u32)
//! ```
//!
//! It is part of the file, so it is wherever the image is, and under the same digest. Half a SHA-256
//! will do: it only says where to look. docs/decisions/014-delta.md has the reasons.

use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"bhblocks";
const DIGEST: usize = 16;

pub(super) struct Blocks {
    /// Where the first one begins; the others follow.
    start: u32,
    count: u32,
    list: Vec<u8>,
}

impl Blocks {
    pub(super) fn from(start: u32) -> Self {
        Self { start, count: 0, list: Vec::new() }
    }

    /// The next block, as it is stored.
    pub(super) fn add(&mut self, stored: &[u8]) {
        self.count += 1;
        self.list.extend((stored.len() as u32).to_le_bytes());
        self.list.extend(&Sha256::digest(stored)[..DIGEST]);
    }

    /// What is put behind the SquashFS.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.list.extend(MAGIC);
        self.list.extend(self.start.to_le_bytes());
        self.list.extend(self.count.to_le_bytes());
        self.list
    }
}
