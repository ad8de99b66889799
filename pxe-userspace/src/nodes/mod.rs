//! What runs on machines after their boot, and how they and the appliance authenticate each other.

pub mod engine;
pub mod trust;
pub mod workload;
