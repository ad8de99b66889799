//! TFTP (RFC 1350), with options (RFC 2347), block size (RFC 2348), timeout and transfer size
//! (RFC 2349) and windows (RFC 7440).
//!
//! [`Session`] is a transfer's whole logic: an ACK goes in, the blocks to send next come out. The kernel programs and
//! the daemon run the same code on the same struct, so each can continue where the other stopped.

mod block;
pub mod packet;
mod session;
#[cfg(test)]
mod session_tests;

pub use block::BlockNo;
pub use packet::Packet;
pub use session::{Blocks, Session, Step, TooManyBlocks};

/// Bytes of a DATA packet before the data, and of a whole ACK.
pub const HEADER_LEN: usize = 4;

/// The block size of a request without `blksize` (RFC 1350).
pub const DEFAULT_BLKSIZE: u16 = 512;

/// The smallest and largest block size that may be asked for (RFC 2348).
pub const BLKSIZE_RANGE: core::ops::RangeInclusive<u16> = 8..=65464;
