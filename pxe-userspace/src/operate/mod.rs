//! What people do to the appliance: who may, and what was done.

pub mod access;
pub mod audit;
