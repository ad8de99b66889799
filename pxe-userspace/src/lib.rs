//! The Bridgehead daemon and command line, as a library for its binary and its tests.
//!
//! Two walks explain the layout. A packet that the kernel passed on: [`dhcp::socket`] →
//! [`dhcp::server`] → the reply builder of `pxe-common`; or [`tftp::socket`] → [`files`] →
//! [`tftp::transfer`]. An image: [`image`] (Docker → tree → initrd → store) → [`boot`] (what a
//! machine is told to load) → [`files`] → [`dataplane`] (the kernel's block map).

pub mod api;
pub mod app;
pub mod blob;
pub mod boot;
pub mod cli;
mod clock;
pub mod config;
pub mod dataplane;
pub mod dhcp;
pub mod engine;
pub mod files;
pub mod image;
pub mod machines;
pub mod net;
pub mod tftp;
pub mod timeline;
pub mod workload;
