//! DHCP: [`leases`] and [`server`] decide (pure, time passed in), [`socket`] and [`store`] do.
//!
//! A packet's way: `socket` receives → `server` parses it with `pxe-common` (`rare` unfolds
//! what the fixed-size parser passes), asks `leases`, builds replies with `pxe-common` → `store`
//! commits what the batch changed → `socket` sends. Nothing is sent before the commit.

pub mod leases;
mod rare;
pub mod scope;
pub mod server;
pub mod socket;
pub mod store;

pub use leases::{Change, Lease, LeaseState, Leases};
pub use scope::Scope;
pub use server::{Command, Counters, Rival, Server};
pub use socket::{Bound, Dhcp, ServeError, bind};
pub use store::{LeaseStore, WriteError};
