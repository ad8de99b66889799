//! Lines that a node sends: its console's (`POST /node/console`), and its workload's (`POST /node/logs`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most lines in one batch.
pub const LINES_MAX: usize = 256;
/// The most bytes in one batch: enough for that many of the kernel's longest lines.
pub const BATCH_MAX: usize = 512 * 1024;

/// The body. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Batch<M> {
    /// Whose lines.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
    /// The kernel's random name of this boot.
    pub boot: String,
    /// The first line's number in this boot: by it a batch is recognised that is sent again after a lost answer.
    pub first: u64,
    /// Seconds since the kernel started, when this is sent.
    pub uptime: f64,
    /// In order of time.
    pub lines: Vec<Said>,
}

/// A line in a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Said {
    /// Seconds since the kernel started.
    pub uptime: f64,
    /// Its source.
    pub from: Source,
    /// The kernel's: 0 (emergency) to 7 (debug).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// It continues in the next line.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub partial: bool,
    /// Without the end of the line.
    pub text: String,
}

/// The source of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The node's kernel.
    Kernel,
    /// pxe-init.
    Stage1,
    /// The image's program.
    Workload,
    /// The crashing kernel itself. No node sends it in a batch.
    Netconsole,
}
