//! An ACK in, the next block out.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use pxe_common::map::{MAX_BLKSIZE, SessionKey};
use pxe_common::tftp::{BlockNo, HEADER_LEN, Step, packet};
use pxe_common::verdict::{Drop, Hook, Pass, Verdict};
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use crate::frame::{Change, Frame, HEAD_LEN};
use crate::maps;

/// Answers a datagram that belongs to a transfer in the kernel.
///
/// Everything that can fail is done before the frame is touched, and the session moves on only
/// after the block is in the frame: what is passed is unchanged, and so is its session.
#[inline(always)]
pub(crate) fn answer<F: Frame>(frame: &F, packet: &Datagram) -> Result<Verdict, Pass> {
    let session = maps::session(&SessionKey::of(packet)).ok_or(Pass::of_port(packet.destination_port))?;
    let head: [u8; HEAD_LEN] = frame.load().ok_or(Pass::TftpNotAck)?;
    let ack = [head[42], head[43], head[44], head[45]];
    let number = packet::ack(ack).filter(|_| packet.payload_len as usize == HEADER_LEN);
    let number = number.ok_or(Pass::TftpNotAck)?;

    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_ns() };
    if session.expired(now) {
        return Err(Pass::TftpExpired);
    }
    let mut transfer = session.transfer;
    let blocks = match transfer.on_ack(number, now) {
        Step::Send(blocks) => blocks,
        Step::Finished => {
            session.transfer = transfer;
            return Err(Pass::TftpFinished);
        }
        Step::Duplicate => return Ok(Verdict::Drop(Drop::TftpDuplicate)),
        Step::Stale => return Ok(Verdict::Drop(Drop::TftpStale)),
    };
    if blocks.first != blocks.last {
        return Err(Pass::TftpWindow);
    }
    let index = blocks.first;
    let len = transfer.len_of(index);
    let bytes = maps::bytes_at(session.blob, transfer.offset_of(index)).ok_or(Pass::TftpNoBlob)?;
    let data_sum = maps::sum_of(session.sums, index).ok_or(Pass::TftpNoBlob)?;

    let [a, b, c, d] = packet::data_header(BlockNo::of(index));
    let sum = data_sum.word(u16::from_be_bytes([a, b])).word(u16::from_be_bytes([c, d]));
    let reply = packet.reply(HEADER_LEN as u16 + len);
    let mut out = [0; HEAD_LEN];
    out[..HEADERS_LEN].copy_from_slice(&reply.headers(sum));
    [out[42], out[43], out[44], out[45]] = [a, b, c, d];
    let change = Change::new([head[40], head[41]], (packet, Checksum::ZERO.quad(ack)), (&reply, sum));
    if !frame.resize(HEAD_LEN as u32 + u32::from(len)) {
        return Err(Pass::NoRoom);
    }
    if !store_data(frame, bytes, len) || !frame.store_head(out, &change) {
        return Ok(Verdict::Drop(Drop::Unwritable));
    }
    session.transfer = transfer;
    match F::HOOK {
        Hook::Xdp => session.sent_by_xdp += 1,
        Hook::Tc => session.sent_by_tc += 1,
    }
    debug!(frame, "tftp: block {} to {:i}", index, packet.source);
    Ok(Verdict::Reply(len))
}

/// Copies a block into the frame. The helpers take no empty copy.
#[inline(always)]
fn store_data<F: Frame>(frame: &F, bytes: *const u8, len: u16) -> bool {
    if len == 0 {
        return true;
    }
    let len = u32::from(len);
    // The verifier wants the bounds on the very register that the helper gets; read like this, the
    // compiler can't check one copy of the value and pass another.
    // SAFETY: a reference is valid to read from.
    let len = unsafe { core::ptr::read_volatile(&len) };
    if len == 0 || len > u32::from(MAX_BLKSIZE) {
        return false;
    }
    // SAFETY: `bytes_at` gives at least MAX_BLKSIZE bytes.
    unsafe { frame.store(HEAD_LEN as u32, bytes, len) }
}
