//! The frame that a program processes: all access to packet bytes, for both hooks.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use pxe_common::tftp::HEADER_LEN;
use pxe_common::verdict::{Hook, Verdict};
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

/// Bytes before a block's data.
pub(crate) const HEAD_LEN: usize = HEADERS_LEN + HEADER_LEN;

/// Offset of the UDP checksum.
pub(crate) const UDP_CHECKSUM: u32 = 40;

/// A frame at one of the hooks.
pub(crate) trait Frame: EbpfContext {
    const HOOK: Hook;

    /// What a program at the hook returns.
    type Action;

    /// Translates a verdict into the hook's action.
    fn action(&self, verdict: Verdict) -> Self::Action;

    /// Its length in bytes, from the Ethernet header on.
    fn len(&self) -> usize;

    /// Whether the frame has a VLAN tag that is not in its bytes.
    fn has_hidden_tag(&self) -> bool;

    /// `N` bytes from offset `at`.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;

    /// Calls `read` with the first `N` bytes.
    fn read<const N: usize, T>(&self, read: impl FnOnce(&[u8; N]) -> T) -> Option<T>;

    /// Copies `len` bytes from offset `at` on.
    ///
    /// # Safety
    /// `bytes` is valid for `len` bytes, and `len` is not 0.
    unsafe fn load_at(&self, at: u32, bytes: *mut u8, len: u32) -> bool;

    /// Changes the frame's length. If that fails, the frame is unchanged.
    fn resize(&self, len: u32) -> bool;

    /// Overwrites `bytes` from offset `at`.
    ///
    /// # Safety
    /// `bytes` is valid for `len` bytes, and `len` is not 0.
    unsafe fn store(&self, at: u32, bytes: *const u8, len: u32) -> bool;

    /// Sends the frame in its present state out of the port where it arrived, and keeps it. Only at tc.
    fn send_copy(&self) -> bool;

    /// Overwrites the headers and the first bytes of payload after them, and corrects the UDP checksum. `head` must not
    /// be used afterwards.
    fn store_head<const N: usize>(&self, head: &mut [u8; N], change: &Change) -> bool;
}

/// The difference between a reply's UDP datagram and the request's.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    /// The request's checksum field.
    old_checksum: [u8; 2],
    /// The difference of the pseudo-headers.
    pseudo: Checksum,
    /// The difference between the datagrams' own sums.
    datagram: Checksum,
}

impl Change {
    /// From a request with this checksum field to its reply; with the sums of both payloads.
    #[inline(always)]
    pub(crate) fn new(
        old_checksum: [u8; 2],
        (old, old_payload): (&Datagram, Checksum),
        (new, new_payload): (&Datagram, Checksum),
    ) -> Self {
        let less = |sum: Checksum| !sum.folded();
        Self {
            old_checksum,
            pseudo: new.pseudo_header().word(less(old.pseudo_header())),
            datagram: new.sum(new_payload).word(less(old.sum(old_payload))),
        }
    }

    /// The same between two datagrams that differ only in their payload, here of this length and with this sum. Their
    /// addresses and ports are at most exchanged, which does not change a sum.
    #[inline(always)]
    pub(crate) fn of_payload(
        old_checksum: [u8; 2],
        (old_len, old): (u16, Checksum),
        (new_len, new): (u16, Checksum),
    ) -> Self {
        // Both headers contain the length.
        let longer = Checksum::ZERO.word(new_len).word(!old_len);
        Self { old_checksum, pseudo: longer, datagram: longer.word(new.folded()).word(!old.folded()) }
    }
}

pub(crate) struct Xdp(pub(crate) XdpContext);
pub(crate) struct Tc(pub(crate) TcContext);

impl EbpfContext for Xdp {
    fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl EbpfContext for Tc {
    fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl Frame for Xdp {
    const HOOK: Hook = Hook::Xdp;

    type Action = u32;

    #[inline(always)]
    fn action(&self, verdict: Verdict) -> u32 {
        match verdict {
            Verdict::Reply(_) | Verdict::Offer | Verdict::Ack => xdp_action::XDP_TX,
            Verdict::Drop(_) => xdp_action::XDP_DROP,
            Verdict::Pass(_) => xdp_action::XDP_PASS,
        }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: a plain helper call on the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as usize }
    }

    /// A tag that a NIC removes is not visible here.
    #[inline(always)]
    fn has_hidden_tag(&self) -> bool {
        false
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        // SAFETY: the bytes are the frame's, and bytes need no alignment.
        self.bytes(at).map(|bytes| unsafe { *bytes })
    }

    /// Read in place: a copy would take space on the stack.
    #[inline(always)]
    fn read<const N: usize, T>(&self, read: impl FnOnce(&[u8; N]) -> T) -> Option<T> {
        // SAFETY: as for `load`; nobody writes to the frame meanwhile.
        self.bytes(0).map(|bytes| read(unsafe { &*bytes }))
    }

    #[inline(always)]
    unsafe fn load_at(&self, at: u32, bytes: *mut u8, len: u32) -> bool {
        // SAFETY: the caller's.
        unsafe { bpf_xdp_load_bytes(self.0.ctx, at, bytes.cast(), len) == 0 }
    }

    #[inline(always)]
    fn resize(&self, len: u32) -> bool {
        let by = len as i32 - self.len() as i32;
        // SAFETY: a plain helper call; no pointer into the frame is held.
        by == 0 || unsafe { bpf_xdp_adjust_tail(self.0.ctx, by) == 0 }
    }

    #[inline(always)]
    unsafe fn store(&self, at: u32, bytes: *const u8, len: u32) -> bool {
        // SAFETY: the caller's.
        unsafe { bpf_xdp_store_bytes(self.0.ctx, at, bytes.cast_mut().cast(), len) == 0 }
    }

    #[inline(always)]
    fn send_copy(&self) -> bool {
        false
    }

    /// The frame has no checksum state: the field gets the complete sum from `head`.
    #[inline(always)]
    fn store_head<const N: usize>(&self, head: &mut [u8; N], _: &Change) -> bool {
        let Some(bytes) = self.bytes::<N>(0) else { return false };
        // Byte by byte, in this order: as one value they would be on the stack in between.
        let mut i = 0;
        while i < N {
            // SAFETY: as for `load`; nobody else has the frame.
            unsafe { (*bytes)[i] = head[i] };
            i += 1;
        }
        true
    }
}

impl Xdp {
    /// `N` bytes from offset `at`, in place. Only in the frame's first buffer: what is read here is headers and a few
    /// bytes after them, and frames that a driver splits there are left to tc. A helper would cost a call and two
    /// copies each time.
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: u32) -> Option<*mut [u8; N]> {
        let bytes = self.0.data() + at as usize;
        (bytes + N <= self.0.data_end()).then_some(bytes as *mut [u8; N])
    }
}

impl Tc {
    fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.0.skb.skb).ifindex }
    }
}

impl Frame for Tc {
    const HOOK: Hook = Hook::Tc;

    type Action = i32;

    #[inline(always)]
    fn action(&self, verdict: Verdict) -> i32 {
        match verdict {
            // SAFETY: a plain helper call; it only notes where the frame goes when we return.
            Verdict::Reply(_) | Verdict::Offer | Verdict::Ack => unsafe {
                bpf_redirect(self.ifindex(), 0) as i32
            },
            Verdict::Drop(_) => TC_ACT_SHOT,
            // Not TC_ACT_OK, which would skip other owners' programs on this port.
            Verdict::Pass(_) => TC_ACT_UNSPEC,
        }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len() as usize
    }

    /// The kernel moves the outer tag into the skb's own fields before tc (`__netif_receive_skb_core`), unless a NIC
    /// has already done so.
    #[inline(always)]
    fn has_hidden_tag(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes to an array of N, or fails (and fills it with zeros).
        unsafe {
            let done = bpf_skb_load_bytes(self.0.skb.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32);
            (done == 0).then_some(bytes.assume_init())
        }
    }

    #[inline(always)]
    fn read<const N: usize, T>(&self, read: impl FnOnce(&[u8; N]) -> T) -> Option<T> {
        self.load(0).map(|bytes| read(&bytes))
    }

    #[inline(always)]
    unsafe fn load_at(&self, at: u32, bytes: *mut u8, len: u32) -> bool {
        // SAFETY: the caller's.
        unsafe { bpf_skb_load_bytes(self.0.skb.skb.cast(), at, bytes.cast(), len) == 0 }
    }

    #[inline(always)]
    fn resize(&self, len: u32) -> bool {
        // SAFETY: a plain helper call; no pointer into the frame is held.
        len as usize == self.len() || unsafe { bpf_skb_change_tail(self.0.skb.skb, len, 0) == 0 }
    }

    #[inline(always)]
    unsafe fn store(&self, at: u32, bytes: *const u8, len: u32) -> bool {
        // RECOMPUTE_CSUM keeps the sum that a NIC may have computed up to date (CHECKSUM_COMPLETE). It costs nothing
        // for a frame that has grown, because growing discards that sum.
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: the caller's.
        unsafe { bpf_skb_store_bytes(self.0.skb.skb, at, bytes.cast(), len, flags) == 0 }
    }

    #[inline(always)]
    fn send_copy(&self) -> bool {
        // SAFETY: a plain helper call; no pointer into the frame is held.
        unsafe { bpf_clone_redirect(self.0.skb.skb, self.ifindex(), 0) == 0 }
    }

    /// The field of an skb from a veth, tap or virtio peer may contain only the pseudo-header's sum, to be completed at
    /// transmission (CHECKSUM_PARTIAL), and a program can't see which it is. So the old value stays, and the helper
    /// applies the difference as the skb's state requires: the pseudo-header's in both cases, the datagram's only to a
    /// complete sum.
    #[inline(always)]
    fn store_head<const N: usize>(&self, head: &mut [u8; N], change: &Change) -> bool {
        let at = UDP_CHECKSUM as usize;
        [head[at], head[at + 1]] = change.old_checksum;
        // A field of zero means that the client sends no checksums, so it gets none either.
        let flags = u64::from(BPF_F_MARK_MANGLED_0);
        let skb = self.0.skb.skb;
        let at = UDP_CHECKSUM;
        // SAFETY: the array is as long as we say, and the offset lies in what was just stored.
        unsafe {
            self.store(0, head.as_ptr(), N as u32)
                && bpf_l4_csum_replace(skb, at, 0, difference(change.datagram), flags) == 0
                && bpf_l4_csum_replace(
                    skb,
                    at,
                    0,
                    difference(change.pseudo),
                    flags | u64::from(BPF_F_PSEUDO_HDR),
                ) == 0
        }
    }
}

/// A sum in the kernel's form: over words in memory order (RFC 1071 section 2(B)).
#[inline(always)]
fn difference(sum: Checksum) -> u64 {
    u64::from(sum.folded().to_be())
}
