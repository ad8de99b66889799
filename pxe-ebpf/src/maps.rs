//! Every map, behind the functions that the programs need.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::{Array, HashMap, HashOfMaps, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use pxe_common::Mac;
use pxe_common::dhcp::{Answer, Packet, Request, Walk};
use pxe_common::map::{
    CHUNK_STRIDE, COUNTERS_LEN, Chunk, EVENTS_BYTES, Event, Lease, MAX_BLOBS, MAX_LEASES, MAX_SESSIONS,
    MAX_SUMS, PARTS, Part, SUMS_PER_PAGE, Session, SessionKey, WAKES_EVERY_NS,
};
use pxe_common::verdict::{BYTES_COUNTER, COUNTERS_PER_HOOK, Hook, LOST_COUNTER, Verdict};
use pxe_common::wire::{Checksum, Datagram, Headers};

use crate::frame::{Change, Frame};
use crate::tftp::Sending;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// Inner arrays may differ in length: the daemon makes each as long as its blob.
///
/// In BTF their values are arrays, not structs. Linux before 6.2 compares where a map's value has its timer, and
/// "nowhere in this struct" differs from the "nowhere" of the daemon's arrays, which have no BTF. It would accept none
/// of them (`bpf_map_meta_equal`).
const INNER_MAP: usize = BPF_F_INNER_MAP as usize;

/// A [`Chunk`] with its alignment.
type ChunkWords = [u64; size_of::<Chunk>() / size_of::<u64>()];
/// A [`SumPage`](pxe_common::map::SumPage).
type Sums = [u16; SUMS_PER_PAGE];

#[btf_map]
static XDP_PARTS: ProgramArray<PARTS> = ProgramArray::new();

#[btf_map]
static TC_PARTS: ProgramArray<PARTS> = ProgramArray::new();

#[btf_map]
static SESSIONS: HashMap<SessionKey, Session, MAX_SESSIONS, NO_PREALLOC> = HashMap::new();

#[btf_map]
static BLOBS: HashOfMaps<u32, Array<ChunkWords, 1, INNER_MAP>, MAX_BLOBS, NO_PREALLOC> = HashOfMaps::new();

#[btf_map]
static SUMS: HashOfMaps<u32, Array<Sums, 1, INNER_MAP>, MAX_SUMS, NO_PREALLOC> = HashOfMaps::new();

#[btf_map]
static LEASES: HashMap<Mac, Lease, MAX_LEASES, NO_PREALLOC> = HashMap::new();

#[btf_map]
static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

/// The parsed headers of the frame.
#[btf_map]
static PACKET: PerCpuArray<Datagram, 1> = PerCpuArray::new();

/// A DHCP request, and its reply: working space that is too large for the stack.
#[btf_map]
static MESSAGES: PerCpuArray<Packet, 2> = PerCpuArray::new();

/// The walk over the request's options: [`Walk`] says why it is in a map.
#[btf_map]
static WALK: PerCpuArray<Walk, 1> = PerCpuArray::new();

/// A request and its answer, between reading and writing: see [`Plan`].
#[btf_map]
static PLAN: PerCpuArray<Plan, 1> = PerCpuArray::new();

/// A transfer's answer.
#[btf_map]
static SENDING: PerCpuArray<Sending, 1> = PerCpuArray::new();

/// When a program last woke the daemon, by CLOCK_BOOTTIME.
#[btf_map]
static WOKEN: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, COUNTERS_LEN> = PerCpuArray::new();

/// Continues with `part` of the hook's programs. Returns only if the kernel has rejected it.
#[inline(always)]
pub(crate) fn jump<F: Frame>(frame: &F, part: Part) {
    let parts = match F::HOOK {
        Hook::Xdp => &XDP_PARTS,
        Hook::Tc => &TC_PARTS,
    };
    // SAFETY: nothing that has to be dropped is held when a program jumps.
    unsafe { parts.tail_call(frame, part as u32) }
}

/// The transfer that `key` names.
///
/// Two frames of one transfer do not race, because they arrive in one receive queue.
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
    Some(unsafe { chunk.as_ptr().cast::<u8>().add(offset as usize & (CHUNK_STRIDE - 1)) })
}

/// The sum of block `index`'s bytes, 1 for the first.
#[inline(always)]
pub(crate) fn sum_of(sums: u32, index: u32) -> Option<Checksum> {
    let at = index - 1;
    // SAFETY: as for the chunks.
    let page = unsafe { SUMS.get_value(&sums, &(at / SUMS_PER_PAGE as u32))? };
    Some(Checksum::from_folded(page[at as usize % SUMS_PER_PAGE]))
}

/// The kernel's lease for this machine.
#[inline(always)]
pub(crate) fn lease<'a>(mac: &Mac) -> Option<&'a Lease> {
    // SAFETY: programs only read leases, and the map has no slots that are used again while a
    // program runs (BPF_F_NO_PREALLOC).
    LEASES.get_ptr(mac).map(|lease| unsafe { &*lease })
}

/// The machine returns its address.
#[inline(always)]
pub(crate) fn end_lease(mac: &Mac) {
    // It fails only if another CPU or the daemon was faster.
    let _ = LEASES.remove(mac);
}

/// Space for the parsed headers.
#[inline(always)]
pub(crate) fn packet<'a>() -> Option<&'a mut Datagram> {
    // SAFETY: the slot is this CPU's, and one program at a time runs on it.
    PACKET.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}

/// Space for a request.
#[inline(always)]
pub(crate) fn request<'a>() -> Option<&'a mut Packet> {
    // SAFETY: as above.
    MESSAGES.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}

/// Space for a reply.
#[inline(always)]
pub(crate) fn reply<'a>() -> Option<&'a mut Packet> {
    // SAFETY: as above.
    MESSAGES.get_ptr_mut(1).map(|packet| unsafe { &mut *packet })
}

/// Space for a walk.
#[inline(always)]
pub(crate) fn walk<'a>() -> Option<&'a mut Walk> {
    // SAFETY: as above; whoever reads it has written it in the same run.
    WALK.get_ptr_mut(0).map(|walk| unsafe { &mut *walk })
}

/// The parts of a reply, except the messages and the lease.
///
/// The verifier follows each path through reading and deciding, and would follow writing once for each of them. A value
/// from a map has no history: written here and looked up again, hundreds of paths become one.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) request: Request,
    pub(crate) answer: Answer,
    /// By CLOCK_BOOTTIME.
    pub(crate) now_ns: u64,
    /// The sum of the reply's bytes.
    pub(crate) sum: Checksum,
    pub(crate) change: Change,
    /// The reply's headers, not yet written.
    pub(crate) head: Headers,
}

/// Space for a plan.
#[inline(always)]
pub(crate) fn plan<'a>() -> Option<&'a mut Plan> {
    // SAFETY: as for the walk.
    PLAN.get_ptr_mut(0).map(|plan| unsafe { &mut *plan })
}

/// Space for a transfer's answer.
#[inline(always)]
pub(crate) fn sending<'a>() -> Option<&'a mut Sending> {
    // SAFETY: as for the walk.
    SENDING.get_ptr_mut(0).map(|sending| unsafe { &mut *sending })
}

/// Notifies the daemon, or counts the event as lost.
///
/// Waking the daemon takes an interrupt, as long as all the rest of a DHCP request: see [`WAKES_EVERY_NS`].
#[inline(always)]
pub(crate) fn tell(hook: Hook, event: &Event) -> bool {
    let woken = WOKEN.get_ptr_mut(0);
    // SAFETY: the slot is this CPU's, and one program at a time runs on it.
    let wakes = woken.is_none_or(|woken| event.time_ns.wrapping_sub(unsafe { *woken }) >= WAKES_EVERY_NS);
    let told = EVENTS.output(event, if wakes { 0 } else { u64::from(BPF_RB_NO_WAKEUP) }).is_ok();
    match woken {
        // SAFETY: as above.
        Some(woken) if wakes && told => unsafe { *woken = event.time_ns },
        _ if told => {}
        _ => add(hook as u32 * COUNTERS_PER_HOOK as u32 + LOST_COUNTER, 1),
    }
    told
}

/// Counts a verdict.
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
