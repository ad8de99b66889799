//! What people do: who may do what, what was done, and machines' power.

pub mod access;
pub mod audit;
pub mod power;
