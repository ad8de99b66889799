//! The protocol engine that Bridgehead's daemon and its kernel programs share.
//!
//! Everything here works on fixed-size buffers, allocates nothing, and is written so that the kernel's verifier accepts
//! it: option walks consist of [`step`](dhcp)s that the caller repeats with a `for` loop on the host and with
//! `bpf_loop` in the kernel.
//!
//! * [`wire`]: Ethernet, IPv4 and UDP headers, checksums.
//! * [`dhcp`]: parses requests, and is the only builder of offers and acks.
//! * [`tftp`]: packets, block numbers that wrap, and a transfer's step from an ACK to the next DATA.
//! * [`map`]: the layout of everything that daemon and programs exchange.
//! * [`verdict`]: a program's decision about a frame, with every reason for passing it on.
#![no_std]
#![deny(missing_docs)]
// The compiler for the kernel programs supports it, because aya-ebpf needs it, too.
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
