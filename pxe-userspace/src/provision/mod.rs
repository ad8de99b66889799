//! What a machine gets: kernels, initrds, images, disks, and its loader's configuration.

pub mod blob;
pub mod boot;
pub mod image;
pub mod planner;
pub mod storage;
pub(crate) mod tools;
pub mod trials;
