//! DHCP: [`leases`] and [`server`] decide (pure, time passed in), [`socket`] and [`store`] do.
//!
//! A packet's way: `socket` receives → `server` parses it with `pxe-common` (`rare` unfolds
//! what the fixed-size parser passes), asks `leases`, builds replies with `pxe-common` → `store`
//! commits what the batch changed → `socket` sends. Nothing is sent before the commit.
//!
//! A lease that is stored goes to the kernel programs, too ([`kernel`]). From then on they answer
//! its machine, and what they did comes back as events: they renew the lease as the machine's
//! own packets would have.

pub mod kernel;
pub mod leases;
mod rare;
pub mod scope;
pub mod server;
pub mod socket;
pub mod store;

pub use kernel::{Answered, Kernel, LeaseMap, Told};
pub use leases::{Change, Lease, LeaseState, Leases};
pub use scope::Scope;
pub use server::{Command, Counters, Rival, Server, Standing};
pub use socket::{Bound, Dhcp, PacingStatus, ServeError, Status, bind};
pub use store::{CommitError, LeaseStore};
