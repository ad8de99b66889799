//! Bridgehead's kernel programs: one logic at two hooks.
//!
//! A frame comes in at the port where it arrived. [`frame`] reads its headers, [`dhcp`] answers
//! the machines whose leases the daemon has entered in the [`maps`], [`tftp`] the ACKs of
//! transfers that it has, and everything else goes on to the network stack unchanged, counted by
//! kind.
//!
//! XDP comes first, but can answer only where the driver's buffers have room for a block; tc
//! answers on every port, and the daemon everything that is rare.
#![no_std]
#![no_main]

mod dhcp;
mod frame;
mod maps;
mod tftp;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use frame::{Frame, Tc, Xdp};
use pxe_common::verdict::{Pass, Verdict};
use pxe_common::wire::{Datagram, HEADERS_LEN, port};

/// Where a frame's EtherType lies.
const ETHERTYPE: u32 = 12;

#[xdp(frags)]
pub(crate) fn bridgehead_xdp(ctx: XdpContext) -> u32 {
    match decide(&Xdp(ctx)) {
        Verdict::Reply(_) | Verdict::Offer | Verdict::Ack => xdp_action::XDP_TX,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Pass(_) => xdp_action::XDP_PASS,
    }
}

#[classifier]
pub(crate) fn bridgehead_tc(ctx: TcContext) -> i32 {
    let frame = Tc(ctx);
    match decide(&frame) {
        // SAFETY: a plain helper call; it only notes where the frame goes when we return.
        Verdict::Reply(_) | Verdict::Offer | Verdict::Ack => unsafe {
            bpf_redirect(frame.ifindex(), 0) as i32
        },
        Verdict::Drop(_) => TC_ACT_SHOT,
        // Not TC_ACT_OK: that would skip the programs of others on this port.
        Verdict::Pass(_) => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn decide<F: Frame>(frame: &F) -> Verdict {
    let verdict = look(frame).unwrap_or_else(Verdict::Pass);
    maps::count(F::HOOK, verdict);
    verdict
}

#[inline(always)]
fn look<F: Frame>(frame: &F) -> Result<Verdict, Pass> {
    let packet = datagram(frame)?;
    match packet.destination_port {
        port::DHCP_SERVER => dhcp::answer(frame, &packet),
        _ => tftp::answer(frame, &packet),
    }
}

/// A function of its own, so that the headers lie on the stack no longer than needed: functions
/// that call each other share 512 bytes.
#[inline(never)]
fn datagram<F: Frame>(frame: &F) -> Result<Datagram, Pass> {
    if frame.has_hidden_tag() {
        return Err(Pass::Vlan);
    }
    let Some(headers) = frame.load::<HEADERS_LEN>(0) else {
        let ethertype = frame.load(ETHERTYPE).ok_or(Pass::Runt)?;
        return Err(Pass::of_ethertype(u16::from_be_bytes(ethertype)));
    };
    let ethertype = u16::from_be_bytes([headers[12], headers[13]]);
    Datagram::parse(&headers, frame.len()).map_err(|why| Pass::of_malformed(why, ethertype))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that programs share with the kernel are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
