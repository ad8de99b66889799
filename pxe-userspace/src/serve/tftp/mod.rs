//! TFTP: [`transfer`] is a transfer's logic and `server` that of all of them, both pure; `perform` does what the
//! server wants done, [`socket`] receives, sends and knows the time, and `aside` does what may wait.
//!
//! A request comes to port 69. The daemon opens the file, agrees on options, and answers from one
//! of a few ports that all transfers share. Where the fast path takes the transfer, the kernel
//! answers its ACKs from then on; the daemon sees the last one, repeats what was lost, and goes
//! on by itself where the kernel can't.

mod aside;
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
