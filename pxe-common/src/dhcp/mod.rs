//! DHCP (RFC 2131), as far as kernel and daemon share it: the requests that real machines send, and the replies to
//! them.
//!
//! * [`request`]: parses a packet into a [`Request`], or gives the reason to [`Pass`] it on.
//! * [`firmware`]: the kind of client (a NIC's ROM, UEFI, iPXE, an operating system), and what it needs.
//! * [`reply`]: the only builder of replies, from a request and a [`Grant`].
//! * [`mod@covered`]: which requests a [`Lease`](crate::map::Lease) in the kernel answers, and where the reply is sent.
//!
//! Packets are in fixed [`Packet`] buffers, twice as long as the longest packet that is handled. So an index that is
//! masked to [`CAP`] stays inside the buffer after adding any option's length. Therefore the kernel's verifier (and the
//! compiler) accept the code without a check at every byte.

pub mod covered;
pub mod firmware;
pub mod reply;
pub mod request;

pub use covered::{Answer, Uncovered, covered};
pub use firmware::{Class, Firmware};
pub use reply::{Boot, Grant, Kind, TooLong, build};
pub use request::{MessageType, Pass, Relay, Request, Span, Walk, begin, finish, step};

/// Bytes of a [`Packet`] buffer.
pub const BUFFER: usize = 2048;

/// The longest DHCP message that is read or written.
pub const CAP: usize = 1024;

/// A DHCP message (UDP payload) at the start of a buffer that is longer than it.
pub type Packet = [u8; BUFFER];

/// Offsets of a message's fixed fields (RFC 2131 figure 1).
pub mod field {
    /// 1: from a client; 2: from a server.
    pub const OP: usize = 0;
    /// Hardware type; 1 is Ethernet. The address's length follows.
    pub const HTYPE: usize = 1;
    /// Bytes of the hardware address.
    pub const HLEN: usize = 2;
    /// Transaction ID.
    pub const XID: usize = 4;
    /// Seconds since the client began to ask, according to the client.
    pub const SECS: usize = 8;
    /// The top bit asks for broadcast replies.
    pub const FLAGS: usize = 10;
    /// The client's address, if it can already use one.
    pub const CIADDR: usize = 12;
    /// "Your" address.
    pub const YIADDR: usize = 16;
    /// The next server of the boot.
    pub const SIADDR: usize = 20;
    /// The relay agent.
    pub const GIADDR: usize = 24;
    /// Hardware address, 16 bytes.
    pub const CHADDR: usize = 28;
    /// Server name, 64 bytes.
    pub const SNAME: usize = 44;
    /// Boot file, 128 bytes.
    pub const FILE: usize = 108;
    /// The magic cookie that options follow.
    pub const COOKIE: usize = 236;
    /// The first option.
    pub const OPTIONS: usize = 240;
}

/// Option codes (RFC 2132 unless stated otherwise).
pub mod option {
    #![expect(missing_docs, reason = "the names are the registry's own")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const ROOT_PATH: u8 = 17;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const VENDOR_SPECIFIC: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    /// RFC 3004.
    pub const USER_CLASS: u8 = 77;
    /// RFC 3046.
    pub const RELAY_AGENT: u8 = 82;
    /// RFC 4578.
    pub const ARCHITECTURE: u8 = 93;
    /// RFC 4578: the version of the ROM's UNDI.
    pub const UNDI: u8 = 94;
    /// RFC 4578.
    pub const MACHINE_ID: u8 = 97;
    /// RFC 3011.
    pub const SUBNET_SELECTION: u8 = 118;
    /// RFC 3397.
    pub const DOMAIN_SEARCH: u8 = 119;
    /// iPXE's encapsulated options (ipxe.org/howto/dhcpd).
    pub const IPXE: u8 = 175;
    pub const END: u8 = 255;
}

/// Sub-options of [`option::RELAY_AGENT`] that affect an answer.
pub mod relay {
    /// RFC 3527.
    pub const LINK_SELECTION: u8 = 5;
    /// RFC 5107.
    pub const SERVER_ID_OVERRIDE: u8 = 11;
    /// RFC 8357.
    pub const SOURCE_PORT: u8 = 19;
}

/// The magic cookie before the options (RFC 2131 section 3).
pub const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// The flag that asks for broadcast replies (RFC 2131 figure 2).
pub const FLAG_BROADCAST: u16 = 0x8000;

#[cfg(test)]
mod tests;
