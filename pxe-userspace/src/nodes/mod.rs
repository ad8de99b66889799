//! What runs on machines afterwards, and whom it believes.

pub mod engine;
pub mod trust;
pub mod workload;
