//! Blobs in the block map: which are published, and when they are removed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, TryLockError};

use aya::maps::{Array, MapData, MapError};
use pxe_common::map::{self, CHUNK_STRIDE, Chunk, MAX_BLKSIZE, MAX_BLOBS, SumPage};
use pxe_common::tftp::Session;

use super::filling::Filling;
use super::load::{ChunkMap, SumMap};
use super::{chunks, lock};
use crate::provision::blob::{Blob, BlobKey, ReadAt};
use crate::serve::tftp::{Declined, Note};

/// Lets arrays of any length stand where the programs' declaration has one entry (linux/bpf.h).
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Publishing reads a whole blob, and each change of a map of maps waits for the programs that are running. So no
/// lock is held meanwhile, except the one of the blob itself.
pub(super) struct Blobs {
    pub(super) shelf: Mutex<Shelf>,
    maps: Mutex<Maps>,
}

/// What is published, or being published.
pub(super) struct Shelf {
    published: HashMap<BlobKey, Entry>,
    /// What is published beside now.
    pub(super) filling: HashMap<BlobKey, Arc<Filling>>,
    uses: u64,
    limits: Limits,
}

struct Entry {
    /// Its bytes are there.
    whole: bool,
    /// Held by those who use it, too.
    slots: Arc<Mutex<Slots>>,
    bytes: u64,
    /// What it costs the kernel.
    memory: u64,
    last_use: u64,
}

/// Where the block map has a blob; empty until it is published.
#[derive(Debug, Default)]
struct Slots {
    chunks: Option<u32>,
    /// Tables of sums by block size.
    sums: HashMap<u16, u32>,
}

struct Maps {
    chunks: ChunkMap,
    sums: SumMap,
    next_id: u32,
}

/// Bytes. What lies in the block map can't be paged out, unlike the page cache that the daemon
/// sends from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// A smaller blob is the daemon's. To enter one costs milliseconds, a change of a map of maps
    /// each for bytes and sums, and a small one is mostly the configuration of the one machine that
    /// asks for it.
    pub(super) least: u64,
    /// A larger blob is published [beside](super::filling): to read it takes longer than a client should wait for its
    /// first answer, which is 5 ms a MiB here.
    pub(super) at_once: u64,
    /// For all blobs.
    pub(super) all: u64,
    /// For those that no transfer uses, kept because the next machine asks for the same.
    pub(super) unused: u64,
}

impl Limits {
    /// Half of the machine's memory; a quarter of that for what is not used.
    fn of_this_machine() -> Self {
        // Only an invalid pointer fails the call.
        let all = nix::sys::sysinfo::sysinfo().map_or(0, |system| system.ram_total() / 2);
        Self { least: 16 << 10, at_once: 4 << 20, all, unused: all / 4 }
    }
}

/// The right to name a blob in a session. The blob stays while it is held.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) blob: u32,
    pub(super) sums: u32,
    _in_use: Arc<Mutex<Slots>>,
}

impl Blobs {
    pub(super) fn new(chunks: ChunkMap, sums: SumMap) -> Self {
        let (published, filling) = Default::default();
        let shelf = Shelf { published, filling, uses: 0, limits: Limits::of_this_machine() };
        Self { shelf: Mutex::new(shelf), maps: Mutex::new(Maps { chunks, sums, next_id: 1 }) }
    }

    /// Makes sure that `blob` and its sums for the transfer's block size are in the kernel. Reads
    /// the blob when they are not, and waits while somebody else publishes the same; but not a large one.
    pub(super) fn grant(&self, blob: &Blob, transfer: &Session) -> Result<Grant, Declined> {
        if transfer.blksize() > MAX_BLKSIZE {
            return Err(Declined::BlockSize);
        }
        let Limits { least, at_once, .. } = lock(&self.shelf).limits;
        if blob.len() < least {
            return Err(Declined::Small);
        }
        if blob.len() > at_once {
            return self.ready(blob, transfer).ok_or(Declined::NotYet);
        }
        self.fill(blob, transfer, &|| true)
    }

    /// The grant of what is published already.
    pub(super) fn ready(&self, blob: &Blob, transfer: &Session) -> Option<Grant> {
        let shelf = &mut *lock(&self.shelf);
        let entry = shelf.published.get_mut(&blob.key())?;
        // Whoever publishes it holds it, for as long as that takes.
        let slots = match entry.slots.try_lock() {
            Ok(slots) => slots,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let (blob, sums) = (slots.chunks?, *slots.sums.get(&transfer.blksize())?);
        drop(slots);
        shelf.uses += 1;
        entry.last_use = shelf.uses;
        Some(Grant { blob, sums, _in_use: entry.slots.clone() })
    }

    /// Publishes what is not, while it is `wanted`.
    pub(super) fn fill(
        &self,
        blob: &Blob,
        transfer: &Session,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Grant, Declined> {
        let slots = self.reserve(blob)?;
        let granted = self.publish(blob, transfer, slots, wanted);
        if granted.is_err() {
            lock(&self.shelf).forget_unpublished(&blob.key());
        }
        granted
    }

    /// The grant of a session that a killed daemon made, and the blob as the kernel has it; `None` when
    /// it is gone.
    pub(super) fn regrant(&self, session: &map::Session, note: &Note) -> Option<(Grant, Blob)> {
        let maps = lock(&self.maps);
        let array = maps.chunks.get(&session.blob, 0).ok()?;
        maps.sums.get(&session.sums, 0).ok()?;
        drop(maps);
        let mut shelf = lock(&self.shelf);
        let entry = shelf.published.entry(note.blob).or_insert_with(|| Entry {
            whole: true,
            slots: Arc::new(Mutex::new(Slots { chunks: Some(session.blob), sums: HashMap::new() })),
            bytes: note.len,
            memory: chunks::chunks_memory(note.len),
            last_use: 0,
        });
        let mut slots = lock(&entry.slots);
        if slots.chunks != Some(session.blob) {
            return None;
        }
        if slots.sums.insert(session.transfer.blksize(), session.sums).is_none() {
            entry.memory += chunks::sums_memory(&session.transfer);
        }
        drop(slots);
        let grant = Grant { blob: session.blob, sums: session.sums, _in_use: entry.slots.clone() };
        Some((grant, Blob::elsewhere(note.blob, note.len, Box::new(InKernel(array)))))
    }

    /// Removes what no session of a killed daemon reads any more.
    pub(super) fn retract_unknown(&self) {
        let (mut known_chunks, mut known_sums) = (Vec::new(), Vec::new());
        for entry in lock(&self.shelf).published.values() {
            let slots = lock(&entry.slots);
            known_chunks.extend(slots.chunks);
            known_sums.extend(slots.sums.values().copied());
        }
        let maps = &mut *lock(&self.maps);
        for id in maps.chunks.keys().filter_map(Result::ok).collect::<Vec<u32>>() {
            maps.next_id = maps.next_id.max(id.wrapping_add(1));
            if !known_chunks.contains(&id) {
                // Gone is gone.
                let _ = maps.chunks.remove(&id);
            }
        }
        for id in maps.sums.keys().filter_map(Result::ok).collect::<Vec<u32>>() {
            maps.next_id = maps.next_id.max(id.wrapping_add(1));
            if !known_sums.contains(&id) {
                let _ = maps.sums.remove(&id);
            }
        }
    }

    /// Bytes of all published blobs.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.shelf).published.values().filter(|e| e.whole).map(|e| e.bytes).sum()
    }

    /// Whether the unused blobs exceed what may be kept.
    pub(super) fn has_excess(&self) -> bool {
        let shelf = lock(&self.shelf);
        shelf.unused().map(|(_, entry)| entry.memory).sum::<u64>() > shelf.limits.unused
    }

    /// Retracts unused blobs beyond what may be kept. Waits for the programs that are running.
    pub(super) fn retract_excess(&self) {
        let gone = lock(&self.shelf).make_room(0);
        self.retract(gone);
    }

    #[cfg(test)]
    pub(super) fn limit(&self, limits: Limits) {
        lock(&self.shelf).limits = limits;
    }

    #[cfg(test)]
    pub(super) fn take_all_sizes(&self) {
        let limits = &mut lock(&self.shelf).limits;
        (limits.least, limits.at_once) = (0, u64::MAX);
    }

    /// The blob's place, made when it has none. It counts from now on.
    fn reserve(&self, blob: &Blob) -> Result<Arc<Mutex<Slots>>, Declined> {
        let mut shelf = lock(&self.shelf);
        shelf.uses += 1;
        let last_use = shelf.uses;
        if let Some(entry) = shelf.published.get_mut(&blob.key()) {
            entry.last_use = last_use;
            return Ok(entry.slots.clone());
        }
        let memory = chunks::chunks_memory(blob.len());
        let gone = shelf.make_room(memory);
        let (used, limit) = (shelf.memory(), shelf.limits.all);
        let slots = Arc::<Mutex<Slots>>::default();
        if used.saturating_add(memory) <= limit {
            let entry = Entry { whole: false, slots: slots.clone(), bytes: blob.len(), memory, last_use };
            shelf.published.insert(blob.key(), entry);
        }
        drop(shelf);
        self.retract(gone);
        if used.saturating_add(memory) > limit {
            return Err(Declined::Full { needed: memory, used, limit });
        }
        Ok(slots)
    }

    fn publish(
        &self,
        blob: &Blob,
        transfer: &Session,
        in_use: Arc<Mutex<Slots>>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Grant, Declined> {
        let mut slots = lock(&in_use);
        let chunks = match slots.chunks {
            Some(id) => id,
            None => {
                let id = *slots.chunks.insert(self.publish_chunks(blob, wanted)?);
                if let Some(entry) = lock(&self.shelf).published.get_mut(&blob.key()) {
                    entry.whole = true;
                }
                id
            }
        };
        let sums = match slots.sums.get(&transfer.blksize()) {
            Some(id) => *id,
            None => {
                let id = self.publish_sums(blob, transfer, wanted)?;
                slots.sums.insert(transfer.blksize(), id);
                if let Some(entry) = lock(&self.shelf).published.get_mut(&blob.key()) {
                    entry.memory += chunks::sums_memory(transfer);
                }
                id
            }
        };
        drop(slots);
        Ok(Grant { blob: chunks, sums, _in_use: in_use })
    }

    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it is 66 KiB on the stack")]
    fn publish_chunks(&self, blob: &Blob, wanted: &dyn Fn() -> bool) -> Result<u32, Declined> {
        // More chunks than an array can have are far more than any memory holds.
        let count = u32::try_from(chunks::chunk_count(blob.len())).unwrap_or(u32::MAX);
        let mut array = Array::create(count, BPF_F_INNER_MAP)?;
        let mut chunk = Box::new(Chunk([0; _]));
        for index in 0..count {
            still(wanted)?;
            chunks::fill_chunk(blob, index.into(), &mut chunk)?;
            array.set(index, &*chunk, 0)?;
        }
        unchanged(blob)?;
        let mut maps = lock(&self.maps);
        let id = maps.new_id();
        maps.chunks.insert(id, &array, 0)?;
        tracing::debug!(id, bytes = blob.len(), "blob published");
        Ok(id)
    }

    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it is 2 KiB on the stack")]
    fn publish_sums(
        &self,
        blob: &Blob,
        transfer: &Session,
        wanted: &dyn Fn() -> bool,
    ) -> Result<u32, Declined> {
        let count = chunks::page_count(transfer);
        let mut array = Array::create(count, BPF_F_INNER_MAP)?;
        let (mut page, mut buf) = (Box::new(SumPage([0; _])), Vec::new());
        for index in 0..count {
            still(wanted)?;
            chunks::fill_page(blob, transfer, index, &mut page, &mut buf)?;
            array.set(index, &*page, 0)?;
        }
        unchanged(blob)?;
        let mut maps = lock(&self.maps);
        let id = maps.new_id();
        maps.sums.insert(id, &array, 0)?;
        Ok(id)
    }

    /// In reverse order of publication. The kernel frees the arrays when the last program that
    /// looked them up has returned.
    fn retract(&self, gone: Vec<Entry>) {
        for Entry { slots, bytes, .. } in gone {
            let Slots { chunks: Some(id), sums } = &*lock(&slots) else { continue };
            let maps = &mut *lock(&self.maps);
            let gone = maps.chunks.remove(id);
            let gone = sums.values().fold(gone, |gone, id| gone.and(maps.sums.remove(id)));
            match gone {
                Ok(()) => tracing::debug!(id, bytes, "blob retracted"),
                Err(error) => tracing::warn!(id, %error, "a blob could not be retracted"),
            }
        }
    }
}

impl Shelf {
    fn memory(&self) -> u64 {
        self.published.values().map(|entry| entry.memory).sum()
    }

    fn unused(&self) -> impl Iterator<Item = (&BlobKey, &Entry)> {
        self.published.iter().filter(|(_, entry)| Arc::strong_count(&entry.slots) == 1)
    }

    /// Takes out unused blobs, longest unused first, until `coming` bytes fit.
    fn make_room(&mut self, coming: u64) -> Vec<Entry> {
        let mut unused: Vec<_> =
            self.unused().map(|(key, entry)| (entry.last_use, *key, entry.memory)).collect();
        unused.sort_unstable_by_key(|(last_use, ..)| *last_use);
        let mut kept = unused.iter().map(|(.., memory)| memory).sum::<u64>().saturating_add(coming);
        let mut all = self.memory().saturating_add(coming);
        let mut gone = Vec::new();
        for (_, key, memory) in unused {
            let enough = kept <= self.limits.unused && all <= self.limits.all;
            if enough && self.published.len() < MAX_BLOBS / 2 {
                break;
            }
            (kept, all) = (kept - memory, all - memory);
            gone.extend(self.published.remove(&key));
        }
        gone
    }

    /// Publishing failed. Others who wait for the same blob try by themselves.
    fn forget_unpublished(&mut self, key: &BlobKey) {
        let unused = self.published.get(key).filter(|entry| Arc::strong_count(&entry.slots) == 1);
        if unused.is_some_and(|entry| lock(&entry.slots).chunks.is_none()) {
            self.published.remove(key);
        }
    }
}

impl Maps {
    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }
}

fn still(wanted: &dyn Fn() -> bool) -> Result<(), Declined> {
    wanted().then_some(()).ok_or(Declined::NotYet)
}

/// What was read while somebody wrote is neither the old file nor the new one.
fn unchanged(blob: &Blob) -> Result<(), Declined> {
    blob.is_unchanged()?.then_some(()).ok_or(Declined::Changed)
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
