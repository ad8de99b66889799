//! Who the machines are, and how their boots go.
//!
//! The register has one row for each machine, [`timeline`] its events ([`event`]), [`diagnosis`] why its boot fails,
//! [`pacing`] when it is its turn, [`console`] what it printed, [`holds`] and [`rescue`] what people do to its boot.
//! [`segment`] identifies the hosts that send requests. [`kept`] has the machines that people declare while the daemon
//! runs, [`facts`] what machines are made of.

pub mod console;
pub mod diagnosis;
pub mod event;
pub mod facts;
pub mod holds;
pub mod kept;
pub mod pacing;
mod register;
pub mod rescue;
pub mod segment;
pub mod timeline;

pub use register::{Fetching, Hold, Machine, Machines, Place};
