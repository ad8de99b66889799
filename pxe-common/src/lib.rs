//! The protocol engine that Bridgehead's daemon and its kernel programs share.
//!
//! Everything here works on fixed-size buffers, allocates nothing, and is written so that the
//! kernel's verifier accepts it: option walks are single [`step`](dhcp)s that the caller drives
//! with a `for` loop on the host and with `bpf_loop` in the kernel.
//!
//! * [`wire`]: Ethernet, IPv4 and UDP headers, checksums.
//! * [`dhcp`]: a request's bytes to what it asks for, and the one builder of offers and acks.
//! * [`tftp`]: packets, block numbers that wrap, and a transfer's step from ACK to next DATA.
//! * [`map`]: the layout of everything that daemon and programs exchange.
//! * [`verdict`]: what a program decided about a frame, and every reason for letting it pass.
#![no_std]
#![deny(missing_docs)]
// The compiler for the kernel programs takes it: aya-ebpf needs as much.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod copy;
pub mod dhcp;
pub mod map;
#[cfg(feature = "aya")]
mod pod;
pub mod tftp;
pub mod verdict;
pub mod wire;

pub use wire::Mac;
