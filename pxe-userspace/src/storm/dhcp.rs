//! A DHCP client (RFC 2131, PXE 2.1 section 2) with the habits of one firmware.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use pxe_common::Mac;
use pxe_common::dhcp::{COOKIE, FLAG_BROADCAST, field};
use pxe_common::wire::port;

use super::link::{Frames, Link, MS, Retry, Waits};

/// How one firmware's client differs from another's.
#[derive(Debug)]
pub(super) struct Habits {
    /// The options of a message, in the order that the firmware sends them.
    pub(super) options: fn(&Identity, &Kind) -> Vec<u8>,
    /// Asks for broadcast replies.
    pub(super) broadcast: bool,
    /// `secs` of the first, second, … message.
    pub(super) secs: fn(usize) -> u16,
    pub(super) discover: Waits,
    pub(super) request: Waits,
    pub(super) offers: Offers,
    /// What its screen says when nobody offers anything.
    pub(super) no_offer: &'static str,
    /// What its screen says when the offer isn't confirmed.
    pub(super) no_ack: &'static str,
}

/// Which offer the client accepts, and when.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offers {
    /// Offers are collected for this many milliseconds after each DISCOVER, whatever arrives.
    Collected(u32),
    /// A complete offer for a PXE client at once, any other at the end of the present wait.
    FirstComplete,
}

/// Who a machine says it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) mac: Mac,
    pub(super) uuid: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover,
    Request { address: Ipv4Addr, server: Ipv4Addr },
}

/// What a server offered or confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    /// Of the DHCP server.
    pub(super) server: Ipv4Addr,
    /// Where the boot file is.
    pub(super) next_server: Ipv4Addr,
    pub(super) netmask: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) file: String,
    /// It has PXEClient, and option 43 to skip boot server discovery.
    complete: bool,
}

impl Lease {
    /// Whom ARP resolves to reach the boot server.
    pub(super) fn next_hop(&self) -> Ipv4Addr {
        let same_net = (self.address & self.netmask) == (self.next_server & self.netmask);
        self.router.filter(|_| !same_net).unwrap_or(self.next_server)
    }
}

#[derive(Debug)]
pub(super) struct Client {
    habits: &'static Habits,
    identity: Identity,
    xid: u32,
    state: State,
    messages: usize,
    retry: Retry,
}

#[derive(Debug)]
enum State {
    Selecting(Option<Lease>),
    Requesting(Lease),
}

#[derive(Debug)]
pub(super) enum Progress {
    Going,
    /// The first offer has arrived.
    Offered,
    Bound(Lease),
    Failed(String),
}

impl Client {
    pub(super) fn start(
        habits: &'static Habits,
        identity: Identity,
        xid: u32,
        link: &Link,
        now: u64,
        out: &mut Frames,
    ) -> Self {
        let state = State::Selecting(None);
        let retry = Retry::start(habits.discover, now);
        let mut client = Self { habits, identity, xid, state, messages: 0, retry };
        client.discovered(now);
        client.send(link, out);
        client
    }

    pub(super) fn due(&self) -> u64 {
        self.retry.due
    }

    pub(super) fn wake(&mut self, link: &mut Link, now: u64, out: &mut Frames) -> Progress {
        match &mut self.state {
            State::Selecting(offer) => {
                if let Some(offer) = offer.take() {
                    self.request(offer, link, now, out);
                } else if self.retry.again(now) {
                    self.discovered(now);
                    link.retried();
                    self.send(link, out);
                } else {
                    return Progress::Failed(self.habits.no_offer.to_owned());
                }
            }
            State::Requesting(_) => {
                if !self.retry.again(now) {
                    return Progress::Failed(self.habits.no_ack.to_owned());
                }
                link.retried();
                self.send(link, out);
            }
        }
        Progress::Going
    }

    /// Handles a datagram to port 68.
    pub(super) fn receive(
        &mut self,
        payload: &[u8],
        link: &mut Link,
        now: u64,
        out: &mut Frames,
    ) -> Progress {
        let Some((kind, lease)) = parse(payload, self.xid, self.identity.mac) else { return Progress::Going };
        match (&mut self.state, kind) {
            // An address without a file boots nothing: firmware goes on listening.
            (State::Selecting(offer @ None), MessageType::Offer) if !lease.file.is_empty() => {
                link.progressed();
                if matches!(self.habits.offers, Offers::FirstComplete) && lease.complete {
                    self.request(lease, link, now, out);
                } else {
                    *offer = Some(lease);
                }
                Progress::Offered
            }
            (State::Requesting(asked), MessageType::Ack) if asked.address == lease.address => {
                link.progressed();
                Progress::Bound(lease)
            }
            (State::Requesting(asked), MessageType::Nak) if asked.server == lease.server => {
                self.state = State::Selecting(None);
                self.retry = Retry::start(self.habits.discover, now);
                link.retried();
                self.send(link, out);
                Progress::Going
            }
            _ => Progress::Going,
        }
    }

    fn request(&mut self, offer: Lease, link: &Link, now: u64, out: &mut Frames) {
        self.state = State::Requesting(offer);
        self.retry = Retry::start(self.habits.request, now);
        self.send(link, out);
    }

    /// A client that collects offers looks at them before its next retransmission is due.
    fn discovered(&mut self, now: u64) {
        if let (Offers::Collected(ms), 1) = (self.habits.offers, self.retry.sent()) {
            self.retry.due = now + u64::from(ms) * MS;
        }
    }

    fn send(&mut self, link: &Link, out: &mut Frames) {
        self.messages += 1;
        let kind = match &self.state {
            State::Selecting(_) => Kind::Discover,
            State::Requesting(l) => Kind::Request { address: l.address, server: l.server },
        };
        let message = message(self.habits, &self.identity, &kind, self.xid, self.messages);
        link.udp(out, Ipv4Addr::BROADCAST, (port::DHCP_CLIENT, port::DHCP_SERVER), &message);
    }
}

/// A whole message, the `n`th of this client.
pub(super) fn message(habits: &Habits, identity: &Identity, kind: &Kind, xid: u32, n: usize) -> Vec<u8> {
    let mut bytes = header(identity.mac, xid);
    bytes[field::FLAGS - 2..field::FLAGS].copy_from_slice(&(habits.secs)(n).to_be_bytes());
    if habits.broadcast {
        bytes[field::FLAGS..field::FLAGS + 2].copy_from_slice(&FLAG_BROADCAST.to_be_bytes());
    }
    bytes.extend((habits.options)(identity, kind));
    bytes.push(255);
    bytes
}

/// Gives the address back (RFC 2131 section 4.4.6).
pub(super) fn release(mac: Mac, lease: &Lease, xid: u32) -> Vec<u8> {
    let mut bytes = header(mac, xid);
    bytes[field::CIADDR..field::CIADDR + 4].copy_from_slice(&lease.address.octets());
    bytes.extend([53, 1, 7, 54, 4]);
    bytes.extend(lease.server.octets());
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

fn header(mac: Mac, xid: u32) -> Vec<u8> {
    let mut bytes = vec![0; field::OPTIONS];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[field::XID..field::XID + 4].copy_from_slice(&xid.to_be_bytes());
    bytes[field::CHADDR..field::CHADDR + 6].copy_from_slice(&mac.0);
    bytes[field::COOKIE..].copy_from_slice(&COOKIE);
    bytes
}

/// A reply to this transaction: its type and its lease.
fn parse(payload: &[u8], xid: u32, mac: Mac) -> Option<(MessageType, Lease)> {
    // `Message::chaddr()` panics when hlen, as sent, is beyond 16.
    let message = Message::decode(&mut Decoder::new(payload)).ok().filter(|_| payload[field::HLEN] == 6)?;
    if message.opcode() != Opcode::BootReply || message.xid() != xid || message.chaddr() != mac.0 {
        return None;
    }
    let options = message.opts();
    let address = |code| match options.get(code) {
        Some(DhcpOption::ServerIdentifier(a) | DhcpOption::SubnetMask(a)) => Some(*a),
        Some(DhcpOption::Router(all)) => all.first().copied(),
        _ => None,
    };
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let file = match options.get(OptionCode::BootfileName) {
        Some(DhcpOption::BootfileName(name)) => text(name),
        _ => text(message.fname().unwrap_or_default()),
    };
    let server = address(OptionCode::ServerIdentifier).unwrap_or(message.siaddr());
    let pxe = matches!(options.get(OptionCode::ClassIdentifier),
        Some(DhcpOption::ClassIdentifier(class)) if class.starts_with(b"PXEClient"));
    let skips_discovery = matches!(options.get(OptionCode::VendorExtensions),
        Some(DhcpOption::VendorExtensions(v)) if v.windows(3).any(|w| w[..2] == [6, 1] && w[2] & 8 != 0));
    let lease = Lease {
        address: message.yiaddr(),
        server,
        next_server: if message.siaddr().is_unspecified() { server } else { message.siaddr() },
        netmask: address(OptionCode::SubnetMask).unwrap_or(Ipv4Addr::UNSPECIFIED),
        router: address(OptionCode::Router),
        file,
        complete: pxe && skips_discovery,
    };
    Some((options.msg_type()?, lease))
}
