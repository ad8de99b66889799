//! Packets in a packet socket's ring, shared with the kernel (packet(7), PACKET_RX_RING with TPACKET_V2): while there are
//! any, reading takes no system call.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{setsockopt, sockopt};

/// Bytes of a slot: more than any frame here and its header have.
const SLOT: usize = 2048;
/// Several times as many as there are exchanges at a time, and few enough to stay in the CPU's cache.
const SLOTS: usize = 256;
/// Slots come in blocks of whole pages.
const BLOCK: usize = 1 << 16;
const LEN: usize = SLOT * SLOTS;

#[derive(Clone, Copy, Debug)]
struct Version;
nix::setsockopt_impl!(
    Version,
    libc::SOL_PACKET,
    libc::PACKET_VERSION,
    libc::c_int,
    sockopt::SetStruct<'_, libc::c_int>
);

#[derive(Clone, Copy, Debug)]
struct RxRing;
nix::setsockopt_impl!(
    RxRing,
    libc::SOL_PACKET,
    libc::PACKET_RX_RING,
    libc::tpacket_req,
    sockopt::SetStruct<'_, libc::tpacket_req>
);

pub(super) struct Ring {
    slots: NonNull<u8>,
    /// The next slot to look at.
    next: usize,
    /// Whether the one before it is still ours.
    held: bool,
}

impl Ring {
    /// The socket's ring, which receives all its packets from now on.
    pub(super) fn new(socket: &impl AsFd) -> Result<Self> {
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        setsockopt(socket, Version, &version).context("PACKET_VERSION")?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (LEN / BLOCK) as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: SLOTS as u32,
        };
        setsockopt(socket, RxRing, &request).context("PACKET_RX_RING")?;
        let len = LEN.try_into().expect("it is not empty");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a mapping at a place of the kernel's choice touches no other memory.
        let slots = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, socket, 0) };
        Ok(Self { slots: slots.context("mapping the ring")?.cast(), next: 0, held: false })
    }

    /// Waits until there is a packet, at most this long.
    pub(super) fn wait(&mut self, socket: &impl AsFd, patience: Duration) -> Result<()> {
        self.release();
        if self.is_filled() {
            return Ok(());
        }
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(patience).context("a short wait")?) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("waiting for packets"),
        }
    }

    /// The next packet, if there is one.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        self.release();
        if !self.is_filled() {
            return None;
        }
        let slot = self.slot(self.next);
        self.next = (self.next + 1) % SLOTS;
        self.held = true;
        // SAFETY: the kernel has filled the slot, beginning with this header, and leaves it alone until it is given
        // back, for which `self` must be borrowed anew.
        unsafe {
            let header = slot.cast::<libc::tpacket2_hdr>().as_ref();
            let (at, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
            let len = len.min(SLOT.saturating_sub(at));
            Some(std::slice::from_raw_parts(slot.add(at.min(SLOT)).as_ptr(), len))
        }
    }

    fn is_filled(&self) -> bool {
        self.status(self.next).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Returns the last packet's slot to the kernel.
    fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            let slot = (self.next + SLOTS - 1) % SLOTS;
            self.status(slot).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
    }

    fn slot(&self, index: usize) -> NonNull<u8> {
        // SAFETY: the mapping has all slots.
        unsafe { self.slots.add(index * SLOT) }
    }

    /// The owner of a slot.
    fn status(&self, index: usize) -> &AtomicU32 {
        // SAFETY: `tp_status` is the header's first word, aligned as the slot is, and never accessed but like this.
        unsafe { AtomicU32::from_ptr(self.slot(index).cast().as_ptr()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: nobody borrows from it any more, and it is mapped once.
        let _ = unsafe { munmap(self.slots.cast(), LEN) };
    }
}
