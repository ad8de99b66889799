//! The Bridgehead daemon and command line, as a library for its binary and its tests.
//!
//! Two walks explain the layout.
//!
//! - A packet that the kernel passed on: [`dhcp::socket`] → [`dhcp::server`] → the reply builder of
//!   `pxe-common` → the store → back out. Or [`tftp::socket`] → [`files`] → [`tftp::transfer`] → back
//!   out, and where the kernel can go on by itself, → [`dataplane`].
//! - An image: [`image`] (Docker → tree → kernel and initrds → store) → [`boot`] (what a machine is told
//!   to load) → [`files`] (names to bytes) → [`tftp`], [`api`] (HTTP) or [`dataplane`] (block map).
//!
//! Around them: [`app`] starts everything in order and is the only module that sees all;
//! [`config`] is read by most, [`net`] has the bridge, [`workload`] the appliance's own containers,
//! and all of them tell [`machines`] and the [`timeline`] what happened, which [`api`] and [`cli`] show.
//! [`storm`] stands apart: the machines' side, to load an appliance with.

pub mod api;
pub mod app;
mod base;
pub mod blob;
pub mod boot;
pub mod carousel;
pub mod cli;
mod clock;
pub mod config;
pub mod console;
pub mod dataplane;
pub mod dhcp;
pub mod diagnosis;
pub mod engine;
pub mod files;
pub mod holds;
pub mod image;
pub mod machines;
pub mod net;
pub mod pacing;
pub mod rescue;
pub mod secret_file;
pub mod storage;
pub mod store;
pub mod storm;
pub mod text;
pub mod tftp;
pub mod timeline;
pub mod trace;
pub mod trials;
pub mod trust;
pub mod workload;
