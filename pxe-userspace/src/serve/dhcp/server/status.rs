//! What the server counts, and the other servers that it noticed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::borrowed::DhcpOptionIterator;
use dhcproto::v4::{self, Opcode};
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::{COOKIE, Kind, MessageType, Pass, field, option};
use serde::Serialize;

/// A rival, or another subnet, is told of again after this long, not with every packet.
pub(super) const TELL_AGAIN: Duration = Duration::from_secs(600);

/// Rivals remembered; a machine that invents server identifiers must not fill the memory.
const MAX_RIVALS: usize = 32;

/// Packets since the start, by their outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counters {
    pub discovers: u64,
    pub requests: u64,
    pub declines: u64,
    pub releases: u64,
    pub informs: u64,
    pub offers: u64,
    pub acks: u64,
    pub naks: u64,
    /// Dropped because DHCP does not allow them, by reason.
    pub malformed: BTreeMap<&'static str, u64>,
    /// Requests of which an option was ignored: shorter than its definition, or cut off.
    pub odd: u64,
    /// In a machine's name, from another station.
    pub forged: u64,
    /// From machines that `dhcp.unknown = "ignore"` leaves alone.
    pub ignored: u64,
    /// From machines of subnets that are not configured, as their relays or they themselves say.
    pub foreign_relay: u64,
    /// Well-formed, but about nothing: a RELEASE of somebody else's address, a REQUEST for none.
    pub senseless: u64,
    /// DISCOVERs whose machines wait for their turn.
    pub held: u64,
    /// DISCOVERs without an answer because no address was free.
    pub exhausted: u64,
    /// Leases that the kernel confirmed after they had ended here.
    pub overtaken: u64,
    /// Not sent: too long for the client even without the options that can be left out.
    pub reply_too_long: u64,
}

impl Counters {
    /// Every reason is there from the start, with 0.
    pub(super) fn new() -> Self {
        Self { malformed: Pass::ALL.into_iter().map(|pass| (pass.name(), 0)).collect(), ..Self::default() }
    }

    pub(super) fn malformed(&mut self, pass: Pass) {
        *self.malformed.entry(pass.name()).or_default() += 1;
    }

    pub(super) fn received(&mut self, message: MessageType) {
        *match message {
            MessageType::Discover => &mut self.discovers,
            MessageType::Request => &mut self.requests,
            MessageType::Decline => &mut self.declines,
            MessageType::Release => &mut self.releases,
            MessageType::Inform => &mut self.informs,
        } += 1;
    }

    pub(super) fn sent(&mut self, kind: Kind) {
        *match kind {
            Kind::Offer | Kind::ProxyOffer => &mut self.offers,
            Kind::Ack | Kind::Informed | Kind::ProxyAck => &mut self.acks,
            Kind::Nak => &mut self.naks,
        } += 1;
    }
}

/// How a rival was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Its reply was overheard.
    Replied,
    /// A client chose its offer over ours.
    Chosen,
}

/// A machine of a subnet that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Where it says that it is: its relay's address, mostly.
    pub place: Ipv4Addr,
    pub mac: Mac,
    pub time: Timestamp,
}

/// Another DHCP server on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rival {
    pub server: Ipv4Addr,
    pub evidence: Evidence,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub first_seen: Timestamp,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub last_seen: Timestamp,
    pub packets: u64,
}

/// Every rival, by address.
#[derive(Debug, Default)]
pub(super) struct Rivals(BTreeMap<Ipv4Addr, (Rival, Timestamp)>);

impl Rivals {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Rival> {
        self.0.values().map(|(rival, _)| rival)
    }

    /// Notes a sighting; returns the rival when it is time to report it.
    pub(super) fn seen(&mut self, server: Ipv4Addr, evidence: Evidence, now: Timestamp) -> Option<Rival> {
        if let Some((rival, told)) = self.0.get_mut(&server) {
            rival.evidence = evidence;
            rival.last_seen = now;
            rival.packets += 1;
            if now.duration_since(*told).unsigned_abs() < TELL_AGAIN {
                return None;
            }
            *told = now;
            return Some(rival.clone());
        }
        if self.0.len() >= MAX_RIVALS {
            return None;
        }
        let rival = Rival { server, evidence, first_seen: now, last_seen: now, packets: 1 };
        self.0.insert(server, (rival.clone(), now));
        Some(rival)
    }
}

/// What an OFFER, ACK or NAK of another server says.
pub(super) struct Replied {
    pub(super) server: Ipv4Addr,
    /// The machine that it is for.
    pub(super) client: Option<Mac>,
    pub(super) acks: bool,
    /// `siaddr`: whom to ask in the next step of the boot.
    pub(super) next: Ipv4Addr,
}

/// `None` when the packet is nothing of that kind.
pub(super) fn replying_server(datagram: &[u8], source: Ipv4Addr) -> Option<Replied> {
    // Anybody can have sent it. `Message::chaddr()` of dhcproto 0.15 panics when hlen, as sent, is beyond 16.
    let fixed = datagram.get(..field::OPTIONS)?;
    if Opcode::from(fixed[field::OP]) != Opcode::BootReply || fixed[field::COOKIE..] != COOKIE {
        return None;
    }
    let (mut kind, mut server) = (None, source);
    for part in DhcpOptionIterator::new(&datagram[field::OPTIONS..]) {
        match (u8::from(part.code()), part.data()) {
            (option::MESSAGE_TYPE, [message]) => kind = Some(v4::MessageType::from(*message)),
            (option::SERVER_ID, [a, b, c, d]) => server = Ipv4Addr::new(*a, *b, *c, *d),
            _ => {}
        }
    }
    let address: [u8; 4] = fixed[field::SIADDR..][..4].try_into().ok()?;
    let mac: [u8; 6] = fixed[field::CHADDR..][..6].try_into().ok()?;
    let client = (fixed[field::HLEN] == 6).then_some(Mac(mac));
    let next = Ipv4Addr::from(address);
    let kind =
        kind.filter(|k| matches!(k, v4::MessageType::Offer | v4::MessageType::Ack | v4::MessageType::Nak))?;
    Some(Replied { server, client, acks: kind == v4::MessageType::Ack, next })
}
