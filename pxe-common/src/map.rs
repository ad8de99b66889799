//! The layout of everything that the daemon and the kernel programs exchange.
//!
//! ```text
//! SESSIONS  client, server, ports -> Session { transfer, blob, sums, .. }
//! BLOBS     blob -> array of Chunk          the blob's bytes
//! SUMS      sums -> array of SumPage        its blocks' checksums, for one block size
//! COUNTERS  hook and reason -> frames, per CPU
//! ```
//!
//! A blob is published by filling an array nobody sees and then entering it in `BLOBS`: one
//! map operation, so a program sees all of it or nothing. Taking the entry out frees the array
//! when the last program that looked it up has returned.

use crate::tftp;
use crate::verdict;
use crate::wire::Datagram;

/// Grows with every change of a struct here, of [`tftp::Session`] or of the counters' order.
pub const LAYOUT_VERSION: u32 = 2;

/// The maps' names in the object.
pub mod name {
    /// [`SessionKey`](super::SessionKey) to [`Session`](super::Session).
    pub const SESSIONS: &str = "SESSIONS";
    /// Number of a blob to its [`Chunk`](super::Chunk)s.
    pub const BLOBS: &str = "BLOBS";
    /// Number of a table of sums to its [`SumPage`](super::SumPage)s.
    pub const SUMS: &str = "SUMS";
    /// Frames by hook and reason.
    pub const COUNTERS: &str = "COUNTERS";
    /// The maps that go on when the daemon ends, with what the programs do by them.
    pub const KEPT: [&str; 4] = [SESSIONS, BLOBS, SUMS, COUNTERS];
    /// The program for XDP.
    pub const XDP: &str = "bridgehead_xdp";
    /// The program for tc.
    pub const TC: &str = "bridgehead_tc";
}

/// Transfers in the kernel at a time.
pub const MAX_SESSIONS: usize = 16_384;
/// Blobs in the kernel at a time.
pub const MAX_BLOBS: usize = 4_096;
/// Tables of sums: blobs times the block sizes they are asked for in.
pub const MAX_SUMS: usize = 8_192;
/// Entries of `COUNTERS`.
pub const COUNTERS_LEN: usize = 2 * verdict::COUNTERS_PER_HOOK;

/// Bytes from one chunk's beginning to the next one's.
pub const CHUNK_STRIDE: usize = 1 << 16;
/// What one helper call copies to a frame at most: all of a block on an Ethernet without jumbo
/// frames.
pub const PIECE_LEN: usize = 2_048;
/// Pieces of a block at most.
pub const MAX_PIECES: usize = 5;
/// The largest block that the programs send: jumbo frames hold 9,000 bytes, some a little more.
pub const MAX_BLKSIZE: u16 = (MAX_PIECES * PIECE_LEN) as u16;

/// 64 KiB of a blob and the 2 KiB after them, so that every piece lies in one chunk whole.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Chunk(pub [u8; CHUNK_STRIDE + PIECE_LEN]);

/// Sums in a page.
pub const SUMS_PER_PAGE: usize = 1_024;

/// The [folded](crate::wire::Checksum::folded) sums of consecutive blocks' bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct SumPage(pub [u16; SUMS_PER_PAGE]);

/// The ends of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SessionKey {
    /// The client's address.
    pub client: [u8; 4],
    /// The server's address.
    pub server: [u8; 4],
    /// The client's port, its transfer identifier (RFC 1350 section 4).
    pub client_port: u16,
    /// The server's, likewise.
    pub server_port: u16,
}

impl SessionKey {
    /// The transfer that a client's packet belongs to.
    #[inline(always)]
    pub fn of(packet: &Datagram) -> Self {
        Self {
            client: packet.source.octets(),
            server: packet.destination.octets(),
            client_port: packet.source_port,
            server_port: packet.destination_port,
        }
    }
}

/// A grant: this client may read this blob, block by block, while it keeps asking.
///
/// The programs alone write to an entry after the daemon made it. They hold on to it for the
/// time of one frame, and the daemon removes it only when nothing came for seconds or the
/// transfer is over, so that a slot is not reused under a program that still writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    /// How far it is.
    pub transfer: tftp::Session,
    /// Which blob: key of `BLOBS`.
    pub blob: u32,
    /// Its sums for the transfer's block size: key of `SUMS`.
    pub sums: u32,
    /// The grant ends when nothing was sent for this long.
    pub idle_ns: u64,
    /// When the daemon made the entry; the grant's beginning.
    pub opened_ns: u64,
    /// Blocks that the XDP program sent, repeats included.
    pub sent_by_xdp: u32,
    /// Blocks that the tc program sent, repeats included.
    pub sent_by_tc: u32,
}

impl Session {
    /// Ends the grant.
    #[inline(always)]
    pub fn end(&mut self) {
        self.idle_ns = 0;
    }

    /// Whether the grant was [ended](Session::end), and did not just run out.
    pub fn ended(&self) -> bool {
        self.idle_ns == 0
    }

    /// Whether the grant is over.
    #[inline(always)]
    pub fn expired(&self, now_ns: u64) -> bool {
        let active_ns = self.transfer.sent_ns();
        let since = if active_ns > self.opened_ns { active_ns } else { self.opened_ns };
        self.idle_ns == 0 || now_ns.saturating_sub(since) > self.idle_ns
    }
}

// The layout is the same for both compilers, and has no padding that could hold garbage.
const _: () = {
    assert!(size_of::<SessionKey>() == 12);
    assert!(size_of::<tftp::Session>() == 32);
    assert!(size_of::<Session>() == 32 + 2 * 4 + 2 * 8 + 2 * 4);
    assert!(size_of::<Chunk>() == CHUNK_STRIDE + PIECE_LEN);
    assert!(size_of::<SumPage>() == 2 * SUMS_PER_PAGE);
};
