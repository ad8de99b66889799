//! `/image.json`: what an image is, and what runs in it. It is written when the image is packed, and read on each node
//! that boots it.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Description {
    /// The image's name, as Docker has it.
    pub reference: String,
    /// The image's ID at its origin.
    pub id: String,
    /// Of the root file system's contents.
    pub digest: String,
    /// Entry point and command.
    pub argv: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory.
    pub cwd: String,
    /// `USER[:GROUP]`, by name or number; empty is root.
    pub user: String,
    /// `SIGTERM` or a number; none means SIGTERM.
    pub stop_signal: Option<String>,
    /// The check that says whether the workload is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Extended attributes, which the archive can't hold: pxe-init sets them.
    pub xattrs: Vec<Xattr>,
}

/// A program that says whether the workload is healthy. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HealthCheck {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// From the end of one check to the next one.
    pub interval: u64,
    /// A check that takes longer has failed.
    pub timeout: u64,
    /// Failures do not count for this long, until the first success.
    pub start_period: u64,
    /// How many failures in a row make the workload unhealthy.
    pub retries: u32,
}

/// An extended attribute of one file (xattr(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Xattr {
    /// Below the image's root, without a leading slash.
    pub path: String,
    /// With its name space: `security.capability`.
    pub name: String,
    /// Hexadecimal.
    pub value: String,
}
