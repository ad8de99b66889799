//! The one builder of replies: what the daemon sends is what the kernel programs send.
//!
//! A reply must fit what the client can take: option 57, or the 576 bytes that every client
//! takes (RFC 2131 section 2). One that does not is [`TooLong`]: the kernel passes the request on,
//! and the daemon builds again from a grant whose common options it shortened from the end, where
//! the least needed are. Option overload (52) is not used: `file` and `sname` carry the boot file
//! for PXE ROMs that read nothing else.

use super::{CAP, COOKIE, Class, Packet, Request, Span, field, option};
use crate::dhcp::Firmware;

/// Bytes of pre-encoded options in a [`Grant`].
pub const OPTIONS_CAP: usize = 256;

/// Bytes of a boot file's name. The longest that is made is an iPXE script's URL.
pub const NAME_CAP: usize = 63;

/// BOOTP's 300 bytes: some relays and old clients drop what is shorter (RFC 1542 section 2.1).
const MIN_LEN: usize = 300;

/// IPv4 and UDP headers, which option 57 counts.
const IP_UDP_LEN: usize = 28;

/// What every client takes (RFC 2131 section 2).
const MIN_MAX_SIZE: usize = 576;

/// The kinds of reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// DHCPOFFER.
    Offer,
    /// DHCPACK of a lease.
    Ack,
    /// DHCPNAK.
    Nak,
    /// DHCPACK to a DHCPINFORM: configuration without a lease.
    Informed,
    /// A proxy's DHCPOFFER: a boot file, the address is another server's business (PXE 2.1 section 2.2.3).
    ProxyOffer,
    /// A proxy's DHCPACK, from port 4011.
    ProxyAck,
}

/// The name of a boot file: a TFTP path or an URL.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BootFile {
    len: u8,
    name: [u8; NAME_CAP],
}

impl BootFile {
    /// No file.
    pub const NONE: Self = Self { len: 0, name: [0; NAME_CAP] };

    /// A file's name, unless it is longer than [`NAME_CAP`].
    pub fn new(name: &str) -> Option<Self> {
        let mut file = Self::NONE;
        file.name.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        file.len = name.len() as u8;
        Some(file)
    }

    /// Whether the name is an URL, which names its server itself.
    #[inline(always)]
    fn is_url(&self) -> bool {
        let n = &self.name;
        [n[0], n[1], n[2], n[3]] == *b"http"
    }
}

impl core::fmt::Debug for BootFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = self.name.get(..self.len as usize).unwrap_or_default();
        write!(f, "{:?}", core::str::from_utf8(name).unwrap_or("(not text)"))
    }
}

/// What one machine is given: everything a reply says beyond what the request echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Grant {
    /// The lease's address.
    pub address: [u8; 4],
    /// The appliance: server identifier, next server, TFTP server.
    pub server: [u8; 4],
    /// Seconds.
    pub lease_time: u32,
    /// Bytes of [`options`](Grant::options) that are used.
    pub options_len: u16,
    /// Bytes of [`server_text`](Grant::server_text).
    pub server_text_len: u8,
    /// Zero.
    pub reserved: u8,
    /// [`server`](Grant::server) in dotted decimal, for option 66 and `sname`.
    pub server_text: [u8; 16],
    /// The options that all machines share, encoded, the most needed first.
    pub options: [u8; OPTIONS_CAP],
    /// The file for each kind of client, by [`Firmware::slot`].
    pub boot: [BootFile; Firmware::BOOTABLE],
}

/// The reply is longer than the client can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Writes the reply to `request`, which was parsed from `packet`, and returns its length.
///
/// The client's limit is held without option 82: the relay takes that out before the client
/// sees the reply (RFC 3046 section 2.1).
#[inline(always)]
pub fn build(
    out: &mut Packet,
    kind: Kind,
    request: &Request,
    packet: &Packet,
    grant: &Grant,
) -> Result<usize, TooLong> {
    let message = match kind {
        Kind::Offer | Kind::ProxyOffer => 2,
        Kind::Ack | Kind::Informed | Kind::ProxyAck => 5,
        Kind::Nak => 6,
    };
    let lease = matches!(kind, Kind::Offer | Kind::Ack);
    let configuration = matches!(kind, Kind::Offer | Kind::Ack | Kind::Informed);
    let boot = match request.firmware.slot() {
        Some(slot) if !matches!(kind, Kind::Nak) && grant.boot[slot].len != 0 => Some(&grant.boot[slot]),
        _ => None,
    };

    fixed_fields(out, kind, request, packet, grant);
    let mut w = Writer { out, at: field::OPTIONS };
    w.put([option::MESSAGE_TYPE, 1, message]);
    w.quad(option::SERVER_ID, grant.server);
    if lease {
        // T1 and T2 at RFC 2131's defaults (section 4.4.5), said so that nobody guesses.
        w.quad(option::LEASE_TIME, grant.lease_time.to_be_bytes());
        w.quad(option::RENEWAL_TIME, (grant.lease_time / 2).to_be_bytes());
        w.quad(option::REBINDING_TIME, (grant.lease_time / 8 * 7).to_be_bytes());
    }
    if let Some(file) = boot {
        w.boot_options(request.firmware, file, grant);
    }
    if configuration {
        w.common_options(grant);
    }
    // RFC 6842: the client finds its own identifier in every reply.
    w.echo(option::CLIENT_ID, packet, request.client_id);
    w.echo(option::MACHINE_ID, packet, request.machine_id);
    if w.at + 1 > limit(request) {
        return Err(TooLong);
    }
    // Last of all options (RFC 3046 section 2.1).
    w.echo(option::RELAY_AGENT, packet, request.relay_agent);
    w.put([option::END]);
    if w.at > CAP {
        return Err(TooLong);
    }
    if w.at >= MIN_LEN {
        return Ok(w.at);
    }
    w.put([0; MIN_LEN - field::OPTIONS]);
    Ok(MIN_LEN)
}

/// Bytes of message that the client takes.
#[inline(always)]
fn limit(request: &Request) -> usize {
    let size = request.max_size as usize;
    let size = if size < MIN_MAX_SIZE { MIN_MAX_SIZE } else { size } - IP_UDP_LEN;
    if size > CAP { CAP } else { size }
}

/// RFC 2131 table 3.
#[inline(always)]
fn fixed_fields(out: &mut Packet, kind: Kind, request: &Request, packet: &Packet, grant: &Grant) {
    let relayed = !request.giaddr.is_unspecified();
    // A relay must broadcast a NAK: the client's address is what is wrong (RFC 2131 section 4.3.2).
    let flags = match kind {
        Kind::Nak if relayed => request.flags | super::FLAG_BROADCAST,
        _ => request.flags,
    };
    put(out, 0, [0; field::OPTIONS]);
    put(out, field::OP, [2, 1, 6]);
    put(out, field::XID, request.xid);
    put(out, field::FLAGS, flags.to_be_bytes());
    if matches!(kind, Kind::Ack | Kind::Informed | Kind::ProxyAck) {
        put(out, field::CIADDR, request.ciaddr.octets());
    }
    if matches!(kind, Kind::Offer | Kind::Ack) {
        put(out, field::YIADDR, grant.address);
    }
    put(out, field::GIADDR, request.giaddr.octets());
    let mut i = field::CHADDR;
    while i < field::SNAME {
        out[i] = packet[i];
        i += 1;
    }
    put(out, field::COOKIE, COOKIE);
}

/// Appends options. `at` may run past [`CAP`]: what is written then lands on the buffer's start
/// and is thrown away, because the lengths are checked at the end.
struct Writer<'a> {
    out: &'a mut Packet,
    at: usize,
}

impl Writer<'_> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        put(self.out, self.at & (CAP - 1), bytes);
        self.at += N;
    }

    #[inline(always)]
    fn quad(&mut self, code: u8, v: [u8; 4]) {
        self.put([code, 4, v[0], v[1], v[2], v[3]]);
    }

    /// Copies a whole fixed array and keeps `len` of it.
    #[inline(always)]
    fn part<const N: usize>(&mut self, bytes: [u8; N], len: usize) {
        put(self.out, self.at & (CAP - 1), bytes);
        self.at += len;
    }

    /// Names the boot file in the fixed fields and in options: which of them a ROM reads differs.
    #[inline(always)]
    fn boot_options(&mut self, firmware: Firmware, file: &BootFile, grant: &Grant) {
        put(self.out, field::SIADDR, grant.server);
        put(self.out, field::FILE, file.name);
        let quirks = firmware.quirks();
        match quirks.class {
            Class::Pxe => self.put(*b"\x3c\x09PXEClient"),
            Class::Http => self.put(*b"\x3c\x0aHTTPClient"),
            Class::None => {}
        }
        if quirks.discovery_control {
            self.put([option::VENDOR_SPECIFIC, 4, 6, 1, 8, 255]);
        }
        if !file.is_url() {
            put(self.out, field::SNAME, grant.server_text);
            self.put([option::TFTP_SERVER, grant.server_text_len]);
            self.part(grant.server_text, grant.server_text_len as usize & 15);
        }
        self.put([option::BOOT_FILE, file.len]);
        self.part(file.name, file.len as usize & 63);
    }

    #[inline(always)]
    fn common_options(&mut self, grant: &Grant) {
        let len = grant.options_len as usize;
        self.part(grant.options, if len > OPTIONS_CAP { OPTIONS_CAP } else { len });
    }

    /// Copies an option from the request, if it is there.
    ///
    /// Copies have fixed lengths, and most are the same whatever the length is: every branch here
    /// doubles what the verifier walks through afterwards.
    #[inline(always)]
    fn echo(&mut self, code: u8, packet: &Packet, span: Span) {
        const USUAL: usize = 64;
        let (from, to) = (span.at as usize & (CAP - 1), self.at & (CAP - 1));
        let len = span.len as usize;
        put(self.out, to, [code, span.len]);
        let mut i = 0;
        while i < USUAL {
            self.out[to + 2 + i] = packet[from + i];
            i += 1;
        }
        if len > USUAL {
            while i < 255 {
                self.out[to + 2 + i] = packet[from + i];
                i += 1;
            }
        }
        self.at += if len == 0 { 0 } else { 2 + len };
    }
}

#[inline(always)]
fn put<const N: usize>(out: &mut Packet, at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N {
        out[at + i] = bytes[i];
        i += 1;
    }
}
