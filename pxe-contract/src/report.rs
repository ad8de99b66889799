//! A node's reports about its boot: `POST /node/report`.

use alloc::string::String;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::stage::Stage;

/// The body. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report<M> {
    /// Whose boot.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
    /// What happened.
    pub stage: Reported,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Bytes of what was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds: that fetching took, or since pxe-init's first instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Why a boot failed, how the workload ended, or what is wrong with it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Of the workload's first process, as a shell gives it: a signal counts from 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Seconds since the node's kernel started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<f64>,
}

/// What a node can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reported {
    /// pxe-init runs and has a network.
    Stage1,
    /// The image's root file system is available and is the expected one.
    Image,
    /// The workload's program was started.
    Workload,
    /// The workload's first process ended, successfully or not.
    Exited,
    /// The boot can't go on.
    Failed,
}

impl<M> Report<M> {
    /// A report of a stage without further fields.
    pub fn new(mac: M, stage: Reported) -> Self {
        Self {
            mac,
            stage,
            detail: None,
            bytes: None,
            duration: None,
            cause: None,
            exit_code: None,
            uptime: None,
        }
    }
}

impl Reported {
    /// The stage that follows from it. An exit is no stage of a boot: after exit code 0 the node stays at its last stage,
    /// any other exit is a failure.
    pub fn stage(self, exit_code: Option<i32>) -> Stage {
        match self {
            Self::Stage1 => Stage::Stage1,
            Self::Image => Stage::Image,
            Self::Workload => Stage::Workload,
            Self::Exited if exit_code == Some(0) => Stage::Workload,
            Self::Exited | Self::Failed => Stage::Failed,
        }
    }
}
