//! Lines that a node sends: its console's (`POST /node/console`), and its workload's (`POST /node/logs`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Lines of one batch at most.
pub const LINES_MAX: usize = 256;
/// Bytes of one batch at most: so many lines, as long as the kernel makes them.
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
    /// The first line's number in this boot: a batch whose answer was lost comes again, and is known by it.
    pub first: u64,
    /// Seconds since the kernel started, when this is sent.
    pub uptime: f64,
    /// In the order in which they were said.
    pub lines: Vec<Said>,
}

/// A line on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Said {
    /// Seconds since the kernel started.
    pub uptime: f64,
    /// Who said it.
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

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The node's kernel.
    Kernel,
    /// pxe-init.
    Stage1,
    /// The image's program.
    Workload,
    /// The kernel while it died, by itself. No node sends it in a batch.
    Netconsole,
}
