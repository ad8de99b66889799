//! The appliance in a virtual machine: the kernel of a Debian release, a card of some model, and on the other side of its
//! cable the lab's hosts, firmware machines and captures.
//!
//! Read it in this order: [`kernel`] (the kernels and their modules), [`card`] (models and their features),
//! [`initramfs`] (what the machine boots), [`agent`] (runs commands in the machine and returns their output), [`machine`]
//! (QEMU, its cable, the agent's channel) and [`appliance`] (the daemon in the machine).
//! `docs/lab.md` says how to look into one.

pub mod agent;
pub mod appliance;
pub mod card;
pub mod initramfs;
pub mod kernel;
pub mod machine;

pub use agent::Output;
pub use appliance::Inside;
pub use card::Card;
pub use kernel::Suite;
pub use machine::{Guest, LAN, Options};
