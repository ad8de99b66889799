//! Many packets per system call: at hundreds of thousands a second the calls would be most of a client's work.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, recv, recvmmsg, sendmmsg};

/// Packets per call.
pub(super) const BATCH: usize = 64;
/// More bytes than any frame here has.
const LEN: usize = 2048;

/// Packets as they arrive.
pub(super) struct Received {
    buffers: Vec<[u8; LEN]>,
    lens: Vec<usize>,
    headers: MultiHeaders<()>,
}

impl Received {
    /// Room for this many at a time, at most [`BATCH`].
    pub(super) fn new(room: usize) -> Self {
        let room = room.clamp(1, BATCH);
        Self {
            buffers: vec![[0; LEN]; room],
            lens: Vec::new(),
            headers: MultiHeaders::preallocate(room, None),
        }
    }

    /// Waits for the first packet as the socket would, and takes all that are there. Returns how many.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        self.lens.clear();
        if let [buffer] = &mut self.buffers[..] {
            // For one at a time, as in lock-step, plain recv is cheaper.
            match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(len) => self.lens.push(len),
                Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => {}
                Err(e) => return Err(e).context("receiving"),
            }
            return Ok(self.lens.len());
        }
        let mut slices: Vec<_> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None) {
            Ok(packets) => self.lens.extend(packets.map(|p| p.bytes)),
            // ECONNREFUSED is an ICMP error for an earlier packet.
            Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(e) => return Err(e).context("receiving"),
        }
        Ok(self.lens.len())
    }

    pub(super) fn packets(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.lens.iter().zip(&self.buffers).map(|(len, buffer)| &buffer[..*len])
    }
}

/// Sends packets in batches.
pub(super) struct Sender {
    headers: MultiHeaders<()>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { headers: MultiHeaders::preallocate(BATCH, None) }
    }

    /// Sends them all. Packets for which there is no room are lost, as on a wire.
    pub(super) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> Result<()> {
        let slices: Vec<_> = packets.map(|packet| [IoSlice::new(packet)]).collect();
        let mut rest = &slices[..];
        while !rest.is_empty() {
            let nothing: [ControlMessage<'_>; 0] = [];
            let nowhere = [None; BATCH];
            let flags = MsgFlags::empty();
            rest = match sendmmsg(socket.as_raw_fd(), &mut self.headers, rest, nowhere, nothing, flags) {
                Ok(sent) => &rest[sent.count()..],
                Err(Errno::EINTR) => rest,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => &rest[1..],
                Err(e) => return Err(e).context("sending"),
            };
        }
        Ok(())
    }
}
