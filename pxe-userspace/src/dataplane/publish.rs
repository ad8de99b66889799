//! Blobs in the block map: which are there, and when they go.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use aya::maps::{Array, MapData, MapError};
use pxe_common::map::{self, CHUNK_STRIDE, Chunk, MAX_BLKSIZE, SumPage};
use pxe_common::tftp::Session;

use super::chunks;
use super::load::{ChunkMap, SumMap};
use crate::blob::{Blob, BlobKey, ReadAt};
use crate::tftp::{Declined, Note};

/// Lets arrays of any length stand where the programs' declaration has one entry (linux/bpf.h).
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Larger ones stay in the page cache, which the kernel may empty; the block map it may not.
const MAX_BLOB_BYTES: u64 = 1 << 30;

/// Blobs that no transfer uses are kept up to this many bytes: the next machine asks for the same.
const KEPT_UNUSED_BYTES: u64 = 256 << 20;

pub(super) struct Blobs {
    chunks: ChunkMap,
    sums: SumMap,
    published: HashMap<BlobKey, Entry>,
    next_id: u32,
    uses: u64,
    pub(super) kept_unused_bytes: u64,
}

struct Entry {
    in_use: Arc<()>,
    id: u32,
    bytes: u64,
    /// Tables of sums by block size.
    sums: HashMap<u16, u32>,
    last_use: u64,
}

/// The right to name a blob in a session. The blob stays while it is held.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) blob: u32,
    pub(super) sums: u32,
    _in_use: Arc<()>,
}

impl Blobs {
    pub(super) fn new(chunks: ChunkMap, sums: SumMap) -> Self {
        Self {
            chunks,
            sums,
            published: HashMap::new(),
            next_id: 1,
            uses: 0,
            kept_unused_bytes: KEPT_UNUSED_BYTES,
        }
    }

    /// Makes sure that `blob` and its sums for the transfer's block size are in the kernel. Reads
    /// the blob when they are not.
    pub(super) fn grant(&mut self, blob: &Blob, transfer: &Session) -> Result<Grant, Declined> {
        if transfer.blksize() > MAX_BLKSIZE {
            return Err(Declined::BlockSize);
        }
        if blob.len() > MAX_BLOB_BYTES {
            return Err(Declined::TooLarge);
        }
        if !self.published.contains_key(&blob.key()) {
            self.retract_unused(blob.len());
            let id = self.publish_chunks(blob)?;
            let entry =
                Entry { in_use: Arc::new(()), id, bytes: blob.len(), sums: HashMap::new(), last_use: 0 };
            self.published.insert(blob.key(), entry);
        }
        let known = self.published.get(&blob.key()).and_then(|e| e.sums.get(&transfer.blksize()).copied());
        let sums = match known {
            Some(sums) => sums,
            None => self.publish_sums(blob, transfer)?,
        };
        self.uses += 1;
        let entry = self.published.get_mut(&blob.key()).ok_or(Declined::TooLarge)?;
        entry.sums.insert(transfer.blksize(), sums);
        entry.last_use = self.uses;
        Ok(Grant { blob: entry.id, sums, _in_use: entry.in_use.clone() })
    }

    /// The grant of a session that a killed daemon made, and the blob as the kernel has it; none when
    /// it is gone.
    pub(super) fn regrant(&mut self, session: &map::Session, note: &Note) -> Option<(Grant, Blob)> {
        let array = self.chunks.get(&session.blob, 0).ok()?;
        self.sums.get(&session.sums, 0).ok()?;
        let new = || Entry {
            in_use: Arc::new(()),
            id: session.blob,
            bytes: note.len,
            sums: HashMap::new(),
            last_use: 0,
        };
        let entry = self.published.entry(note.blob).or_insert_with(new);
        if entry.id != session.blob {
            return None;
        }
        entry.sums.insert(session.transfer.blksize(), session.sums);
        let grant = Grant { blob: session.blob, sums: session.sums, _in_use: entry.in_use.clone() };
        Some((grant, Blob::elsewhere(note.blob, note.len, Box::new(InKernel(array)))))
    }

    /// Removes what no session of a killed daemon reads any more.
    pub(super) fn retract_unknown(&mut self) {
        let known: Vec<u32> = self.published.values().map(|entry| entry.id).collect();
        for id in self.chunks.keys().filter_map(Result::ok).collect::<Vec<u32>>() {
            self.next_id = self.next_id.max(id.wrapping_add(1));
            if !known.contains(&id) {
                // Gone is gone.
                let _ = self.chunks.remove(&id);
            }
        }
        let known: Vec<u32> =
            self.published.values().flat_map(|entry| entry.sums.values().copied()).collect();
        for id in self.sums.keys().filter_map(Result::ok).collect::<Vec<u32>>() {
            self.next_id = self.next_id.max(id.wrapping_add(1));
            if !known.contains(&id) {
                let _ = self.sums.remove(&id);
            }
        }
    }

    /// Bytes of all published blobs.
    pub(super) fn bytes(&self) -> u64 {
        self.published.values().map(|e| e.bytes).sum()
    }

    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it is 66 KiB on the stack")]
    fn publish_chunks(&mut self, blob: &Blob) -> Result<u32, Declined> {
        let count = u32::try_from(chunks::chunk_count(blob.len())).map_err(|_| Declined::TooLarge)?;
        let mut array = Array::create(count, BPF_F_INNER_MAP)?;
        let mut chunk = Box::new(Chunk([0; _]));
        for index in 0..count {
            chunks::fill_chunk(blob, index.into(), &mut chunk)?;
            array.set(index, &*chunk, 0)?;
        }
        let id = self.new_id();
        self.chunks.insert(id, &array, 0)?;
        tracing::debug!(id, bytes = blob.len(), "blob published");
        Ok(id)
    }

    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it is 2 KiB on the stack")]
    fn publish_sums(&mut self, blob: &Blob, transfer: &Session) -> Result<u32, Declined> {
        let count = chunks::page_count(transfer);
        let mut array = Array::create(count, BPF_F_INNER_MAP)?;
        let (mut page, mut buf) = (Box::new(SumPage([0; _])), Vec::new());
        for index in 0..count {
            chunks::fill_page(blob, transfer, index, &mut page, &mut buf)?;
            array.set(index, &*page, 0)?;
        }
        let id = self.new_id();
        self.sums.insert(id, &array, 0)?;
        Ok(id)
    }

    /// Makes room for `coming` bytes by retracting unused blobs, longest unused first.
    fn retract_unused(&mut self, coming: u64) {
        let mut unused: Vec<_> = self
            .published
            .iter()
            .filter(|(_, entry)| Arc::strong_count(&entry.in_use) == 1)
            .map(|(key, entry)| (entry.last_use, *key, entry.bytes))
            .collect();
        unused.sort_unstable_by_key(|(last_use, ..)| *last_use);
        let mut kept: u64 = coming + unused.iter().map(|(.., bytes)| bytes).sum::<u64>();
        for (_, key, bytes) in unused {
            if kept <= self.kept_unused_bytes && self.published.len() < pxe_common::map::MAX_BLOBS / 2 {
                break;
            }
            kept -= bytes;
            self.retract(&key);
        }
    }

    /// In reverse order of publication. The kernel frees the arrays when the last program that
    /// looked them up has returned.
    fn retract(&mut self, key: &BlobKey) {
        let Some(entry) = self.published.remove(key) else { return };
        let gone = self.chunks.remove(&entry.id);
        let gone = entry.sums.values().fold(gone, |gone, id| gone.and(self.sums.remove(id)));
        match gone {
            Ok(()) => tracing::debug!(id = entry.id, bytes = entry.bytes, "blob retracted"),
            Err(error) => tracing::warn!(id = entry.id, %error, "a blob could not be retracted"),
        }
    }

    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }
}

/// A blob as the block map has it.
struct InKernel(Array<MapData, Chunk>);

impl std::fmt::Debug for InKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InKernel")
    }
}

impl ReadAt for InKernel {
    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let chunk = self.0.get(&((offset / CHUNK_STRIDE as u64) as u32), 0).map_err(io::Error::other)?;
            let bytes = &chunk.0[offset as usize % CHUNK_STRIDE..];
            let len = bytes.len().min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            now.copy_from_slice(&bytes[..len]);
            (buf, offset) = (later, offset + len as u64);
        }
        Ok(())
    }
}

impl From<MapError> for Declined {
    fn from(error: MapError) -> Self {
        Self::Kernel(io::Error::other(error))
    }
}
