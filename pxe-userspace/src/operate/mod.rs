//! What people do to the appliance and its machines: who may do what, what was done, machines' power, and launches.

pub mod access;
pub mod audit;
pub mod launch;
pub mod power;
