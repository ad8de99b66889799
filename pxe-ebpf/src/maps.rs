//! Every map, each behind the functions that the programs need.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, HashOfMaps, PerCpuArray};
use aya_ebpf::macros::btf_map;
use pxe_common::map::{
    CHUNK_STRIDE, COUNTERS_LEN, Chunk, MAX_BLOBS, MAX_SESSIONS, MAX_SUMS, SUMS_PER_PAGE, Session, SessionKey,
    SumPage,
};
use pxe_common::verdict::{BYTES_COUNTER, COUNTERS_PER_HOOK, Hook, Verdict};
use pxe_common::wire::Checksum;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// Inner arrays may differ in length: the daemon makes each as long as its blob.
const INNER_MAP: usize = BPF_F_INNER_MAP as usize;

#[btf_map]
static SESSIONS: HashMap<SessionKey, Session, MAX_SESSIONS, NO_PREALLOC> = HashMap::new();

#[btf_map]
static BLOBS: HashOfMaps<u32, Array<Chunk, 1, INNER_MAP>, MAX_BLOBS, NO_PREALLOC> = HashOfMaps::new();

#[btf_map]
static SUMS: HashOfMaps<u32, Array<SumPage, 1, INNER_MAP>, MAX_SUMS, NO_PREALLOC> = HashOfMaps::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, COUNTERS_LEN> = PerCpuArray::new();

/// The transfer that `key` names.
///
/// Two frames of one transfer do not race: they arrive in one receive queue.
#[inline(always)]
pub(crate) fn session<'a>(key: &SessionKey) -> Option<&'a mut Session> {
    // SAFETY: the pointer is valid for the program's run; see `map::Session` for its slot.
    SESSIONS.get_ptr_mut(key).map(|session| unsafe { &mut *session })
}

/// The blob's bytes from `offset` on, at least `PIECE_LEN` of them.
#[inline(always)]
pub(crate) fn bytes_at(blob: u32, offset: u64) -> Option<*const u8> {
    let chunk = (offset / CHUNK_STRIDE as u64) as u32;
    // SAFETY: an array's elements stay until the array goes, which waits for the program's end.
    let chunk = unsafe { BLOBS.get_value(&blob, &chunk)? };
    // SAFETY: the mask keeps the pointer inside the chunk, which goes on for PIECE_LEN.
    Some(unsafe { chunk.0.as_ptr().add(offset as usize & (CHUNK_STRIDE - 1)) })
}

/// The sum of block `index`'s bytes, 1 for the first.
#[inline(always)]
pub(crate) fn sum_of(sums: u32, index: u32) -> Option<Checksum> {
    let at = index - 1;
    // SAFETY: as for the chunks.
    let page = unsafe { SUMS.get_value(&sums, &(at / SUMS_PER_PAGE as u32))? };
    Some(Checksum::from_folded(page.0[at as usize % SUMS_PER_PAGE]))
}

/// Notes a verdict.
#[inline(always)]
pub(crate) fn count(hook: Hook, verdict: Verdict) {
    let base = hook as u32 * COUNTERS_PER_HOOK as u32;
    add(base + verdict.counter(), 1);
    if let Verdict::Reply(bytes) = verdict {
        add(base + BYTES_COUNTER, u64::from(bytes));
    }
}

#[inline(always)]
fn add(index: u32, by: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's, and programs do not preempt one another at a hook.
        unsafe { *counter += by }
    }
}
