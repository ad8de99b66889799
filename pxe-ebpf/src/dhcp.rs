//! A request in, the offer or ACK out.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_csum_diff, bpf_ktime_get_boot_ns, bpf_loop};
use aya_log_ebpf::debug;
use pxe_common::dhcp::{self, BUFFER, CAP, Kind, Packet, Uncovered, field, request::MAX_STEPS};
use pxe_common::map::{Event, EventKind};
use pxe_common::verdict::{Drop, Pass, Verdict};
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use crate::bounds;
use crate::frame::{Change, Frame, UDP_CHECKSUM};
use crate::maps::{self, Plan};

/// Answers a request from a machine whose lease is in the kernel.
///
/// As for TFTP, everything that can fail is done before the frame is touched. A function of its
/// own, so that a transfer's stack does not hold what only DHCP needs.
#[inline(never)]
pub(crate) fn answer<F: Frame>(frame: &F, packet: &Datagram) -> Result<Verdict, Pass> {
    let message = maps::request().ok_or(Pass::DhcpMessage)?;
    let len = load(frame, packet, message).ok_or(Pass::DhcpMessage)?;
    let walk = maps::walk().ok_or(Pass::DhcpMessage)?;
    *walk = dhcp::begin(message, len).map_err(|_| Pass::DhcpMessage)?;
    let mac = walk.mac();
    let lease = maps::lease(&mac).ok_or(Pass::DhcpUnknown)?;

    // SAFETY: `next_option` has the signature that the helper calls.
    unsafe { bpf_loop(MAX_STEPS, next_option as *mut c_void, ptr::null_mut(), 0) };
    // Looked up anew: the callback had the only references until here.
    let message = maps::request().ok_or(Pass::DhcpMessage)?;
    let walk = maps::walk().ok_or(Pass::DhcpMessage)?;
    let request = dhcp::finish(walk).map_err(|_| Pass::DhcpMessage)?;
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let answer = dhcp::covered(&request, packet, lease, now).map_err(|why| {
        if why == Uncovered::Ends {
            maps::end_lease(&mac);
        }
        Pass::from(why)
    })?;

    let Plan { request, answer } = maps::plan(Plan { request, answer }).ok_or(Pass::DhcpMessage)?;
    let out = maps::reply().ok_or(Pass::DhcpMessage)?;
    let reply_len =
        dhcp::build(out, answer.kind, request, message, &lease.grant).map_err(|_| Pass::DhcpTooLong)?;
    let reply_len = bounded(reply_len).ok_or(Pass::DhcpTooLong)? as usize;
    let reply = Datagram { payload_len: reply_len as u16, ..answer.headers };
    let sum = sum_of(out, reply_len);
    let old_checksum = frame.load(UDP_CHECKSUM).ok_or(Pass::DhcpMessage)?;
    let change = Change::new(old_checksum, (packet, sum_of(message, len)), (&reply, sum));
    if !frame.resize((HEADERS_LEN + reply_len) as u32) {
        return Err(Pass::NoRoom);
    }
    if !store(frame, out, reply_len) || !frame.store_head(reply.headers(sum), &change) {
        return Ok(Verdict::Drop(Drop::Unwritable));
    }

    debug!(frame, "dhcp: {:i} is {:mac}'s", u32::from_be_bytes(lease.grant.address), mac.0);
    let (kind, verdict) = match answer.kind {
        Kind::Offer => (EventKind::Offer, Verdict::Offer),
        Kind::Ack => (EventKind::Ack, Verdict::Ack),
        // Configuration, no lease: nothing that the daemon has to know.
        Kind::Informed | Kind::Nak | Kind::ProxyOffer | Kind::ProxyAck => return Ok(Verdict::Ack),
    };
    let event = Event {
        time_ns: now,
        kind: kind as u16,
        hook: F::HOOK as u16,
        address: lease.grant.address,
        body: Event::of_client(mac, request.firmware),
    };
    maps::tell(F::HOOK, &event);
    Ok(verdict)
}

unsafe extern "C" fn next_option(_: u32, _: *mut c_void) -> i64 {
    let (Some(message), Some(walk)) = (maps::request(), maps::walk()) else { return 1 };
    i64::from(dhcp::step(message, walk))
}

/// Copies the message into `buffer`, and returns its length. Whatever an earlier message left
/// behind it is not looked at, but for the bytes that fill up the last word of its sum.
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

/// `len`, if it is a message's.
#[inline(always)]
fn bounded(len: usize) -> Option<u32> {
    bounds::within::<{ field::OPTIONS as u64 }, { CAP as u64 }>(len as u64)
}

/// The sum of a message's bytes.
#[inline(always)]
fn sum_of(buffer: &mut Packet, len: usize) -> Checksum {
    // Helpers sum whole words.
    for i in 0..3 {
        buffer[(len + i) & (BUFFER - 1)] = 0;
    }
    let len = (len + 3) & (CAP * 2 - 4);
    // Before Linux 6.13 the helper sums 512 bytes at most, in one call.
    let first = if len > 512 { 512 } else { len };
    let rest = (len - first) & 0x3fc;
    let bytes: *mut u32 = buffer.as_mut_ptr().cast();
    // SAFETY: both parts lie in the buffer.
    let sum = unsafe {
        let sum = bpf_csum_diff(ptr::null_mut(), 0, bytes, first as u32, 0);
        bpf_csum_diff(ptr::null_mut(), 0, bytes.add(128), rest as u32, sum as u32)
    } as u32;
    // The kernel's sums are over words in memory order, as for `frame::difference`.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    Checksum::from_folded(u16::from_be(folded as u16))
}
