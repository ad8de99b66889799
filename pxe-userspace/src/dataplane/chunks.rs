//! A blob as the block map holds it: chunks of its bytes, pages of its blocks' sums. Pure.

use std::io;

use pxe_common::map::{CHUNK_STRIDE, Chunk, SUMS_PER_PAGE, SumPage};
use pxe_common::tftp::Session;
use pxe_common::wire::Checksum;

use crate::provision::blob::Blob;

/// The number of chunks of a blob of `len` bytes. If the bytes fill the last chunk there is one more,
/// in which the empty last block begins.
pub(super) fn chunk_count(len: u64) -> u64 {
    len / CHUNK_STRIDE as u64 + 1
}

/// The kernel memory that the chunks of such a blob take.
pub(super) fn chunks_memory(len: u64) -> u64 {
    chunk_count(len).saturating_mul(size_of::<Chunk>() as u64)
}

/// Fills chunk `index`, with zeros beyond the blob's end.
pub(super) fn fill_chunk(blob: &Blob, index: u64, chunk: &mut Chunk) -> io::Result<()> {
    let read = blob.read_at(index * CHUNK_STRIDE as u64, &mut chunk.0)?;
    chunk.0[read..].fill(0);
    Ok(())
}

/// Pages of sums for a transfer.
pub(super) fn page_count(transfer: &Session) -> u32 {
    transfer.blocks().div_ceil(SUMS_PER_PAGE as u32)
}

/// The kernel memory that the sums of a transfer's blocks take.
pub(super) fn sums_memory(transfer: &Session) -> u64 {
    u64::from(page_count(transfer)) * size_of::<SumPage>() as u64
}

/// Fills page `index` with the sums of the transfer's blocks. `buf` is working space.
pub(super) fn fill_page(
    blob: &Blob,
    transfer: &Session,
    index: u32,
    page: &mut SumPage,
    buf: &mut Vec<u8>,
) -> io::Result<()> {
    let blksize = usize::from(transfer.blksize());
    buf.resize(blksize * SUMS_PER_PAGE, 0);
    let first = index * SUMS_PER_PAGE as u32 + 1;
    let read = blob.read_at(transfer.offset_of(first), buf)?;
    page.0.fill(0);
    for (sum, block) in page.0.iter_mut().zip(buf[..read].chunks(blksize)) {
        *sum = Checksum::ZERO.bytes(block).folded();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;
    use pxe_common::map::{MAX_BLKSIZE, PIECE_LEN};

    use super::*;

    fn blob(len: usize) -> (Blob, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i ^ (i >> 8)) as u8).collect();
        (Blob::from_bytes(bytes.clone()), bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_piece_lies_in_one_chunk_and_every_block_has_its_sum(
            len in prop_oneof![Just(0usize), Just(CHUNK_STRIDE), Just(3 * CHUNK_STRIDE), 0..200_000usize],
            blksize in 512u16..=MAX_BLKSIZE,
        ) {
            let (blob, bytes) = blob(len);
            let one = NonZeroU16::MIN;
            let transfer = Session::new(len as u64, NonZeroU16::new(blksize).unwrap(), one, 0).unwrap();
            let (mut chunk, mut page) = (Box::new(Chunk([1; _])), SumPage([1; _]));
            let mut buf = Vec::new();
            for index in 1..=transfer.blocks() {
                let (at, n) = (transfer.offset_of(index), usize::from(transfer.len_of(index)));
                let want = &bytes[at as usize..at as usize + n];
                for (i, piece) in want.chunks(PIECE_LEN).enumerate() {
                    let at = at + (i * PIECE_LEN) as u64;
                    let number = at / CHUNK_STRIDE as u64;
                    prop_assert!(number < chunk_count(len as u64));
                    fill_chunk(&blob, number, &mut chunk).unwrap();
                    let inside = at as usize % CHUNK_STRIDE;
                    prop_assert_eq!(&chunk.0[inside..inside + piece.len()], piece);
                }
                // The position of an empty block is looked up, too.
                prop_assert!(at / (CHUNK_STRIDE as u64) < chunk_count(len as u64));
                let number = (index - 1) / SUMS_PER_PAGE as u32;
                prop_assert!(number < page_count(&transfer));
                fill_page(&blob, &transfer, number, &mut page, &mut buf).unwrap();
                let sum = page.0[(index as usize - 1) % SUMS_PER_PAGE];
                prop_assert_eq!(sum, Checksum::ZERO.bytes(want).folded());
            }
        }
    }
}
