//! From a request to its offer or ACK.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_csum_diff, bpf_ktime_get_boot_ns, bpf_loop};
use aya_log_ebpf::debug;
use pxe_common::dhcp::{self, BUFFER, CAP, Kind, Packet, Uncovered, field, request::MAX_STEPS};
use pxe_common::map::{Event, EventKind, Lease};
use pxe_common::verdict::{Drop, Hook, Pass, Verdict};
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use crate::bounds;
use crate::frame::{Change, Frame, UDP_CHECKSUM};
use crate::maps::{self, Plan};

/// Answers a request from a machine whose lease is in the kernel.
///
/// As for TFTP, everything that can fail is done before the frame is changed.
#[inline(always)]
pub(crate) fn answer<F: Frame>(frame: &F, packet: &Datagram) -> Result<Verdict, Pass> {
    let len = begin(frame, packet)?;
    let walk = maps::walk().ok_or(Pass::DhcpMessage)?;
    let lease = maps::lease(&walk.mac()).ok_or(Pass::DhcpUnknown)?;
    // SAFETY: `next_option` has the signature that the helper calls.
    unsafe { bpf_loop(MAX_STEPS, next_option as *mut c_void, ptr::null_mut(), 0) };
    understand()?;
    decide(packet, lease)?;
    build(lease)?;
    // Where the checksum is rewritten completely, it is not needed.
    if F::HOOK == Hook::Tc {
        compare(frame, packet, len)?;
    }
    if !send(frame)? {
        return Ok(Verdict::Drop(Drop::Unwritable));
    }
    debug!(frame, "dhcp: {:i} is its machine's", u32::from_be_bytes(lease.grant.address));
    tell::<F>(lease)
}

// Each of these is a separate function, so that the stack holds only what one of them needs. They pass their results on
// in the plan.

/// Copies the request out of the frame, and begins the walk over it. Returns its length.
#[inline(never)]
fn begin<F: Frame>(frame: &F, packet: &Datagram) -> Result<usize, Pass> {
    let (Some(message), Some(walk)) = (maps::request(), maps::walk()) else { return Err(Pass::DhcpMessage) };
    let len = load(frame, packet, message).ok_or(Pass::DhcpMessage)?;
    *walk = dhcp::begin(message, len).map_err(|_| Pass::DhcpMessage)?;
    Ok(len)
}

/// Reads the request after the walk.
#[inline(never)]
fn understand() -> Result<(), Pass> {
    let (Some(walk), Some(plan)) = (maps::walk(), maps::plan()) else { return Err(Pass::DhcpMessage) };
    plan.request = dhcp::finish(walk).map_err(|_| Pass::DhcpMessage)?;
    Ok(())
}

/// Decides whether the request may be answered, and how.
#[inline(never)]
fn decide(packet: &Datagram, lease: &Lease) -> Result<(), Pass> {
    let plan = maps::plan().ok_or(Pass::DhcpMessage)?;
    // SAFETY: a plain helper call.
    plan.now_ns = unsafe { bpf_ktime_get_boot_ns() };
    plan.answer = dhcp::covered(&plan.request, packet, lease, plan.now_ns).map_err(|why| {
        if why == Uncovered::Ends {
            maps::end_lease(&plan.request.mac);
        }
        Pass::from(why)
    })?;
    Ok(())
}

/// Builds the reply's message.
#[inline(never)]
fn build(lease: &Lease) -> Result<(), Pass> {
    let plan = maps::plan().ok_or(Pass::DhcpMessage)?;
    let (Some(message), Some(out)) = (maps::request(), maps::reply()) else { return Err(Pass::DhcpMessage) };
    let len = dhcp::build(out, plan.answer.kind, &plan.request, message, &lease.grant);
    let len = len.ok().and_then(bounded).ok_or(Pass::DhcpTooLong)?;
    plan.answer.headers.payload_len = len as u16;
    plan.sum = sum_of(out, len as usize);
    Ok(())
}

/// Records how the reply differs from the request.
#[inline(never)]
fn compare<F: Frame>(frame: &F, packet: &Datagram, len: usize) -> Result<(), Pass> {
    let (Some(plan), Some(message)) = (maps::plan(), maps::request()) else { return Err(Pass::DhcpMessage) };
    let old_checksum = frame.load(UDP_CHECKSUM).ok_or(Pass::DhcpMessage)?;
    let old = (packet, sum_of(message, len));
    plan.change = Change::new(old_checksum, old, (&plan.answer.headers, plan.sum));
    Ok(())
}

/// Writes the reply into the frame, over the request. Returns false if that fails halfway.
#[inline(never)]
fn send<F: Frame>(frame: &F) -> Result<bool, Pass> {
    let (Some(plan), Some(out)) = (maps::plan(), maps::reply()) else { return Err(Pass::DhcpMessage) };
    let Plan { answer, sum, change, head, .. } = plan;
    let reply = &answer.headers;
    let len = usize::from(reply.payload_len);
    if !frame.resize((HEADERS_LEN + len) as u32) {
        return Err(Pass::NoRoom);
    }
    reply.write(head).fill(head, reply.payload_len, *sum);
    Ok(store(frame, out, len) && frame.store_head(head, change))
}

/// Notifies the daemon of the answer.
#[inline(never)]
fn tell<F: Frame>(lease: &Lease) -> Result<Verdict, Pass> {
    let plan = maps::plan().ok_or(Pass::DhcpMessage)?;
    let (kind, verdict) = match plan.answer.kind {
        Kind::Offer => (EventKind::Offer, Verdict::Offer),
        Kind::Ack => (EventKind::Ack, Verdict::Ack),
        // Configuration without a lease: nothing that the daemon has to know.
        Kind::Informed | Kind::Nak | Kind::ProxyOffer | Kind::ProxyAck => return Ok(Verdict::Ack),
    };
    let event = Event {
        time_ns: plan.now_ns,
        kind: kind as u16,
        hook: F::HOOK as u16,
        address: lease.grant.address,
        body: Event::of_client(plan.request.mac, plan.request.firmware),
    };
    maps::tell(F::HOOK, &event);
    Ok(verdict)
}

unsafe extern "C" fn next_option(_: u32, _: *mut c_void) -> i64 {
    let (Some(message), Some(walk)) = (maps::request(), maps::walk()) else { return 1 };
    i64::from(dhcp::step(message, walk))
}

/// Copies the message into `buffer`, and returns its length. What an earlier message left after it is ignored, except
/// the bytes that fill up the last word of its sum.
#[inline(always)]
fn load<F: Frame>(frame: &F, packet: &Datagram, buffer: &mut Packet) -> Option<usize> {
    let len = bounded(usize::from(packet.payload_len))?;
    // SAFETY: `len` is at most CAP, and the buffer longer.
    unsafe { frame.load_at(HEADERS_LEN as u32, buffer.as_mut_ptr(), len) }.then_some(len as usize)
}

#[inline(always)]
fn store<F: Frame>(frame: &F, buffer: &Packet, len: usize) -> bool {
    match bounded(len) {
        // SAFETY: as in `load`.
        Some(len) => unsafe { frame.store(HEADERS_LEN as u32, buffer.as_ptr(), len) },
        None => false,
    }
}

/// `len`, if it is a valid message length.
#[inline(always)]
fn bounded(len: usize) -> Option<u32> {
    bounds::within::<{ field::OPTIONS as u64 }, { CAP as u64 }>(len as u64)
}

/// The sum of a message's bytes.
#[inline(always)]
fn sum_of(buffer: &mut Packet, len: usize) -> Checksum {
    // Helpers sum only whole words.
    for i in 0..3 {
        buffer[(len + i) & (BUFFER - 1)] = 0;
    }
    let len = (len + 3) & (CAP * 2 - 4);
    // Before Linux 6.13 the helper sums at most 512 bytes per call.
    let first = if len > 512 { 512 } else { len };
    let rest = (len - first) & 0x3fc;
    let bytes: *mut u32 = buffer.as_mut_ptr().cast();
    // SAFETY: both parts lie in the buffer.
    let sum = unsafe {
        let sum = bpf_csum_diff(ptr::null_mut(), 0, bytes, first as u32, 0);
        bpf_csum_diff(ptr::null_mut(), 0, bytes.add(128), rest as u32, sum as u32)
    } as u32;
    // The kernel sums words in memory order, as in `frame::difference`.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    Checksum::from_folded(u16::from_be(folded as u16))
}
