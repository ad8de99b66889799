//! Multicast rounds: whether there is one of an image, and what its receivers lack (`POST /carousel/SHA-256`). The
//! answer is 200 with an [`Offer`], or 204 while HTTP is the better way. The packets of a round are in
//! [`crate::symbols`]; docs/carousel.md describes it all.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

/// What a machine says when it asks: nothing yet, or how it fares in its round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Reception {
    /// After the highest sequence number that it has seen.
    pub sequence: u32,
    /// Packets that came.
    pub came: u64,
    /// Blocks that it can't put together yet.
    pub lacks: Vec<Lack>,
    /// It has the image, or gets the rest by HTTP.
    pub done: bool,
}

/// Blocks, both included, of which so many symbols are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The first of them.
    pub first: u32,
    /// The last of them.
    pub last: u32,
    /// Of each.
    pub symbols: u32,
}

/// Where and how a round is to be received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Offer {
    /// The multicast group, and UDP's port.
    pub group: SocketAddrV4,
    /// Bytes.
    pub symbol_size: u16,
    /// Symbols of a block that is not the last.
    pub block_symbols: u16,
    /// Milliseconds between a receiver's reports.
    pub report_every: u64,
    /// Bytes a second that HTTP would bring to each receiver, were they all to take it.
    pub http_rate: u64,
}
