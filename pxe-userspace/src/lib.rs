//! The Bridgehead daemon and command line, as a library for its binary and its tests.
//!
//! Two walks explain the layout.
//!
//! - A packet that the kernel passed on: [`serve::dhcp::socket`] → [`serve::dhcp::server`] → the reply builder of
//!   `pxe-common` → the store → back out. Or [`serve::tftp::socket`] → [`serve::files`] → [`serve::tftp::transfer`] → back
//!   out, and where the kernel can go on by itself, → [`dataplane`].
//! - An image: [`provision::image`] (Docker → tree → kernel and initrds → store) → [`provision::boot`] (what a machine is told
//!   to load) → [`serve::files`] (names to bytes) → [`serve::tftp`], [`api`] (HTTP) or [`dataplane`] (block map).
//!
//! Around them: [`app`] starts everything in order and is the only module that sees all;
//! [`config`] is read by most, [`host::net`] has the bridge, [`nodes::workload`] the appliance's own containers,
//! and all of them tell [`machines`] and the [`machines::timeline`] what happened, which [`api`] and [`cli`] show.
//! [`storm`] stands apart: the machines' side, to load an appliance with.

pub mod api;
pub mod app;
pub mod base;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod host;
pub mod machines;
pub mod nodes;
pub mod provision;
pub mod serve;
pub mod store;
pub mod storm;
