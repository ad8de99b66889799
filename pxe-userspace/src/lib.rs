//! The Bridgehead daemon and command line, as a library for its binary and its tests.
//!
//! Two paths through the code explain the layout; ARCHITECTURE.md has them file by file.
//!
//! - A packet that the kernel passed on: [`serve::dhcp::socket`] → [`serve::dhcp::server`] → the reply builder of
//!   `pxe-common` → the store → the socket. Or [`serve::tftp::socket`] → [`serve::files`] → [`serve::tftp::transfer`]
//!   → the socket, and if the kernel can take over the transfer, → [`dataplane`].
//! - An image: [`provision::image`] (Docker → tree → kernel and initrds → store) → [`provision::boot`] (what a machine is told
//!   to load) → [`serve::files`] (names to bytes) → [`serve::tftp`], [`api`] (HTTP) or [`dataplane`] (block map).
//!
//! Around them: [`app`] starts everything in order, and is the only module that knows all the others; [`config`] is
//! read by most of them, [`host::net`] manages the bridge, [`nodes::workload`] the containers on the appliance and on
//! nodes. All of them report to [`machines`] and its [`machines::timeline`], which [`api`] and [`cli`] show. [`storm`]
//! is separate: it simulates machines that put load on an appliance.

pub mod api;
pub mod app;
pub mod base;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod host;
pub mod machines;
pub mod nodes;
pub mod operate;
pub mod provision;
pub mod serve;
pub mod store;
pub mod storm;
