//! Multicast rounds: whether there is one for an image, and what its receivers lack (`POST /carousel/SHA-256`). The
//! answer is 200 with an [`Offer`], or 204 while HTTP is the better way. The packets of a round are in
//! [`crate::symbols`]. See docs/carousel.md.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

/// A machine's request: empty at first, then with its state in the round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Reception {
    /// One above the highest sequence number that it has seen.
    pub sequence: u32,
    /// Packets received.
    pub came: u64,
    /// Blocks that it can't decode yet.
    pub lacks: Vec<Lack>,
    /// It has the image, or fetches the rest over HTTP.
    pub done: bool,
}

/// A range of blocks, both ends included, each of which lacks this many symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The first of them.
    pub first: u32,
    /// The last of them.
    pub last: u32,
    /// Missing symbols of each.
    pub symbols: u32,
}

/// Where and how to receive a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Offer {
    /// The multicast group, and the UDP port.
    pub group: SocketAddrV4,
    /// Bytes.
    pub symbol_size: u16,
    /// Symbols of a block that is not the last.
    pub block_symbols: u16,
    /// Milliseconds between a receiver's reports.
    pub report_every: u64,
    /// Bytes a second that HTTP would bring to each receiver if all used it.
    pub http_rate: u64,
}
