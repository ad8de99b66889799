//! The layout of everything that the daemon and the kernel programs exchange.
//!
//! ```text
//! XDP_PARTS, TC_PARTS  part -> program        what a hook's entry jumps to
//! SESSIONS  client, server, ports -> Session { transfer, blob, sums, .. }
//! BLOBS     blob -> array of Chunk          the blob's bytes
//! SUMS      sums -> array of SumPage        its blocks' checksums, for one block size
//! LEASES    MAC -> Lease { durable_until, grant }
//! EVENTS    a ring of Event: what the programs did
//! COUNTERS  hook and reason -> frames, per CPU
//! ```
//!
//! A blob is published by filling an array that no program can see yet, and then entering it in `BLOBS`. That is one
//! map operation, so a program sees all of it or nothing. When the entry is deleted, the kernel frees the array after
//! the last program that looked it up has returned.

use crate::Mac;
use crate::dhcp::{self, Firmware};
use crate::tftp;
use crate::verdict::{self, Hook};
use crate::wire::Datagram;

/// Incremented with every change of a struct here, of [`tftp::Session`], of [`dhcp::Grant`] or of the counters' order.
pub const LAYOUT_VERSION: u32 = 6;

/// The names of maps and programs in the object.
pub mod name {
    use super::{Hook, Part};

    /// [`Part`] to its program at XDP.
    pub const XDP_PARTS: &str = "XDP_PARTS";
    /// [`Part`] to its program at tc.
    pub const TC_PARTS: &str = "TC_PARTS";
    /// [`SessionKey`](super::SessionKey) to [`Session`](super::Session).
    pub const SESSIONS: &str = "SESSIONS";
    /// Number of a blob to its [`Chunk`](super::Chunk)s.
    pub const BLOBS: &str = "BLOBS";
    /// Number of a table of sums to its [`SumPage`](super::SumPage)s.
    pub const SUMS: &str = "SUMS";
    /// [`Mac`](crate::Mac) to [`Lease`](super::Lease).
    pub const LEASES: &str = "LEASES";
    /// [`Event`](super::Event)s.
    pub const EVENTS: &str = "EVENTS";
    /// Frames by hook and reason.
    pub const COUNTERS: &str = "COUNTERS";
    /// The maps that are pinned, so that the programs keep working when the daemon ends.
    pub const KEPT: [&str; 8] = [XDP_PARTS, TC_PARTS, SESSIONS, BLOBS, SUMS, LEASES, EVENTS, COUNTERS];

    /// The map of a hook's parts.
    pub const fn parts(hook: Hook) -> &'static str {
        match hook {
            Hook::Xdp => XDP_PARTS,
            Hook::Tc => TC_PARTS,
        }
    }

    /// The program that is attached to a hook.
    pub const fn entry(hook: Hook) -> &'static str {
        match hook {
            Hook::Xdp => "bridgehead_xdp",
            Hook::Tc => "bridgehead_tc",
        }
    }

    /// A part's program.
    pub const fn part(hook: Hook, part: Part) -> &'static str {
        match (hook, part) {
            (Hook::Xdp, Part::Dhcp) => "xdp_dhcp",
            (Hook::Xdp, Part::Tftp) => "xdp_tftp",
            (Hook::Tc, Part::Dhcp) => "tc_dhcp",
            (Hook::Tc, Part::Tftp) => "tc_tftp",
        }
    }
}

/// A program that a hook's entry tail-calls. The kernel may reject one and accept the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// Requests for addresses.
    Dhcp,
    /// The ACKs of transfers.
    Tftp,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; PARTS] = [Self::Dhcp, Self::Tftp];
}

/// The number of parts of a hook.
pub const PARTS: usize = 2;

/// Maximum number of transfers in the kernel.
pub const MAX_SESSIONS: usize = 16_384;
/// Maximum number of blobs in the kernel.
pub const MAX_BLOBS: usize = 4_096;
/// Maximum number of tables of sums: one per blob and block size.
pub const MAX_SUMS: usize = 8_192;
/// Maximum number of machines that the kernel answers. An entry takes 1.4 KB of memory, once it is used.
pub const MAX_LEASES: usize = 262_144;
/// Bytes of the ring buffer, a power of two: 26,000 events, a second of the fastest storm.
pub const EVENTS_BYTES: usize = 1 << 20;
/// The programs on one CPU wake the daemon at most this often. The daemon finds the events in between by polling again,
/// after each event and more than this time later.
pub const WAKES_EVERY_NS: u64 = 1_000_000;
/// Entries of `COUNTERS`.
pub const COUNTERS_LEN: usize = 2 * verdict::COUNTERS_PER_HOOK;

/// Bytes from one chunk's beginning to the next one's.
pub const CHUNK_STRIDE: usize = 1 << 16;
/// The most that one helper call copies to a frame: a whole block on Ethernet without jumbo frames.
pub const PIECE_LEN: usize = 2_048;
/// Maximum number of pieces of a block.
pub const MAX_PIECES: usize = 5;
/// The largest block that the programs send: jumbo frames hold 9,000 bytes, some slightly more.
pub const MAX_BLKSIZE: u16 = (MAX_PIECES * PIECE_LEN) as u16;

/// 64 KiB of a blob and the next 2 KiB, so that every piece is contiguous in one chunk.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Chunk(pub [u8; CHUNK_STRIDE + PIECE_LEN]);

/// Sums in a page.
pub const SUMS_PER_PAGE: usize = 1_024;

/// The [folded](crate::wire::Checksum::folded) sums of consecutive blocks' bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct SumPage(pub [u16; SUMS_PER_PAGE]);

/// The two ends of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SessionKey {
    /// The client's address.
    pub client: [u8; 4],
    /// The server's address.
    pub server: [u8; 4],
    /// The client's port, its transfer identifier (RFC 1350 section 4).
    pub client_port: u16,
    /// The server's port, likewise.
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
/// After the daemon has created an entry, only the programs write to it. They use it for the time of one frame. The
/// daemon removes it only when nothing came for seconds or the transfer is over, so that a slot is not reused while a
/// program still writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    /// The transfer's progress.
    pub transfer: tftp::Session,
    /// The blob: key of `BLOBS`.
    pub blob: u32,
    /// The blob's sums for the transfer's block size: key of `SUMS`.
    pub sums: u32,
    /// The grant expires when nothing was sent for this long.
    pub idle_ns: u64,
    /// When the daemon created the entry.
    pub opened_ns: u64,
    /// Blocks that the XDP program sent, including retransmissions.
    pub sent_by_xdp: u32,
    /// Blocks that the tc program sent, including retransmissions.
    pub sent_by_tc: u32,
    /// The stations of the transfer. Frames from others, or to others, don't belong to it.
    pub stations: Stations,
    /// Explicit, because a map value must have no padding.
    pub unused: [u8; 4],
}

/// The two stations of a transfer, as in its request's frame.
///
/// An address and a port are easily guessed, and easily forged in a packet. The station's hardware address decides
/// where a switch sends the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Stations {
    /// The client, or the router in front of it.
    pub client: Mac,
    /// The appliance.
    pub server: Mac,
}

impl Stations {
    /// Unknown stations: only addresses and ports are compared.
    pub const ANY: Self = Self { client: Mac([0; 6]), server: Mac([0; 6]) };

    /// The stations of a client's packet.
    #[inline(always)]
    pub fn of(packet: &Datagram) -> Self {
        Self { client: packet.source_mac, server: packet.destination_mac }
    }

    /// Whether a client's packet is between these stations.
    #[inline(always)]
    pub fn are_of(&self, packet: &Datagram) -> bool {
        self.client == Self::ANY.client
            || (self.client == packet.source_mac && self.server == packet.destination_mac)
    }
}

impl Session {
    /// Ends the grant.
    #[inline(always)]
    pub fn end(&mut self) {
        self.idle_ns = 0;
    }

    /// Whether the grant was [ended](Session::end), as opposed to expired.
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

/// A grant: whenever this machine asks, it may be told that it has this address for a full lease time, as long as the
/// stored lease covers that.
///
/// The daemon replaces an entry as a whole. A program that sees the machine return its address removes the entry before
/// the daemon learns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// The end of the lease in the store, by CLOCK_BOOTTIME.
    pub durable_until_ns: u64,
    /// The boot segment's netmask.
    pub netmask: [u8; 4],
    /// The bridge's own, the source of replies.
    pub server_mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
    /// The contents of the replies.
    pub grant: dhcp::Grant,
}

/// Something that a program did, reported to the daemon. The fields common to all kinds come first;
/// [`body`](Event::body) depends on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// [`EventKind`].
    pub kind: u16,
    /// [`verdict::Hook`].
    pub hook: u16,
    /// The client's address.
    pub address: [u8; 4],
    /// Depends on the kind.
    pub body: [u8; 16],
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EventKind {
    /// A DHCPOFFER left. Body: [`Event::client`].
    Offer = 1,
    /// A DHCPACK of a lease left. Body: [`Event::client`].
    Ack = 2,
    /// A transfer passed one of its [marks](tftp::Session::marks). Body: [`Event::transfer`].
    Mark = 3,
    /// A transfer's last block was acknowledged. Body: [`Event::transfer`].
    Finished = 4,
    /// The client ended its transfer by an ERROR. Body: [`Event::transfer`].
    Aborted = 5,
}

impl Event {
    /// Bytes of an event.
    pub const LEN: usize = size_of::<Self>();

    /// Reads an event from its bytes in the ring.
    pub fn read(bytes: &[u8; Self::LEN]) -> Self {
        fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
            core::array::from_fn(|i| bytes[offset + i])
        }
        Self {
            time_ns: u64::from_ne_bytes(at(bytes, 0)),
            kind: u16::from_ne_bytes(at(bytes, 8)),
            hook: u16::from_ne_bytes(at(bytes, 10)),
            address: at(bytes, 12),
            body: at(bytes, 16),
        }
    }

    /// The kind; `None` if this build does not know it.
    pub fn kind(&self) -> Option<EventKind> {
        use EventKind::{Aborted, Ack, Finished, Mark, Offer};
        [Offer, Ack, Mark, Finished, Aborted].into_iter().find(|kind| *kind as u16 == self.kind)
    }

    /// The body of DHCP's events.
    #[inline(always)]
    pub fn of_client(mac: Mac, firmware: Firmware) -> [u8; 16] {
        let ([a, b, c, d, e, f], [slot, x, y]) = (mac.0, firmware.encode());
        [a, b, c, d, e, f, slot, x, y, 0, 0, 0, 0, 0, 0, 0]
    }

    /// The client, in DHCP's events.
    pub fn client(&self) -> (Mac, Firmware) {
        let [a, b, c, d, e, f, slot, x, y, ..] = self.body;
        (Mac([a, b, c, d, e, f]), Firmware::decode([slot, x, y]))
    }

    /// The body of TFTP's events; the event's address is the client's. `code` is an ERROR's.
    #[inline(always)]
    pub fn of_transfer(key: &SessionKey, code: u16) -> [u8; 16] {
        let [a, b, c, d] = key.server;
        let ([e, f], [g, h]) = (key.client_port.to_ne_bytes(), key.server_port.to_ne_bytes());
        let [i, j] = code.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, 0, 0, 0, 0, 0, 0]
    }

    /// The transfer, in TFTP's events, and the ERROR's code.
    pub fn transfer(&self) -> (SessionKey, u16) {
        let [a, b, c, d, e, f, g, h, i, j, ..] = self.body;
        let key = SessionKey {
            client: self.address,
            server: [a, b, c, d],
            client_port: u16::from_ne_bytes([e, f]),
            server_port: u16::from_ne_bytes([g, h]),
        };
        (key, u16::from_ne_bytes([i, j]))
    }
}

// The layout is the same for both compilers, and has no padding that could contain garbage.
const _: () = {
    assert!(size_of::<SessionKey>() == 12);
    assert!(size_of::<tftp::Session>() == 32);
    assert!(size_of::<Session>() == 32 + 2 * 4 + 2 * 8 + 2 * 4 + 2 * 6 + 4);
    assert!(size_of::<dhcp::Grant>() == 4 + 4 + 3 * 4 + 2 + 2 + 256 + 6 * (4 + 16 + 64 + 2 + 100));
    assert!(size_of::<Lease>() == 8 + 4 + 6 + 2 + size_of::<dhcp::Grant>());
    assert!(size_of::<Event>() == 8 + 2 + 2 + 4 + 16);
    assert!(size_of::<Chunk>() == CHUNK_STRIDE + PIECE_LEN);
    assert!(size_of::<SumPage>() == 2 * SUMS_PER_PAGE);
};
