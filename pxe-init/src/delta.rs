//! Which blocks of an image a node need not fetch, because an older image on its disk has them: each image ends in a
//! list of its data blocks ([`pxe_contract::blocks`]).
//!
//! No list is trusted: an assembled image without the announced digest is discarded.

use std::collections::HashMap;

use pxe_contract::blocks::{Block, Blocks};

/// Consecutive bytes of the file to be assembled.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub len: u64,
    /// Where an older file has them; `None` if they are to be fetched.
    pub from: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the older files.
    pub file: usize,
    pub at: u64,
}

/// How a file of `size` bytes is assembled from start to end: blocks that one of the `older` files has
/// are copied from the first such file.
pub fn plan(wanted: &Blocks, size: u64, older: impl IntoIterator<Item = Blocks>) -> Vec<Piece> {
    let mut places: HashMap<&Block, Option<Place>> =
        wanted.blocks().iter().map(|block| (block, None)).collect();
    for (file, blocks) in older.into_iter().enumerate() {
        let mut at = blocks.start();
        for block in blocks.blocks() {
            if let Some(place @ None) = places.get_mut(block) {
                *place = Some(Place { file, at });
            }
            at += u64::from(block.len);
        }
    }
    let mut pieces = Vec::new();
    put(&mut pieces, wanted.start(), None);
    for block in wanted.blocks() {
        put(&mut pieces, u64::from(block.len), places.get(block).copied().flatten());
    }
    // Inodes, directories, tables, and the list itself.
    put(&mut pieces, size.saturating_sub(wanted.end()), None);
    pieces
}

/// Adds a piece, or extends the last one.
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
