//! The only builder of replies: the daemon and the kernel programs send the same bytes.
//!
//! A reply must not be longer than the client accepts: option 57, or the 576 bytes that every client accepts (RFC 2131
//! section 2). A longer one is [`TooLong`]. Then the kernel passes the request on, and the daemon builds the reply
//! again from a grant whose common options it shortened from the end, where the least important ones are. Option
//! overload (52) is not used: `file` and `sname` carry the boot file for PXE ROMs that read nothing else.

use core::fmt::Write as _;
use core::net::Ipv4Addr;

use super::request::bytes;
use super::{CAP, COOKIE, Class, Firmware, Packet, Request, Span, field, option};
use crate::copy::{clear, copy};

/// Bytes of pre-encoded options in a [`Grant`].
pub const OPTIONS_CAP: usize = 256;

/// Bytes of a boot file's name. The longest one is an iPXE script's URL.
pub const NAME_CAP: usize = 63;

/// BOOTP's 300 bytes: some relays and old clients drop shorter messages (RFC 1542 section 2.1).
const MIN_LEN: usize = 300;

/// IPv4 and UDP headers, which option 57 includes.
const IP_UDP_LEN: usize = 28;

/// Every client accepts this size (RFC 2131 section 2).
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
    /// A proxy's DHCPOFFER: a boot file only, the address comes from another server (PXE 2.1 section 2.2.3).
    ProxyOffer,
    /// A proxy's DHCPACK, from port 4011.
    ProxyAck,
}

/// Bytes of the options that name a boot: 60 (at most 12), 43 (6), 66 (17) and 67 (65).
const BOOT_OPTIONS_CAP: usize = 100;

/// What one kind of client shall boot, encoded once for all replies: `siaddr`, `sname`, `file`, and options 60, 43, 66
/// and 67. ROMs differ in which of them they read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Boot {
    next_server: [u8; 4],
    sname: [u8; 16],
    file: [u8; NAME_CAP + 1],
    options_len: u16,
    options: [u8; BOOT_OPTIONS_CAP],
}

impl Boot {
    /// Nothing to boot.
    pub const NONE: Self = Self {
        next_server: [0; 4],
        sname: [0; 16],
        file: [0; NAME_CAP + 1],
        options_len: 0,
        options: [0; BOOT_OPTIONS_CAP],
    };

    /// The file `name` from `server`, a path for TFTP or a URL, in the form that `firmware` needs; `None` if the name
    /// is longer than [`NAME_CAP`].
    pub fn new(firmware: Firmware, server: Ipv4Addr, name: &str) -> Option<Self> {
        let mut boot = Self { next_server: server.octets(), ..Self::NONE };
        boot.file.get_mut(..NAME_CAP)?.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        let quirks = firmware.quirks();
        match quirks.class {
            Class::Pxe => boot.option(option::VENDOR_CLASS, b"PXEClient")?,
            Class::Http => boot.option(option::VENDOR_CLASS, b"HTTPClient")?,
            Class::None => {}
        }
        if quirks.discovery_control {
            boot.option(option::VENDOR_SPECIFIC, &[6, 1, 8, 255])?;
        }
        // A URL contains its server.
        if !name.starts_with("http") {
            let mut text = Text { bytes: [0; 16], len: 0 };
            write!(text, "{server}").ok()?;
            boot.sname = text.bytes;
            boot.name(option::TFTP_SERVER, &text.bytes[..text.len])?;
        }
        boot.name(option::BOOT_FILE, name.as_bytes())?;
        Some(boot)
    }

    /// An option followed by a zero: many ROMs read its value as a C string and would read on into the next option. The
    /// zero is a PAD, so clients that use the length see only the name.
    fn name(&mut self, code: u8, value: &[u8]) -> Option<()> {
        self.option(code, value)?;
        self.options.get(usize::from(self.options_len))?;
        self.options_len += 1;
        Some(())
    }

    fn option(&mut self, code: u8, value: &[u8]) -> Option<()> {
        let at = self.options_len as usize;
        let room = self.options.get_mut(at..at + 2 + value.len())?;
        room[..2].copy_from_slice(&[code, value.len() as u8]);
        room[2..].copy_from_slice(value);
        self.options_len += room.len() as u16;
        Some(())
    }
}

impl core::fmt::Debug for Boot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = self.file.split(|b| *b == 0).next().unwrap_or_default();
        write!(f, "{:?}", core::str::from_utf8(name).unwrap_or("(not text)"))
    }
}

/// An address in dotted decimal.
struct Text {
    bytes: [u8; 16],
    len: usize,
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + s.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

/// The data for one machine: everything in a reply that is not copied from the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Grant {
    /// The lease's address.
    pub address: [u8; 4],
    /// The appliance's address: server identifier, next server, TFTP server.
    pub server: [u8; 4],
    /// Seconds.
    pub lease_time: u32,
    /// T1 (RFC 2131 section 4.4.5), seconds.
    pub renewal_time: u32,
    /// T2, seconds.
    pub rebinding_time: u32,
    /// Zero.
    pub reserved: u16,
    /// Used bytes of [`options`](Grant::options).
    pub options_len: u16,
    /// The encoded options that all machines share, the most important first.
    pub options: [u8; OPTIONS_CAP],
    /// The boot of each kind of client, by [`Firmware::slot`]; [`Boot::NONE`] for those that boot nothing.
    pub boot: [Boot; Firmware::SLOTS],
}

/// The reply is longer than the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Writes the reply to `request`, which was parsed from `packet`, and returns its length.
///
/// Option 82 does not count against the client's limit: the relay removes it before the client sees the reply (RFC 3046
/// section 2.1).
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
    let slot = request.slot as usize;
    let boots = !matches!(kind, Kind::Nak) && slot < Firmware::NO_BOOT;
    let boot = &grant.boot[if boots { slot } else { Firmware::NO_BOOT }];

    fixed_fields(out, kind, request, packet, grant);
    let mut w = Writer { out, at: field::OPTIONS };
    w.put([option::MESSAGE_TYPE, 1, message]);
    w.quad(option::SERVER_ID, grant.server);
    if lease {
        // Sent even with RFC 2131's defaults, so that nobody has to guess.
        w.quad(option::LEASE_TIME, grant.lease_time.to_be_bytes());
        w.quad(option::RENEWAL_TIME, grant.renewal_time.to_be_bytes());
        w.quad(option::REBINDING_TIME, grant.rebinding_time.to_be_bytes());
    }
    w.boot(boot);
    if configuration {
        w.common_options(grant);
    }
    // RFC 6842: every reply contains the client's own identifier.
    w.echo(packet, request.client_id);
    w.echo(packet, request.machine_id);
    // RFC 3011 section 2: it shows the client that it was understood. The kernel programs answer no such request.
    w.echo(packet, request.subnet_selection);
    let seen_by_client = w.at + 1;
    // The last of all options (RFC 3046 section 2.1).
    w.echo(packet, request.relay_agent);
    w.put([option::END]);
    // Not checked earlier: the compiler would leave out the masks that the verifier needs.
    if seen_by_client > limit(request) || w.at > CAP {
        return Err(TooLong);
    }
    if w.at >= MIN_LEN {
        return Ok(w.at);
    }
    w.put([0; MIN_LEN - field::OPTIONS]);
    Ok(MIN_LEN)
}

/// Bytes of message that the client accepts.
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
    // A relay must broadcast a NAK, because the client's address is wrong (RFC 2131 section 4.3.2).
    let flags = match kind {
        Kind::Nak if relayed => request.flags | super::FLAG_BROADCAST,
        _ => request.flags,
    };
    clear(room::<{ field::OPTIONS }>(out, 0));
    set(out, field::OP, [2, 1, 6]);
    set(out, field::XID, request.xid);
    set(out, field::FLAGS, flags.to_be_bytes());
    if matches!(kind, Kind::Ack | Kind::Informed | Kind::ProxyAck) {
        set(out, field::CIADDR, request.ciaddr.octets());
    }
    if matches!(kind, Kind::Offer | Kind::Ack) {
        set(out, field::YIADDR, grant.address);
    }
    set(out, field::GIADDR, request.giaddr.octets());
    put(out, field::CHADDR, bytes::<{ field::SNAME - field::CHADDR }>(packet, field::CHADDR));
    set(out, field::COOKIE, COOKIE);
}

/// Appends options. `at` may run past [`CAP`]: those bytes are written to the buffer's start and are discarded, because
/// the lengths are checked at the end.
struct Writer<'a> {
    out: &'a mut Packet,
    at: usize,
}

impl Writer<'_> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        set(self.out, self.at & (CAP - 1), bytes);
        self.at += N;
    }

    #[inline(always)]
    fn quad(&mut self, code: u8, v: [u8; 4]) {
        self.put([code, 4, v[0], v[1], v[2], v[3]]);
    }

    /// Appends the first `len` bytes of a fixed array. Its rest is usually unused, and then not read: each lease is in
    /// memory of its own, which is rarely in the cache of a CPU that answers a whole rack.
    #[inline(always)]
    fn part<const N: usize>(&mut self, bytes: &[u8; N], len: usize) {
        const USUAL: usize = 64;
        let at = self.at & (CAP - 1);
        // As in `echo`.
        self.at += if len > N { N } else { len };
        put::<USUAL>(self.out, at, bytes.first_chunk().expect("more than is usual"));
        if len > USUAL {
            put(self.out, at, bytes);
        }
    }

    #[inline(always)]
    fn boot(&mut self, boot: &Boot) {
        set(self.out, field::SIADDR, boot.next_server);
        put(self.out, field::SNAME, &boot.sname);
        put(self.out, field::FILE, &boot.file);
        self.part(&boot.options, boot.options_len as usize);
    }

    #[inline(always)]
    fn common_options(&mut self, grant: &Grant) {
        self.part(&grant.options, grant.options_len as usize);
    }

    /// Copies an option from the request, if it is present.
    ///
    /// Without a branch that affects `at`: each would double the states that the verifier explores afterwards. What a
    /// short option leaves after it is overwritten by what follows.
    #[inline(always)]
    fn echo(&mut self, packet: &Packet, option: Span) {
        const USUAL: usize = 66;
        const LONGEST: usize = 257;
        let (from, to) = (option.at as usize & (CAP - 1), self.at & (CAP - 1));
        let len = option.len as usize;
        // Before the length is checked, so that the code after it knows nothing about its value.
        self.at += len;
        put::<USUAL>(self.out, to, bytes(packet, from));
        if len > USUAL {
            put::<LONGEST>(self.out, to, bytes(packet, from));
        }
    }
}

#[inline(always)]
fn put<const N: usize>(out: &mut Packet, at: usize, bytes: &[u8; N]) {
    copy(room(out, at), bytes);
}

/// The same for bytes that the program has computed, and that are not in a map.
#[inline(always)]
fn set<const N: usize>(out: &mut Packet, at: usize, bytes: [u8; N]) {
    *room(out, at) = bytes;
}

/// `N` bytes at a fixed or masked offset.
#[inline(always)]
fn room<const N: usize>(out: &mut Packet, at: usize) -> &mut [u8; N] {
    out[at..].first_chunk_mut().expect("a packet's buffer is longer than CAP and an option")
}
