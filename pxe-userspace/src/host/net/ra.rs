//! Answers router solicitations (RFC 4861 section 6.2.6): "I am no router, and there is no prefix".
//!
//! A BIOS machine's iPXE ROM tries IPv6 beside IPv4 and waits for a router before it goes on. With an answer, a boot
//! by GRUB reaches its kernel 13 seconds sooner. The frames are built here, so that it works even if the host has IPv6
//! switched off. The answer makes no machine use IPv6: the router lifetime is 0, and there is no prefix.

use std::io;
use std::net::Ipv6Addr;

use pxe_common::Mac;
use pxe_common::wire::{Checksum, ETHERNET_LEN, EtherType};
use tokio_util::sync::CancellationToken;

use super::packet::{self, PacketSocket};

const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const IPV6_LEN: usize = 40;
/// RFC 4861 section 6.1: anything less has crossed a router.
const HOP_LIMIT: u8 = 255;
/// The fixed part of an advertisement, then the option with the sender's hardware address.
const ADVERTISEMENT_LEN: usize = 16 + 8;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Answers solicitations on the interface until `shutdown`, after one advertisement to all.
pub async fn serve(interface: u32, own: Mac, shutdown: CancellationToken) -> io::Result<()> {
    let filter = packet::icmpv6(ROUTER_SOLICITATION);
    let socket = PacketSocket::open(interface, EtherType::IPV6, &filter)?;
    send(&socket, &unsolicited(own));
    let mut buffer = [0; 1514];
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            ready = socket.readable() => ready?,
        }
        match socket.try_receive(&mut buffer) {
            Ok(len) => {
                if let Some(advertisement) = answer(&buffer[..len], own) {
                    send(&socket, &advertisement);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(socket: &PacketSocket, frame: &[u8]) {
    if let Err(error) = socket.send(frame) {
        tracing::debug!(%error, "a router advertisement could not be sent");
    }
}

/// The advertisement to all nodes.
pub fn unsolicited(own: Mac) -> Vec<u8> {
    advertisement(own, ALL_NODES_MAC, ALL_NODES)
}

/// The advertisement that answers `frame`, when that is a router solicitation.
///
/// Its checksum is not verified, because a virtual machine may have left it to hardware that does not exist.
pub fn answer(frame: &[u8], own: Mac) -> Option<Vec<u8>> {
    let (ethernet, rest) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let (ip, icmp) = rest.split_first_chunk::<IPV6_LEN>()?;
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let solicitation = icmp.get(..payload)?;
    if ethernet[12..] != EtherType::IPV6.to_be_bytes()
        || ip[0] >> 4 != 6
        || ip[6] != ICMPV6
        || ip[7] != HOP_LIMIT
        || solicitation.len() < 8
        || solicitation[..2] != [ROUTER_SOLICITATION, 0]
    {
        return None;
    }
    let asker = Mac(ethernet[6..12].try_into().ok()?);
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&ip[8..24]).ok()?);
    if asker == own || !asker.is_unicast() {
        return None;
    }
    // A sender without an address yet listens only to the all-nodes group.
    match source.is_unicast_link_local() {
        true => Some(advertisement(own, asker, source)),
        false if source.is_unspecified() => Some(advertisement(own, asker, ALL_NODES)),
        false => None,
    }
}

fn advertisement(own: Mac, to_mac: Mac, to: Ipv6Addr) -> Vec<u8> {
    let source = link_local(own);
    let mut icmp = [0u8; ADVERTISEMENT_LEN];
    icmp[0] = ROUTER_ADVERTISEMENT;
    // Hop limit, flags, lifetime, timers: zero is "unspecified", and "not a default router".
    icmp[16..18].copy_from_slice(&[1, 1]);
    icmp[18..].copy_from_slice(&own.0);
    let checksum = Checksum::ZERO
        .bytes(&source.octets())
        .bytes(&to.octets())
        .word(ADVERTISEMENT_LEN as u16)
        .word(u16::from(ICMPV6))
        .bytes(&icmp)
        .finish();
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + ADVERTISEMENT_LEN);
    frame.extend_from_slice(&to_mac.0);
    frame.extend_from_slice(&own.0);
    frame.extend_from_slice(&EtherType::IPV6.to_be_bytes());
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, ADVERTISEMENT_LEN as u8, ICMPV6, HOP_LIMIT]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&icmp);
    frame
}

/// The link-local address that the interface has, or would have (RFC 4291 appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
#[path = "ra_tests.rs"]
mod tests;
