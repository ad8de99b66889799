//! Who may speak for a machine: the machine's own station, and relays.
//!
//! A socket does not tell which station sent a datagram. A filter of the kernel sees the frame that it came in
//! (`SKF_LL_OFF` of linux/filter.h), and cuts what another station says down to [`FORGED_LEN`] bytes. One frame would
//! otherwise be enough to give back, decline or move another machine's address.

use ipnet::Ipv4Net;
use nix::libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_H, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_MISC,
};
use nix::libc::{BPF_RET, BPF_TAX, BPF_W, BPF_X, SKF_LL_OFF, SKF_NET_OFF};
use pxe_common::dhcp::field;
use socket2::SockFilter;

/// Bytes of a message that are left of a forged one: those up to and with the machine's address. None that is sound is
/// so short.
pub(super) const FORGED_LEN: usize = field::CHADDR + 6;

/// A datagram begins with UDP's header.
const UDP: u32 = 8;

/// Keeps whole what comes by a relay, from another network, or from the station that it names as the client.
///
/// What comes from another network was routed, and has the router's station. Nothing in it can be believed that is not
/// believed of the whole network.
pub(super) fn own_words(segment: Ipv4Net) -> [SockFilter; 18] {
    let (message, frame, packet) = (UDP, SKF_LL_OFF as u32, SKF_NET_OFF as u32);
    let (mask, network) = (segment.netmask().to_bits(), segment.network().to_bits());
    let word = |at| step(BPF_LD | BPF_W | BPF_ABS, at);
    let half = |at| step(BPF_LD | BPF_H | BPF_ABS, at);
    let keep = |bytes| step(BPF_RET | BPF_K, bytes);
    let tax = || step(BPF_MISC | BPF_TAX, 0);
    [
        // What is shorter is for others to refuse.
        step(BPF_LD | BPF_W | BPF_LEN, 0),
        jump(BPF_JGE | BPF_K, UDP + FORGED_LEN as u32, 0, 15),
        word(message + field::GIADDR as u32),
        jump(BPF_JEQ | BPF_K, 0, 0, 13),
        // The packet's source.
        word(packet + 12),
        jump(BPF_JEQ | BPF_K, 0, 2, 0),
        step(BPF_ALU | BPF_AND | BPF_K, mask),
        jump(BPF_JEQ | BPF_K, network, 0, 9),
        // The frame's source, in two parts.
        word(frame + 6),
        tax(),
        word(message + field::CHADDR as u32),
        jump(BPF_JEQ | BPF_X, 0, 0, 4),
        half(frame + 10),
        tax(),
        half(message + field::CHADDR as u32 + 4),
        jump(BPF_JEQ | BPF_X, 0, 1, 0),
        keep(UDP + FORGED_LEN as u32),
        keep(u32::MAX),
    ]
}

fn step(code: u32, k: u32) -> SockFilter {
    SockFilter::new(code as u16, 0, 0, k)
}

/// Goes on so many steps further, if so or not.
fn jump(code: u32, k: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new((BPF_JMP | code) as u16, yes, no, k)
}
