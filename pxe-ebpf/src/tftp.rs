//! From an ACK to the next blocks.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns, bpf_loop};
use aya_log_ebpf::debug;
use pxe_common::map::{Event, EventKind, MAX_PIECES, PIECE_LEN, SessionKey};
use pxe_common::tftp::{self, BlockNo, HEADER_LEN, Step, packet};
use pxe_common::verdict::{Drop, Hook, Pass, Verdict};
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN, HeaderSums};

use crate::frame::{Change, Frame, HEAD_LEN, UDP_CHECKSUM};
use crate::{bounds, maps};

/// Answers a datagram that belongs to a transfer in the kernel.
///
/// Everything that can fail for the first block is done before the frame is changed, and the session advances only
/// after that block is in the frame. So a frame that is passed is unchanged, and so is its session.
#[inline(never)]
pub(crate) fn answer<F: Frame>(frame: &F, packet: &Datagram) -> Result<Verdict, Pass> {
    let session = maps::session(&SessionKey::of(packet)).ok_or(Pass::of_port(packet.destination_port))?;
    if !session.stations.are_of(packet) {
        return Err(Pass::TftpStation);
    }
    let [old_checksum @ .., a, b, c, d]: [u8; 6] = frame.load(UDP_CHECKSUM).ok_or(Pass::TftpNotAck)?;
    let payload = [a, b, c, d];
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_ns() };
    if session.expired(now) {
        return Err(Pass::TftpExpired);
    }
    if packet::is_error(payload) && packet.payload_len as usize >= HEADER_LEN {
        session.end();
        let told = tell::<F>(packet, EventKind::Aborted, u16::from_be_bytes([c, d]));
        return ended(told, Drop::TftpAborted);
    }
    let number = packet::ack(payload).filter(|_| packet.payload_len as usize == HEADER_LEN);
    let number = number.ok_or(Pass::TftpNotAck)?;

    let sending = maps::sending().ok_or(Pass::TftpNoBlob)?;
    sending.transfer = session.transfer;
    let blocks = match sending.transfer.on_ack(number, now) {
        Step::Send(blocks) => blocks,
        Step::Finished => {
            session.transfer = sending.transfer;
            return ended(tell::<F>(packet, EventKind::Finished, 0), Drop::TftpFinished);
        }
        Step::Duplicate => return Ok(Verdict::Drop(Drop::TftpDuplicate)),
        Step::Stale => return Ok(Verdict::Drop(Drop::TftpStale)),
    };
    // XDP can't send a second frame, so it answers only with a single block.
    if F::HOOK == Hook::Xdp && blocks.first != blocks.last {
        return Err(Pass::TftpWindow);
    }
    sending.blob = session.blob;
    sending.sums = session.sums;
    sending.index = blocks.first;
    sending.bytes = 0;
    sending.state = State::Untouched;
    sending.held =
        Held { payload_len: packet.payload_len, sum: Checksum::ZERO.quad(payload), checksum: old_checksum };
    if let Some(headers) = sending.head.first_chunk_mut() {
        sending.header_sums = packet.reply(0).write(headers);
    }
    next_block(0, frame);
    // Looked up again, because until here only the other function may hold references.
    let sending = maps::sending().ok_or(Pass::TftpNoBlob)?;
    match sending.state {
        State::Whole => {}
        State::Untouched => return Err(Pass::TftpNoBlob),
        State::NoRoom => return Err(Pass::NoRoom),
        State::Broken => return Ok(Verdict::Drop(Drop::Unwritable)),
    }
    let marked = session.transfer.marks() != sending.transfer.marks();
    session.transfer = sending.transfer;
    if marked {
        tell::<F>(packet, EventKind::Mark, 0);
    }
    let sent = blocks.last - blocks.first + 1;
    match F::HOOK {
        Hook::Xdp => session.sent_by_xdp += sent,
        Hook::Tc => session.sent_by_tc += sent,
    }
    debug!(frame, "tftp: blocks {} to {} for {:i}", blocks.first, blocks.last, packet.source);
    if F::HOOK == Hook::Tc && sent > 1 {
        let step: extern "C" fn(u32, &F) -> i64 = next_block;
        let frame: *const F = frame;
        // SAFETY: the callback gets the frame that it expects, which outlives the call.
        unsafe { bpf_loop(sent - 1, step as *mut c_void, frame.cast_mut().cast(), 0) };
        if sending.state != State::Whole {
            // Part of the window was sent. The client acknowledges that part, and gets the rest.
            return Ok(Verdict::Drop(Drop::Unwritable));
        }
    }
    Ok(Verdict::Reply(sending.bytes))
}

/// Notifies the daemon of a transfer's event. A separate function, so that it takes no stack while a block is sent.
#[inline(never)]
fn tell<F: Frame>(packet: &Datagram, kind: EventKind, code: u16) -> bool {
    let key = SessionKey::of(packet);
    let event = Event {
        // SAFETY: a plain helper call.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        kind: kind as u16,
        hook: F::HOOK as u16,
        address: key.client,
        body: Event::of_transfer(&key, code),
    };
    maps::tell(F::HOOK, &event)
}

/// The verdict on a transfer's last packet.
#[inline(always)]
fn ended(told: bool, told_by_event: Drop) -> Result<Verdict, Pass> {
    if told { Ok(Verdict::Drop(told_by_event)) } else { Err(Pass::TftpUntold) }
}

/// One answer, block after block through the same frame: working space that is too large for the stack.
#[derive(Clone, Copy)]
pub(crate) struct Sending {
    /// The next block's headers, without what [`HeaderSums::fill`] and the block itself put in.
    head: [u8; HEAD_LEN],
    header_sums: HeaderSums,
    blob: u32,
    sums: u32,
    transfer: tftp::Session,
    /// The block that is written into the frame next.
    index: u32,
    held: Held,
    /// Bytes of the blob in all frames.
    bytes: u32,
    state: State,
}

/// The frame's contents: the length of the UDP payload, its sum, and the UDP checksum field.
#[derive(Clone, Copy)]
struct Held {
    payload_len: u16,
    sum: Checksum,
    checksum: [u8; 2],
}

/// The frame's state.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// It contains the request.
    Untouched,
    /// It still contains the request, because its buffer can't grow.
    NoRoom,
    /// It contains a block.
    Whole,
    /// It is unusable.
    Broken,
}

/// Sends the block in the frame, if there is one, and writes the next one into it.
///
/// A separate function, which `bpf_loop` also calls.
#[inline(never)]
extern "C" fn next_block<F: Frame>(_: u32, frame: &F) -> i64 {
    let Some(sending) = maps::sending() else { return 1 };
    if sending.state == State::Whole {
        sending.state = State::Broken;
        if !frame.send_copy() {
            return 1;
        }
        let Some(checksum) = frame.load(UDP_CHECKSUM) else { return 1 };
        sending.held.checksum = checksum;
    }
    sending.put(frame);
    i64::from(sending.state != State::Whole)
}

impl Sending {
    /// Writes block `index` into the frame.
    #[inline(always)]
    fn put<F: Frame>(&mut self, frame: &F) {
        let len = self.transfer.len_of(self.index);
        let offset = self.transfer.offset_of(self.index);
        let Some(bytes) = maps::bytes_at(self.blob, offset) else { return };
        let Some(data_sum) = maps::sum_of(self.sums, self.index) else { return };
        let frame_len = HEAD_LEN + len as usize;
        if !frame.resize(frame_len as u32) {
            if self.state == State::Untouched {
                self.state = State::NoRoom;
            }
            return;
        }
        self.state = State::Broken;
        if !store_piece(frame, 0, bytes, len) || !self.store_rest(frame, offset, len) {
            return;
        }
        let data @ [a, b, c, d] = packet::data_header(BlockNo::of(self.index));
        let sum = data_sum.word(u16::from_be_bytes([a, b])).word(u16::from_be_bytes([c, d]));
        let payload_len = HEADER_LEN as u16 + len;
        if let Some((headers, payload)) = self.head.split_first_chunk_mut::<HEADERS_LEN>() {
            self.header_sums.fill(headers, payload_len, sum);
            payload.copy_from_slice(&data);
        }
        let old = (self.held.payload_len, self.held.sum);
        let change = Change::of_payload(self.held.checksum, old, (payload_len, sum));
        if frame.store_head(&mut self.head, &change) {
            self.state = State::Whole;
        }
        self.held.payload_len = payload_len;
        self.held.sum = sum;
        self.index += 1;
        self.bytes += u32::from(len);
    }

    /// The rest of a block after its first piece: only in a jumbo frame is there any.
    #[inline(always)]
    fn store_rest<F: Frame>(&self, frame: &F, offset: u64, len: u16) -> bool {
        let mut piece = 1;
        while piece < MAX_PIECES {
            let at = (piece * PIECE_LEN) as u16;
            if len <= at {
                break;
            }
            let Some(bytes) = maps::bytes_at(self.blob, offset + u64::from(at)) else { return false };
            if !store_piece(frame, at, bytes, len - at) {
                return false;
            }
            piece += 1;
        }
        true
    }
}

/// Copies at most a piece of the `left` bytes into the frame, from the block's byte `at` on. The helpers reject empty
/// copies.
#[inline(always)]
fn store_piece<F: Frame>(frame: &F, at: u16, bytes: *const u8, left: u16) -> bool {
    if left == 0 {
        return true;
    }
    let len = bounds::at_most::<{ PIECE_LEN as u64 }>(u64::from(left));
    // SAFETY: `bytes_at` gives at least PIECE_LEN bytes.
    unsafe { frame.store(HEAD_LEN as u32 + u32::from(at), bytes, len) }
}
