//! The Bridgehead daemon and command line, as a library for its binary and its tests.
//!
//! Two walks explain the layout; ARCHITECTURE.md has them file by file.
//!
//! - A packet that the kernel passed on: [`serve::dhcp::socket`] → [`serve::dhcp::server`] → the reply builder of
//!   `pxe-common` → the store → the socket. Or [`serve::tftp::socket`] → [`serve::files`] → [`serve::tftp::transfer`]
//!   → the socket, and where the kernel can take the transfer over, → [`dataplane`].
//! - An image: [`provision::image`] (Docker → tree → kernel and initrds → store) → [`provision::boot`] (what a machine is told
//!   to load) → [`serve::files`] (names to bytes) → [`serve::tftp`], [`api`] (HTTP) or [`dataplane`] (block map).
//!
//! Around them: [`app`] starts everything in order and is the only module that sees all the others; [`config`] is
//! read by most of them, [`host::net`] has the bridge, [`nodes::workload`] the containers on the appliance and on
//! nodes. All of them report to [`machines`] and its [`machines::timeline`], which [`api`] and [`cli`] show.
//! [`storm`] stands apart: it simulates machines, to load an appliance with.

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
