//! Bridgehead's kernel programs: the same logic at two hooks.
//!
//! A program sees each frame at the port where it arrives. [`frame`] reads its headers, and [`parts`] decides which
//! part handles it: [`dhcp`] answers the machines whose leases the daemon has entered in the [`maps`], [`tftp`] the
//! ACKs of transfers that it has entered. All other frames continue to the network stack unchanged, counted by reason.
//!
//! XDP runs first, but can answer only if the driver's buffers have room for a block. tc answers on every port, and the
//! daemon answers everything rare.
//!
//! Each hook has three programs: an entry, which is attached, and two parts, which it tail-calls. A kernel whose
//! verifier rejects one of them still runs the others, and each has a stack of its own.
#![no_std]
#![no_main]
// Clippy checks the programs for the host's target, with a stable compiler.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod bounds;
mod dhcp;
mod frame;
mod maps;
mod parts;
mod tftp;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use frame::{Tc, Xdp};

#[xdp(frags)]
pub(crate) fn bridgehead_xdp(ctx: XdpContext) -> u32 {
    parts::enter(Xdp(ctx))
}

#[xdp(frags)]
pub(crate) fn xdp_dhcp(ctx: XdpContext) -> u32 {
    parts::dhcp(Xdp(ctx))
}

#[xdp(frags)]
pub(crate) fn xdp_tftp(ctx: XdpContext) -> u32 {
    parts::tftp(Xdp(ctx))
}

#[classifier]
pub(crate) fn bridgehead_tc(ctx: TcContext) -> i32 {
    parts::enter(Tc(ctx))
}

#[classifier]
pub(crate) fn tc_dhcp(ctx: TcContext) -> i32 {
    parts::dhcp(Tc(ctx))
}

#[classifier]
pub(crate) fn tc_tftp(ctx: TcContext) -> i32 {
    parts::tftp(Tc(ctx))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are available only to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
