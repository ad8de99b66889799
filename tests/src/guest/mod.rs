//! The appliance in a virtual machine: the kernel of some Debian release, a card of some model, and on the other side of
//! its cable the lab's hosts, firmware machines and captures.
//!
//! Read it in this order: [`kernel`] (which kernels there are, and what of their modules is needed), [`card`] (models and
//! what they are asked to offer), [`initramfs`] (what the machine starts from), [`agent`] (commands run in there, and what
//! they say comes back), [`machine`] (QEMU, its cable, the agent's channel) and [`appliance`] (the daemon in there).
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
