//! The network stack of a simulated machine: Ethernet, ARP and UDP, and retransmission.

use std::net::Ipv4Addr;

use pxe_common::Mac;
use pxe_common::wire::{Checksum, Datagram, ETHERNET_LEN, EtherType};

/// Outgoing frames, in order.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    pub(super) fn push(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.ends.push(self.bytes.len());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// What a machine counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Bytes of files.
    pub(super) bytes: u64,
    /// Packets that were retransmitted because no answer came.
    pub(super) retries: u64,
    /// Retries that no simulated loss explains.
    pub(super) unexplained: u64,
    /// Blocks that arrived more than once.
    pub(super) repeated: u64,
    /// How often GRUB or iPXE started over from its configuration.
    pub(super) restarts: u64,
}

/// A machine's place on the wire.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) mac: Mac,
    /// 0.0.0.0 until there is a lease.
    pub(super) address: Ipv4Addr,
    /// The next hop's MAC, from ARP; `None` while it is not known.
    pub(super) next_hop: Option<Mac>,
    pub(super) tally: Tally,
    /// Whether the simulated loss took a frame since the last progress.
    pub(super) bereft: bool,
}

impl Link {
    pub(super) fn new(mac: Mac) -> Self {
        Self { mac, address: Ipv4Addr::UNSPECIFIED, next_hop: None, tally: Tally::default(), bereft: false }
    }

    /// Something that the machine waited for has arrived.
    pub(super) fn progressed(&mut self) {
        self.bereft = false;
    }

    /// Something is retransmitted.
    pub(super) fn retried(&mut self) {
        self.tally.retries += 1;
        self.tally.unexplained += u64::from(!self.bereft);
    }

    /// Sends a datagram, as a broadcast or to the next hop; without a known next hop it is not sent.
    pub(super) fn udp(&self, out: &mut Frames, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) {
        let destination_mac = match to {
            Ipv4Addr::BROADCAST => Some(Mac::BROADCAST),
            _ => self.next_hop,
        };
        let (Some(destination_mac), Ok(payload_len)) = (destination_mac, payload.len().try_into()) else {
            return;
        };
        let datagram = Datagram {
            source_mac: self.mac,
            destination_mac,
            source: self.address,
            destination: to,
            source_port: ports.0,
            destination_port: ports.1,
            payload_len,
        };
        out.push(&[&datagram.headers(Checksum::ZERO.bytes(payload)), payload]);
    }

    /// Sends an IPv4 packet to the next hop.
    pub(super) fn ipv4(&self, out: &mut Frames, packet: &[u8]) {
        if let Some(next_hop) = self.next_hop {
            out.push(&[&next_hop.0, &self.mac.0, &EtherType::IPV4.to_be_bytes(), packet]);
        }
    }

    /// Asks who has `target` (RFC 826); for one's own address that is an announcement.
    pub(super) fn ask(&self, out: &mut Frames, target: Ipv4Addr) {
        self.arp(out, Mac::BROADCAST, 1, Mac::default(), target);
    }

    /// Tells whoever asks for our address.
    pub(super) fn answer(&self, out: &mut Frames, asked: &Arp) {
        if asked.is_request && asked.target == self.address && self.address != Ipv4Addr::UNSPECIFIED {
            self.arp(out, asked.sender_mac, 2, asked.sender_mac, asked.sender);
        }
    }

    fn arp(&self, out: &mut Frames, to: Mac, operation: u8, target_mac: Mac, target: Ipv4Addr) {
        out.push(&[
            &to.0,
            &self.mac.0,
            &EtherType::ARP.to_be_bytes(),
            &[0, 1, 8, 0, 6, 4, 0, operation],
            &self.mac.0,
            &self.address.octets(),
            &target_mac.0,
            &target.octets(),
        ]);
    }
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) is_request: bool,
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target: Ipv4Addr,
}

impl Arp {
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let arp = frame.get(ETHERNET_LEN..)?.first_chunk::<28>()?;
        if arp[..7] != [0, 1, 8, 0, 6, 4, 0] || !matches!(arp[7], 1 | 2) {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
        Some(Self {
            is_request: arp[7] == 1,
            sender_mac: Mac([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]),
            sender: address(14),
            target: address(24),
        })
    }
}

/// Milliseconds to wait after the first transmission and each retransmission. After the last wait the
/// client gives up.
pub(super) type Waits = &'static [u32];

/// Nanoseconds of a millisecond.
pub(super) const MS: u64 = 1_000_000;

/// How far a client is with its [`Waits`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    waits: Waits,
    sent: usize,
    pub(super) due: u64,
}

impl Retry {
    /// Something was sent for the first time.
    pub(super) fn start(waits: Waits, now: u64) -> Self {
        Self { waits, sent: 0, due: now + u64::from(waits[0]) * MS }
    }

    /// How often it was sent.
    pub(super) fn sent(&self) -> usize {
        self.sent + 1
    }

    /// The wait is over: true to retransmit, false after the last wait.
    pub(super) fn again(&mut self, now: u64) -> bool {
        self.sent += 1;
        match self.waits.get(self.sent) {
            Some(wait) => {
                self.due = now + u64::from(*wait) * MS;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_request_is_answered_by_its_target_only() {
        let mut link = Link::new(Mac([2, 0, 0, 0, 0, 1]));
        link.address = Ipv4Addr::new(10, 77, 0, 100);
        let mut asker = Link::new(Mac([2, 0, 0, 0, 0, 2]));
        asker.address = Ipv4Addr::new(10, 77, 0, 1);
        let mut out = Frames::default();
        asker.ask(&mut out, link.address);
        let asked = Arp::parse(out.iter().next().unwrap()).unwrap();
        out.clear();
        link.answer(&mut out, &asked);
        let frame = out.iter().next().unwrap();
        assert_eq!((frame.len(), &frame[..6]), (42, &asker.mac.0[..]));
        let answer = Arp::parse(frame).unwrap();
        assert_eq!((answer.is_request, answer.sender_mac, answer.sender), (false, link.mac, link.address));
        out.clear();
        asker.answer(&mut out, &asked);
        assert_eq!(out.len(), 0);
    }

    #[test]
    fn waits_end() {
        let mut retry = Retry::start(&[100, 200], 0);
        assert_eq!((retry.due, retry.sent()), (100 * MS, 1));
        assert!(retry.again(100 * MS));
        assert_eq!((retry.due, retry.sent()), (300 * MS, 2));
        assert!(!retry.again(300 * MS));
    }
}
