//! What the kernel programs may answer on their own: RFC 2131 section 4.3 for a machine whose
//! lease the daemon has stored.
//!
//! Every request that the lease does not cover is passed to the daemon: one for another address or server (a NAK, a
//! rival), or from a machine behind another router. The daemon would answer a covered request with the same bytes, to
//! the same destination.

use core::net::Ipv4Addr;

use super::{Kind, MessageType, Request};
use crate::Mac;
use crate::map::Lease;
use crate::wire::{Datagram, port};

/// The reply to a covered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// OFFER, ACK, or ACK to an INFORM.
    pub kind: Kind,
    /// Its headers, with the destination. The length is still zero.
    pub headers: Datagram,
}

/// Why the lease does not cover a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncovered {
    /// RELEASE or DECLINE by the machine itself, to us: the lease ends here.
    Ends,
    /// A full lease time from now would exceed what is stored (design invariant 1).
    TooOld,
    /// It is for another server, or its path or contents need the daemon.
    Elsewhere,
    /// It names an address or server other than the lease's.
    Differs,
}

/// Decides about a request that arrived in `packet`, from the machine that has `lease`.
#[inline(always)]
pub fn covered(
    request: &Request,
    packet: &Datagram,
    lease: &Lease,
    now_ns: u64,
) -> Result<Answer, Uncovered> {
    // Checked first: a message that another station sends in the machine's name, or that is for another server, ends
    // nothing.
    if !request.is_plain() || !is_to_us(packet, lease) || !is_direct(request, packet, lease) {
        return Err(Uncovered::Elsewhere);
    }
    let grant = &lease.grant;
    let (address, server) = (Ipv4Addr::from(grant.address), Ipv4Addr::from(grant.server));
    if matches!(request.message, MessageType::Release | MessageType::Decline) {
        let ours = is_or_none(request.server_id, server);
        return Err(if ours { Uncovered::Ends } else { Uncovered::Elsewhere });
    }
    if now_ns.saturating_add(grant.lease_time as u64 * 1_000_000_000) > lease.durable_until_ns {
        return Err(Uncovered::TooOld);
    }
    if !is_or_none(request.ciaddr, address) {
        return Err(Uncovered::Differs);
    }
    let kind = match request.message {
        // Whatever address it asks for, a machine is offered its own.
        MessageType::Discover => Kind::Offer,
        // SELECTING, INIT-REBOOT, RENEWING and REBINDING differ in what they leave out (RFC 2131 table 4). A request
        // without any address makes no sense.
        MessageType::Request
            if is_or_none(request.server_id, server)
                && is_or_none(request.requested, address)
                && (request.requested == address || request.ciaddr == address) =>
        {
            Kind::Ack
        }
        MessageType::Inform if request.ciaddr == address => Kind::Informed,
        MessageType::Request | MessageType::Decline | MessageType::Release | MessageType::Inform => {
            return Err(Uncovered::Differs);
        }
    };
    Ok(Answer { kind, headers: way_back(request, packet, lease) })
}

/// Broadcast, or sent to both addresses of the appliance.
#[inline(always)]
fn is_to_us(packet: &Datagram, lease: &Lease) -> bool {
    let server = Ipv4Addr::from(lease.grant.server);
    (packet.destination_mac == Mac::BROADCAST || packet.destination_mac == lease.server_mac)
        && (packet.destination.is_broadcast() || packet.destination == server)
}

/// From the machine's own station, or from a relay of this segment.
#[inline(always)]
fn is_direct(request: &Request, packet: &Datagram, lease: &Lease) -> bool {
    if request.giaddr.is_unspecified() {
        return packet.source_mac == request.mac;
    }
    let (relay, server) = (u32::from(request.giaddr), u32::from(Ipv4Addr::from(lease.grant.server)));
    packet.source == request.giaddr && (relay ^ server) & u32::from(Ipv4Addr::from(lease.netmask)) == 0
}

/// RFC 2131 section 4.1. A client that uses its own address needs no ARP: the frame contains its hardware address.
#[inline(always)]
fn way_back(request: &Request, packet: &Datagram, lease: &Lease) -> Datagram {
    let (mac, address, port) = if !request.giaddr.is_unspecified() {
        (packet.source_mac, request.giaddr, port::DHCP_SERVER)
    } else if !request.ciaddr.is_unspecified() {
        (request.mac, request.ciaddr, port::DHCP_CLIENT)
    } else if request.broadcast() {
        (Mac::BROADCAST, Ipv4Addr::BROADCAST, port::DHCP_CLIENT)
    } else {
        (request.mac, lease.grant.address.into(), port::DHCP_CLIENT)
    };
    Datagram {
        source_mac: lease.server_mac,
        destination_mac: mac,
        source: lease.grant.server.into(),
        destination: address,
        source_port: port::DHCP_SERVER,
        destination_port: port,
        payload_len: 0,
    }
}

#[inline(always)]
fn is_or_none(named: Ipv4Addr, expected: Ipv4Addr) -> bool {
    named.is_unspecified() || named == expected
}
