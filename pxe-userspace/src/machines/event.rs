//! What happens to machines: one entry of the timeline, as it is recorded, stored and shown.

use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{schema, text};

/// The part of the appliance that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AnsweredBy {
    Xdp,
    Tc,
    Daemon,
}

/// One entry of the timeline, as stored and as `bridgehead events --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// Grows by one with every event of this appliance.
    pub id: u64,
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    #[schemars(with = "schema::Stage")]
    pub stage: Stage,
    pub answered_by: AnsweredBy,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// What was sent or requested: a path, a firmware's name, an image's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Who asked for an address.
    #[serde(with = "text::firmware", skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Firmware>")]
    pub firmware: Option<Firmware>,
    /// Why a boot failed, or the warning, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The daemon learnt of it after a later event. It does not change the machine's stage.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub late: bool,
}

impl Event {
    /// Whether it changes its machine's stage.
    pub(super) fn moves(&self) -> bool {
        !self.late && self.stage != Stage::Warning
    }
}

/// An event before it has a place in the timeline.
#[derive(Clone, Debug)]
pub struct Happened {
    pub who: Who,
    pub stage: Stage,
    pub answered_by: AnsweredBy,
    pub bytes: Option<u64>,
    pub duration: Option<Duration>,
    /// Of a file: how long ago its transfer began.
    pub began_ago: Option<Duration>,
    pub detail: Option<String>,
    pub firmware: Option<Firmware>,
    pub cause: Option<String>,
}

/// How the observer of an event identifies the machine.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    Mac(Mac),
    /// The address that a lease bound to the machine.
    Address(Ipv4Addr),
}

impl Happened {
    /// An event of the daemon's, without figures.
    pub fn new(who: Who, stage: Stage) -> Self {
        Self {
            who,
            stage,
            answered_by: AnsweredBy::Daemon,
            bytes: None,
            duration: None,
            began_ago: None,
            detail: None,
            firmware: None,
            cause: None,
        }
    }

    /// A boot that ended early.
    pub fn failed(who: Who, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(who, Stage::Failed) }
    }

    /// Something that needs attention; it does not change the machine's stage.
    pub fn warning(who: Who, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(who, Stage::Warning) }
    }

    /// Adds the firmware, or loader, that asks for an address.
    pub fn firmware(self, firmware: Firmware) -> Self {
        Self { firmware: Some(firmware), ..self.detail(firmware.to_string()) }
    }

    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}
