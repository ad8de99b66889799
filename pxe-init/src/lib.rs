//! The first process of a node that Bridgehead booted: from the kernel's hand-over to the running workload of a
//! Docker image, and what happens when that ends. docs/node.md says what it does and which command-line keys it
//! reads; [`boot`] has the steps in order.
//!
//! It is in the initrd (stage 1), statically linked, next to BusyBox and the kernel's modules. The image's root file
//! system is below `/image`, described by `/image.json`; in a boot of two stages it is a SquashFS (`stage2`).

pub mod boot;
pub mod carousel;
pub mod console;
pub mod delta;
pub mod facts;

mod account;
mod appliance;
mod cache;
mod engine;
mod enrol;
mod fetch;
mod handover;
mod head;
pub mod health;
mod image;
mod link;
mod lock;
mod modules;
mod mounts;
mod netconsole;
mod netlink;
pub mod output;
mod power;
mod program;
mod renewal;
mod report;
mod request;
mod rescue;
mod ship;
mod signals;
mod ssh;
mod stage2;
mod steps;
mod storage;
pub mod supervise;
mod system;
mod ticket;
mod told;
pub mod workload;
mod xattr;

pub use account::{Account, AccountError};
pub use handover::{STAY, stay};
pub use image::{Image, ImageError};
pub use modules::load_as_modprobe;

/// Prints a line on the console, and keeps it for the appliance.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::console::say(format_args!($($arg)*))
    };
}
