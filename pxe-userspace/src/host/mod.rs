//! The appliance's own links.

pub mod net;
pub mod trace;
