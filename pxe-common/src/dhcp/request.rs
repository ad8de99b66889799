//! A client's packet, parsed once: nothing reads raw options afterwards.
//!
//! The walk over the options is a [`step`] that the caller repeats between [`begin`] and [`finish`]: [`Request::parse`]
//! with a `for` loop on the host, a program with `bpf_loop` in the kernel.

use core::net::Ipv4Addr;

use super::firmware::{HTTP_X64, X64};
use super::{CAP, COOKIE, Class, FLAG_BROADCAST, Firmware, Packet, field, option, relay};
use crate::Mac;

/// The limit of a walk's steps. Real firmware sends up to 20 options, a relay a handful of sub-options; every pad byte
/// costs a step.
pub const MAX_STEPS: u32 = 72;

/// The message type (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are RFC 2131's own")]
pub enum MessageType {
    Discover = 1,
    Request = 3,
    Decline = 4,
    Release = 7,
    Inform = 8,
}

/// Where a complete option is in the packet, with its code and length, as it is echoed. If the length is zero, it is
/// absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the option's code.
    pub at: u16,
    /// Bytes from there to the value's end.
    pub len: u16,
}

impl Span {
    /// The value's bytes; empty if the option is absent.
    pub fn of(self, packet: &Packet) -> &[u8] {
        packet[self.at as usize & (CAP - 1)..][..self.len as usize].get(2..).unwrap_or_default()
    }
}

/// A client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The message type.
    pub message: MessageType,
    /// The transaction ID, echoed.
    pub xid: [u8; 4],
    /// Echoed; see [`broadcast`](Request::broadcast).
    pub flags: u16,
    /// The address that the client already uses, or unspecified.
    pub ciaddr: Ipv4Addr,
    /// The relay that forwarded the request, or unspecified.
    pub giaddr: Ipv4Addr,
    /// The machine (chaddr).
    pub mac: Mac,
    /// Option 50, or unspecified.
    pub requested: Ipv4Addr,
    /// Option 54, or unspecified.
    pub server_id: Ipv4Addr,
    /// The kind of client.
    pub firmware: Firmware,
    /// Its [slot](Firmware::slot), as a number that a program can store in a map.
    pub slot: u8,
    /// Option 57, or 0.
    pub max_size: u16,
    /// Option 61.
    pub client_id: Span,
    /// Option 97.
    pub machine_id: Span,
    /// Option 82.
    pub relay_agent: Span,
    /// The relay's sub-options in it. Empty if no relay forwarded the request, because a client must not set them.
    pub relay: Relay,
    /// Option 118 (RFC 3011): the client wants an address of this subnet; or unspecified.
    pub subnet: Ipv4Addr,
    /// Option 118, to be echoed.
    pub subnet_selection: Span,
    /// Something was ignored: an option shorter than its definition, or one cut off by the packet's end.
    pub odd: bool,
}

/// What a relay says about a request's path, in sub-options of option 82 (RFC 3046).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Sub-option 5 (RFC 3527): an address of the client's subnet, or unspecified.
    pub link: Ipv4Addr,
    /// Sub-option 11 (RFC 5107): the server identifier that the client shall see, or unspecified.
    pub server: Ipv4Addr,
    /// Sub-option 19 (RFC 8357): the reply is sent to the request's source port.
    pub source_port: bool,
}

impl Relay {
    /// None of them is present.
    pub const SILENT: Self =
        Self { link: Ipv4Addr::UNSPECIFIED, server: Ipv4Addr::UNSPECIFIED, source_port: false };
}

impl Request {
    /// Parses the message in the first `len` bytes of `packet`.
    pub fn parse(packet: &Packet, len: usize) -> Result<Self, Pass> {
        let mut walk = begin(packet, len)?;
        for _ in 0..MAX_STEPS {
            if step(packet, &mut walk) {
                break;
            }
        }
        finish(&walk)
    }

    /// The client's subnet, according to relay or client. Link selection has priority over subnet selection (RFC 3527
    /// section 3), and that over the relay's own address (RFC 2131 section 4.3.1). Unspecified: the segment that the
    /// request came from.
    pub fn place(&self) -> Ipv4Addr {
        let said = [self.relay.link, self.subnet, self.giaddr];
        said.into_iter().find(|place| !place.is_unspecified()).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Whether the fixed fields and a lease determine the reply: nothing in the request is odd, and neither relay nor
    /// client asks for an unusual subnet, server identifier or port.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        !self.odd && self.relay == Relay::SILENT && self.subnet.is_unspecified()
    }

    /// Whether the client can't receive unicast before it has its address.
    #[inline(always)]
    pub const fn broadcast(&self) -> bool {
        self.flags & FLAG_BROADCAST != 0
    }
}

/// Why a packet is not answered through a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pass {
    /// Shorter than the fixed fields and the cookie.
    TooShort = 1,
    /// Longer than [`CAP`].
    TooLong,
    /// Not BOOTREQUEST: another server's reply, or noise.
    NotARequest,
    /// Not Ethernet, or not a station's address.
    Hardware,
    /// No magic cookie: plain BOOTP.
    NoCookie,
    /// No option 53, or an empty one: BOOTP with vendor extensions.
    NoMessageType,
    /// Option 53 is not a message that a client sends to a server.
    MessageType,
    /// Options continue in `sname` or `file` (option 52).
    Overloaded,
    /// An option that matters appears twice: according to RFC 3396 the parts are concatenated.
    Split,
    /// More options than a walk has steps.
    TooManyOptions,
}

impl Pass {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::TooShort,
        Self::TooLong,
        Self::NotARequest,
        Self::Hardware,
        Self::NoCookie,
        Self::NoMessageType,
        Self::MessageType,
        Self::Overloaded,
        Self::Split,
        Self::TooManyOptions,
    ];

    /// Whether a full decoder may find a legal request here; the others are always invalid.
    pub const fn is_rare_but_legal(self) -> bool {
        matches!(self, Self::TooLong | Self::Overloaded | Self::Split | Self::TooManyOptions)
    }

    /// The reason's name in counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too-short",
            Self::TooLong => "too-long",
            Self::NotARequest => "not-a-request",
            Self::Hardware => "hardware",
            Self::NoCookie => "no-cookie",
            Self::NoMessageType => "no-message-type",
            Self::MessageType => "message-type",
            Self::Overloaded => "overloaded",
            Self::Split => "split",
            Self::TooManyOptions => "too-many-options",
        }
    }
}

/// A walk over the options: its position, and what it found.
///
/// A kernel program keeps it in a per-CPU array. On the stack the verifier would track the bits of `seen` and every
/// flag through each call of [`step`], and give up after a million instructions. What is read back from a map is
/// unknown to it, so one call stands for all.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    at: u32,
    len: u32,
    /// The end of option 82's sub-options.
    relay_end: u32,
    seen: u32,
    done: bool,
    ipxe: bool,
    odd: bool,
    relay_port: bool,
    message: u8,
    class: Class,
    pass: Option<Pass>,
    /// From option 93.
    arch: Option<u16>,
    /// From option 60.
    class_arch: Option<u16>,
    /// From option 94.
    undi_arch: Option<u16>,
    max_size: u16,
    flags: u16,
    xid: [u8; 4],
    ciaddr: [u8; 4],
    giaddr: [u8; 4],
    requested: [u8; 4],
    server_id: [u8; 4],
    subnet: [u8; 4],
    relay_link: [u8; 4],
    relay_server: [u8; 4],
    mac: Mac,
    client_id: Span,
    machine_id: Span,
    relay_agent: Span,
    subnet_selection: Span,
}

impl Walk {
    /// The machine that asks (chaddr).
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        self.mac
    }
}

/// Reads the fixed fields of the message in the first `len` bytes of `packet`.
#[inline(always)]
pub fn begin(packet: &Packet, len: usize) -> Result<Walk, Pass> {
    if len < field::OPTIONS {
        return Err(Pass::TooShort);
    }
    if len > CAP {
        return Err(Pass::TooLong);
    }
    if packet[field::OP] != 1 {
        return Err(Pass::NotARequest);
    }
    let mac = Mac(*bytes(packet, field::CHADDR));
    if packet[field::HTYPE] != 1 || packet[field::HLEN] != 6 || !mac.is_unicast() {
        return Err(Pass::Hardware);
    }
    if *bytes(packet, field::COOKIE) != COOKIE {
        return Err(Pass::NoCookie);
    }
    Ok(Walk {
        at: field::OPTIONS as u32,
        len: len as u32,
        relay_end: 0,
        seen: 0,
        done: false,
        ipxe: false,
        odd: false,
        relay_port: false,
        message: 0,
        class: Class::None,
        pass: None,
        arch: None,
        class_arch: None,
        undi_arch: None,
        max_size: 0,
        flags: u16::from_be_bytes(*bytes(packet, field::FLAGS)),
        xid: *bytes(packet, field::XID),
        ciaddr: *bytes(packet, field::CIADDR),
        giaddr: *bytes(packet, field::GIADDR),
        requested: [0; 4],
        server_id: [0; 4],
        subnet: [0; 4],
        relay_link: [0; 4],
        relay_server: [0; 4],
        mac,
        client_id: Span::default(),
        machine_id: Span::default(),
        relay_agent: Span::default(),
        subnet_selection: Span::default(),
    })
}

/// Reads one option, or one sub-option of option 82. Returns whether the walk has ended.
#[inline(always)]
pub fn step(packet: &Packet, walk: &mut Walk) -> bool {
    // A missing END is tolerated: some relays cut it off.
    if walk.at >= walk.len {
        return end(walk);
    }
    // `len` is at most CAP; the mask tells the verifier, which can't know it.
    let at = walk.at as usize & (CAP - 1);
    let code = packet[at];
    let inside = walk.at < walk.relay_end;
    if !inside && code == option::END {
        return end(walk);
    }
    if !inside && code == option::PAD {
        walk.at += 1;
        return false;
    }
    let len = packet[at + 1] as usize;
    let value = at + 2;
    let limit = if inside { walk.relay_end } else { walk.len };
    // An option that is cut off counts as absent; those before it are valid.
    if value + len > limit as usize {
        walk.odd = true;
        walk.at = limit;
        return false;
    }
    walk.at = (value + len) as u32;
    if inside {
        read_relay(packet, walk, code, value, len);
        return false;
    }
    let bit = bit(code);
    if walk.seen & bit != 0 {
        return stop(walk, Pass::Split);
    }
    walk.seen |= bit;
    !read(packet, walk, code, value, len)
}

#[inline(always)]
fn end(walk: &mut Walk) -> bool {
    walk.done = true;
    true
}

/// The result of the walk, when [`step`] has said that it ended.
#[inline(always)]
pub fn finish(walk: &Walk) -> Result<Request, Pass> {
    if let Some(pass) = walk.pass {
        return Err(pass);
    }
    if !walk.done {
        return Err(Pass::TooManyOptions);
    }
    let message = match walk.message {
        0 => return Err(Pass::NoMessageType),
        1 => MessageType::Discover,
        3 => MessageType::Request,
        4 => MessageType::Decline,
        7 => MessageType::Release,
        8 => MessageType::Inform,
        _ => return Err(Pass::MessageType),
    };
    let by_undi = match walk.class {
        Class::Http => walk.undi_arch.and(Some(HTTP_X64)),
        Class::Pxe | Class::None => walk.undi_arch,
    };
    let arch = walk.arch.or(walk.class_arch).or(by_undi);
    let firmware = Firmware::of(walk.class, arch, walk.arch.is_some(), walk.ipxe);
    // Without a relay, its sub-options are not trusted.
    let relayed = walk.giaddr != [0; 4];
    let relay = Relay {
        link: walk.relay_link.into(),
        server: walk.relay_server.into(),
        source_port: walk.relay_port,
    };
    Ok(Request {
        message,
        xid: walk.xid,
        flags: walk.flags,
        ciaddr: walk.ciaddr.into(),
        giaddr: walk.giaddr.into(),
        mac: walk.mac,
        requested: walk.requested.into(),
        server_id: walk.server_id.into(),
        firmware,
        slot: firmware.slot() as u8,
        max_size: walk.max_size,
        client_id: walk.client_id,
        machine_id: walk.machine_id,
        relay_agent: walk.relay_agent,
        relay: if relayed { relay } else { Relay::SILENT },
        subnet: walk.subnet.into(),
        subnet_selection: walk.subnet_selection,
        odd: walk.odd,
    })
}

/// Processes an option's value; false if the walk ends with it.
///
/// As in other servers, only the beginning of an overlong option is read, and one that is too short is ignored: a
/// request is answered as far as it is valid.
#[inline(always)]
fn read(packet: &Packet, walk: &mut Walk, code: u8, at: usize, len: usize) -> bool {
    let span = Span { at: at as u16 - 2, len: len as u16 + 2 };
    walk.odd |= len < least(code);
    match (code, len) {
        // Zero is not a message type; it must not look like "option 53 is missing".
        (option::MESSAGE_TYPE, 1..) if packet[at] == 0 => return !stop(walk, Pass::MessageType),
        (option::MESSAGE_TYPE, 1..) => walk.message = packet[at],
        (option::REQUESTED_ADDRESS, 4..) => walk.requested = *bytes(packet, at),
        (option::SERVER_ID, 4..) => walk.server_id = *bytes(packet, at),
        (option::MAX_SIZE, 2..) => walk.max_size = u16::from_be_bytes(*bytes(packet, at)),
        // A list, whose first entry is what runs now (RFC 4578 section 2.1).
        (option::ARCHITECTURE, 2..) => walk.arch = Some(u16::from_be_bytes(*bytes(packet, at))),
        // UNDI 3 came with UEFI; BIOS has 2 (RFC 4578 section 2.2, UEFI 2.10 section 24.4).
        (option::UNDI, 3..) if packet[at] == 1 && packet[at + 1] >= 3 => walk.undi_arch = Some(X64),
        (option::OVERLOAD, 1..) => return !stop(walk, Pass::Overloaded),
        (option::VENDOR_CLASS, 9..) if *bytes(packet, at) == *b"PXEClient" => {
            walk.class = Class::Pxe;
            walk.class_arch = named_arch(packet, at + 9, len - 9);
        }
        (option::VENDOR_CLASS, 10..) if *bytes(packet, at) == *b"HTTPClient" => {
            walk.class = Class::Http;
            walk.class_arch = named_arch(packet, at + 10, len - 10);
        }
        // iPXE sends only the word, without the length that RFC 3004 requires; both forms are read.
        (option::USER_CLASS, 4..) if *bytes(packet, at) == *b"iPXE" => walk.ipxe = true,
        (option::USER_CLASS, 5..) if *bytes(packet, at) == *b"\x04iPXE" => walk.ipxe = true,
        (option::IPXE, _) => walk.ipxe = true,
        (option::CLIENT_ID, 1..) => walk.client_id = span,
        (option::MACHINE_ID, 1..) => walk.machine_id = span,
        (option::SUBNET_SELECTION, 4..) => {
            walk.subnet = *bytes(packet, at);
            walk.subnet_selection = span;
        }
        (option::RELAY_AGENT, 1..) => {
            walk.relay_agent = span;
            // The next steps read its sub-options.
            walk.relay_end = walk.at;
            walk.at = at as u32;
        }
        _ => {}
    }
    true
}

/// Processes a sub-option of option 82. Most of them name a switch and its port, which are not used here.
#[inline(always)]
fn read_relay(packet: &Packet, walk: &mut Walk, code: u8, at: usize, len: usize) {
    match (code, len) {
        (relay::LINK_SELECTION, 4..) => walk.relay_link = *bytes(packet, at),
        (relay::SERVER_ID_OVERRIDE, 4..) => walk.relay_server = *bytes(packet, at),
        (relay::SOURCE_PORT, _) => walk.relay_port = true,
        _ => {}
    }
}

/// The platform's number after `PXEClient` or `HTTPClient`: `:Arch:xxxxx`, five decimal digits (PXE 2.1 section 2.2,
/// UEFI 2.10 section 24.7).
#[inline(always)]
fn named_arch(packet: &Packet, at: usize, len: usize) -> Option<u16> {
    if len < 11 || *bytes(packet, at) != *b":Arch:" {
        return None;
    }
    let mut number = 0u32;
    for digit in bytes::<5>(packet, at + 6) {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u32::from(digit & 0xf);
    }
    Some(number as u16)
}

/// The minimum length of each option that is read.
#[inline(always)]
const fn least(code: u8) -> usize {
    match code {
        option::MESSAGE_TYPE | option::OVERLOAD => 1,
        option::MAX_SIZE | option::ARCHITECTURE => 2,
        option::REQUESTED_ADDRESS | option::SERVER_ID | option::SUBNET_SELECTION => 4,
        _ => 0,
    }
}

#[inline(always)]
fn stop(walk: &mut Walk, pass: Pass) -> bool {
    walk.pass = Some(pass);
    true
}

/// A bit for each option that is read, so that a second one is noticed; none for other options.
#[inline(always)]
const fn bit(code: u8) -> u32 {
    match code {
        option::REQUESTED_ADDRESS => 1,
        option::MESSAGE_TYPE => 1 << 1,
        option::SERVER_ID => 1 << 2,
        option::MAX_SIZE => 1 << 3,
        option::VENDOR_CLASS => 1 << 4,
        option::CLIENT_ID => 1 << 5,
        option::USER_CLASS => 1 << 6,
        option::RELAY_AGENT => 1 << 7,
        option::ARCHITECTURE => 1 << 8,
        option::MACHINE_ID => 1 << 9,
        option::IPXE => 1 << 10,
        option::SUBNET_SELECTION => 1 << 11,
        option::UNDI => 1 << 12,
        _ => 0,
    }
}

/// `N` bytes at a fixed or masked offset.
#[inline(always)]
pub(super) fn bytes<const N: usize>(packet: &Packet, at: usize) -> &[u8; N] {
    packet[at..].first_chunk().expect("a packet's buffer is longer than CAP and an option")
}
