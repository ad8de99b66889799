use std::convert::Infallible;
use std::ops::Range;

use proptest::prelude::*;
use pxe_contract::blocks::{DIGEST, ENTRY, FOOTER};

use super::*;

const MAGIC: &[u8] = b"bhblocks";

/// A file of these blocks, as the daemon would write it, after 7 bytes and before 5.
pub(crate) fn file(blocks: &[&[u8]]) -> Vec<u8> {
    let mut file = b"head...".to_vec();
    file.extend(blocks.concat());
    file.extend(b"table");
    for block in blocks {
        file.extend((block.len() as u32).to_le_bytes());
        file.extend(digest(block));
    }
    file.extend(MAGIC);
    file.extend(7u32.to_le_bytes());
    file.extend((blocks.len() as u32).to_le_bytes());
    file
}

fn digest(block: &[u8]) -> [u8; DIGEST] {
    use sha2::Digest as _;

    *sha2::Sha256::digest(block).first_chunk().unwrap()
}

fn blocks(file: &[u8]) -> Option<Blocks> {
    let part =
        |range: Range<u64>| Ok::<_, Infallible>(file[range.start as usize..range.end as usize].to_vec());
    let Ok(found) = Blocks::read(file.len() as u64, part);
    found
}

/// Carries out a plan as a node does: returns the file, and how much of it was fetched.
fn put_together(new: &[u8], older: &[Vec<u8>]) -> (Vec<u8>, u64) {
    let lists = older.iter().map(|old| blocks(old).unwrap_or_default());
    let mut made = Vec::new();
    let mut fetched = 0;
    for Piece { len, from } in plan(&blocks(new).unwrap(), new.len() as u64, lists) {
        let (file, at) = from.map_or((new, made.len()), |Place { file, at }| (&older[file][..], at as usize));
        fetched += if from.is_none() { len } else { 0 };
        made.extend(&file[at..at + len as usize]);
    }
    (made, fetched)
}

#[test]
fn what_lies_together_in_an_older_file_is_one_piece() {
    let old = file(&[b"one", b"two", b"three", b"four"]);
    let new = file(&[b"zero", b"two", b"three", b"5", b"one", b"6"]);
    let pieces = plan(&blocks(&new).unwrap(), new.len() as u64, blocks(&old));
    let fetch = |len| Piece { len, from: None };
    let copy = |len, at| Piece { len, from: Some(Place { file: 0, at }) };
    let tail = 5 + 6 * ENTRY + FOOTER;
    assert_eq!(pieces, [fetch(7 + 4), copy(8, 10), fetch(1), copy(3, 7), fetch(1 + tail)]);
}

#[test]
fn the_first_file_that_has_a_block_gives_it() {
    let older = [file(&[b"a", b"b"]), b"no list".to_vec(), file(&[b"b", b"c"])];
    let new = file(&[b"b", b"c", b"d"]);
    let pieces = plan(
        &blocks(&new).unwrap(),
        new.len() as u64,
        older.iter().map(|old| blocks(old).unwrap_or_default()),
    );
    assert_eq!(pieces[1], Piece { len: 1, from: Some(Place { file: 0, at: 8 }) });
    assert_eq!(pieces[2], Piece { len: 1, from: Some(Place { file: 2, at: 8 }) });
    assert!(put_together(&new, &older).0 == new);
}

#[test]
fn a_list_that_makes_no_sense_is_none() {
    let good = file(&[b"one", b"two"]);
    assert!(blocks(&good).is_some());
    assert!(blocks(b"").is_none() && blocks(&good[1..good.len() - 1]).is_none());
    let len = good.len();
    let with = |at: usize, byte| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    // More blocks than the file holds; more than any file can have; longer blocks; a start behind them.
    for bad in [with(len - 4, 9), with(len - 1, 0xff), with(len - 56 + 1, 1), with(len - 8, 0xff)] {
        assert!(blocks(&bad).is_none());
    }
}

proptest! {
    /// Blocks of few contents, so that files share some.
    #[test]
    fn what_is_put_together_is_the_file(
        new in prop::collection::vec(0u8..20, 0..30),
        older in prop::collection::vec(prop::collection::vec(0u8..20, 0..30), 0..3),
    ) {
        let made_of = |contents: &[u8]| {
            let blocks: Vec<Vec<u8>> = contents.iter().map(|b| vec![*b; usize::from(*b) + 1]).collect();
            file(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        let known: Vec<u8> = older.concat();
        let older: Vec<_> = older.iter().map(|old| made_of(old)).collect();
        let whole = made_of(&new);
        let (made, fetched) = put_together(&whole, &older);
        prop_assert!(made == whole);
        let unknown: u64 = new.iter().filter(|b| !known.contains(b)).map(|b| u64::from(*b) + 1).sum();
        prop_assert_eq!(fetched, unknown + 7 + 5 + new.len() as u64 * ENTRY + FOOTER);
    }

    #[test]
    fn nothing_in_a_list_does_harm(tail in prop::collection::vec(any::<u8>(), 0..64), start: u32, count in 0u32..4) {
        let file = [&tail[..], MAGIC, &start.to_le_bytes(), &count.to_le_bytes()].concat();
        if let Some(blocks) = blocks(&file) {
            let pieces = plan(&blocks, file.len() as u64, []);
            prop_assert_eq!(pieces.iter().map(|piece| piece.len).sum::<u64>(), file.len() as u64);
        }
    }
}
