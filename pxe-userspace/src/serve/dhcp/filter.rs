//! Who may speak for a machine: the machine's own station, and relays.
//!
//! A UDP socket does not tell which station sent a datagram. But a kernel filter sees the datagram's frame (`SKF_LL_OFF`
//! of linux/filter.h), and truncates messages of another station to [`FORGED_LEN`] bytes. Otherwise one frame would be
//! enough to release, decline or move another machine's address.

use ipnet::Ipv4Net;
use nix::libc::{SKF_LL_OFF, SKF_NET_OFF};
use pxe_common::dhcp::field;
use socket2::SockFilter;

use crate::host::net::packet::{PASS, if_equal, load_half, load_word, unless_equal};

/// Bytes that are left of a forged message: those up to and including the machine's address. No valid message is so
/// short.
pub(super) const FORGED_LEN: usize = field::CHADDR + 6;

/// A datagram begins with UDP's header.
const UDP: u32 = 8;

/// Keeps messages whole that come from a relay, from another network, or from the station that they name as the client.
///
/// A message from another network was routed, so its frame has the router's MAC. It can be trusted no more than that
/// whole network.
pub(super) fn own_words(segment: Ipv4Net) -> [SockFilter; 18] {
    let (message, frame, packet) = (UDP, SKF_LL_OFF as u32, SKF_NET_OFF as u32);
    let (mask, network) = (segment.netmask().to_bits(), segment.network().to_bits());
    // linux/bpf_common.h: accumulator to X; jump if they are equal; load the datagram's length.
    let to_x = || SockFilter::new(0x07, 0, 0, 0);
    let unless_x = |distance| SockFilter::new(0x1d, 0, distance, 0);
    let load_len = SockFilter::new(0x80, 0, 0, 0);
    let shorten = SockFilter::new(0x06, 0, 0, UDP + FORGED_LEN as u32);
    [
        // Shorter messages are refused elsewhere.
        load_len,
        SockFilter::new(0x35, 0, 15, UDP + FORGED_LEN as u32),
        load_word(message + field::GIADDR as u32),
        unless_equal(0, 13),
        // The packet's source.
        load_word(packet + 12),
        if_equal(0, 2),
        SockFilter::new(0x54, 0, 0, mask),
        unless_equal(network, 9),
        // The frame's source, in two parts.
        load_word(frame + 6),
        to_x(),
        load_word(message + field::CHADDR as u32),
        unless_x(4),
        load_half(frame + 10),
        to_x(),
        load_half(message + field::CHADDR as u32 + 4),
        SockFilter::new(0x1d, 1, 0, 0),
        shorten,
        PASS,
    ]
}
