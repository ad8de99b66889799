//! What people do to the appliance: who may do what, and what was done.

pub mod access;
pub mod audit;
