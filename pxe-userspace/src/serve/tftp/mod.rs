//! TFTP: [`transfer`] is the logic of one transfer and `server` that of all of them, both pure; `perform` performs
//! the server's Commands, [`socket`] receives, sends and reads the clock, and `aside` does what may block.
//!
//! A request arrives at port 69. The daemon opens the file, negotiates options, and answers from one of a few ports
//! that all transfers share. Where the fast path takes the transfer, the kernel answers its ACKs from then on. The
//! daemon learns of its end, retransmits lost blocks, and continues the transfer itself where the kernel can't.

mod aside;
mod asker;
mod fast_path;
mod job;
mod netascii;
mod options;
#[cfg(test)]
mod parity;
mod perform;
mod priority;
#[cfg(test)]
mod scraped;
mod server;
pub mod socket;
mod stats;
pub mod transfer;

pub use fast_path::{Declined, FastPath, Left, Note};
pub use stats::Stats;
