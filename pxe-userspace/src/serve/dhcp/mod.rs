//! DHCP: [`leases`] and [`server`] decide (pure, time passed in), [`socket`] and [`store`] perform, on the sockets of
//! `wire`.
//!
//! A packet's path: `wire` receives → `server` parses it with `pxe-common` (`rare` rewrites what the fixed-size
//! parser does not handle), asks `leases`, builds replies with `pxe-common` → `store` commits what the batch changed
//! → `wire` sends. Nothing is sent before the commit.
//!
//! A stored lease is also granted to the kernel programs ([`kernel`]). From then on they answer its machine, and
//! report that as events, which renew the lease as the machine's own packets would have.

mod filter;
pub mod kernel;
pub mod leases;
mod rare;
pub mod scope;
pub mod server;
pub mod socket;
pub mod store;
mod wire;

pub use kernel::{Answered, Kernel, LeaseMap, Told};
pub use leases::{Change, Lease, LeaseState, Leases, Room};
pub use scope::Scope;
pub use server::{Command, Counters, Elsewhere, Rival, Server, Standing, Unnamed};
pub use socket::{Bound, Dhcp, PacingStatus, Status, bind};
pub use store::{CommitError, LeaseStore};
pub use wire::ServeError;
