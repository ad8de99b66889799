//! The JSON documents of the API: kebab-case, times RFC 3339 with microseconds, sizes in bytes,
//! durations in seconds. The command line reads the same types.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::facts::Facts;
use pxe_contract::failure::ErrorDocument;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{schema, text};
use crate::config::Node;
use crate::machines::Machine;
use crate::machines::kept::Done;
use crate::operate::access::{Role, Token};
use crate::operate::power::{self, Outcome, PowerError, Verb};
use crate::provision::image::ImageRecord;

pub use crate::dataplane::{KernelStatus, PortStatus, ProgramState, ProgramStatus, Tier};
pub use crate::machines::pacing::progress::Wave;
pub use crate::nodes::workload::{WorkloadState, WorkloadStatus as Workload};
pub use crate::operate::audit::Entry as AuditEntry;
pub use crate::operate::launch::Whole as WholeLaunch;
pub use crate::operate::launch::model::{Launch, LaunchEvent};
pub use crate::provision::image::Freed as Collected;
pub use crate::serve::dhcp::PacingStatus as Pacing;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub version: String,
    #[serde(serialize_with = "text::micros")]
    pub started: Timestamp,
    pub bridge: BridgeStatus,
    /// The first and last address for machines without a reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<[Ipv4Addr; 2]>,
    pub ports: Vec<PortStatus>,
    /// What this kernel supports of the fast path. `None` when the fast path is off.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fast_path: Option<KernelStatus>,
    /// The progress of the present boots.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boots: Option<Wave>,
    pub pacing: Pacing,
    /// Alerts, in words. Empty when all is well.
    pub alerts: Vec<String>,
    /// Running totals since the start, by kebab-case name.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct BridgeStatus {
    pub name: String,
    #[schemars(with = "schema::Prefix")]
    pub address: Ipv4Net,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Lease {
    pub address: Ipv4Addr,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub state: LeaseState,
    #[serde(serialize_with = "text::micros")]
    pub expires: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    Offered,
    Bound,
    Expired,
    Released,
    /// Its client found it in use by another machine.
    Declined,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FileEntry {
    /// Below the files root.
    pub path: String,
    pub bytes: u64,
    #[serde(serialize_with = "text::micros")]
    pub modified: Timestamp,
}

/// An image's record, and who boots it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    #[serde(flatten)]
    pub record: ImageRecord,
    /// All names that the image has here, this one among them.
    #[serde(default)]
    pub names: Vec<String>,
    /// Profiles that boot it.
    pub profiles: Vec<String>,
    /// In how many stages it boots, unless profile or memory decide otherwise.
    pub stages: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Profile {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    pub cmdline: String,
    /// Whether a machine could boot it now.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A new token. It can't be shown again.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NewToken {
    #[serde(flatten)]
    pub token: Token,
    #[serde(rename = "token")]
    pub secret: String,
}

/// Links that log one browser in, once: the same link for each address of the page.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Invitation {
    pub role: Role,
    pub links: Vec<String>,
    #[serde(serialize_with = "text::micros")]
    pub expires: Timestamp,
}

/// How to get into a machine whose boot has stopped. No `Debug`: it has a password.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct WayIn {
    pub node: String,
    #[serde(with = "crate::base::text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    pub user: String,
    /// Absent once it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The fingerprint, as ssh shows it.
    pub host_key: String,
    /// When the machine was last heard of.
    #[serde(serialize_with = "crate::base::text::micros")]
    pub heard: Timestamp,
}

/// What a machine is made of, as it told it last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct MachineFacts {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    /// When it told it.
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
    #[serde(flatten)]
    #[schemars(with = "schema::Facts")]
    pub facts: Facts,
}

/// What a change of machines that are kept did, by their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodesChanged {
    /// Machines that were meant. Those that were so already are in none of the lists.
    pub meant: usize,
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl NodesChanged {
    pub fn len(&self) -> usize {
        self.added.len() + self.changed.len() + self.removed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&Done> for NodesChanged {
    fn from(Done { before, after, meant, forgotten }: &Done) -> Self {
        let names = |nodes: &[Arc<Node>]| -> BTreeMap<String, String> {
            nodes.iter().map(|node| (node.name.to_ascii_lowercase(), node.name.clone())).collect()
        };
        let (before, after) = (names(before), names(after));
        let (changed, added) = after.iter().partition::<Vec<_>, _>(|(id, _)| before.contains_key(*id));
        let removed = before.iter().filter(|(id, _)| !after.contains_key(*id)).map(|(_, name)| name.clone());
        let removed = removed.chain(forgotten.iter().map(|node| node.name.clone()));
        let owned =
            |names: Vec<(&String, &String)>| names.into_iter().map(|(_, name)| name.clone()).collect();
        Self { meant: *meant, added: owned(added), changed: owned(changed), removed: removed.collect() }
    }
}

/// What came of an order for one machine's power, or of asking for it. One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PowerResult {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    pub action: Verb,
    /// `None` when it failed.
    #[serde(flatten, skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Outcome>,
    /// Why it failed, in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// And what kind of cause that is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<power::Kind>,
}

impl PowerResult {
    pub fn of(machine: &Machine, action: Verb, done: Result<Outcome, PowerError>) -> Self {
        let (outcome, error) = match done {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            node: machine.name.clone(),
            mac: machine.mac,
            action,
            outcome,
            kind: error.as_ref().map(PowerError::kind),
            error: error.map(|error| text::chain(&error)),
        }
    }

    /// What people call the machine: its name, else its MAC address.
    pub fn label(&self) -> String {
        self.node.clone().unwrap_or_else(|| self.mac.to_string())
    }

    /// What of it is kept in the audit.
    pub fn told(&self) -> serde_json::Value {
        match (&self.outcome, &self.error) {
            (Some(outcome), _) => serde_json::json!(outcome),
            (None, error) => serde_json::json!({ "error": error, "kind": self.kind }),
        }
    }
}

/// What a changed configuration file changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    pub changed: Vec<String>,
    /// What changed in the file, but takes effect only at the next start.
    pub needs_restart: Vec<String>,
}

/// A step of an image's import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// In words: `exporting`, `layer 2 of 3`, `packing`.
    pub step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// One line of the answer to `POST /api/images`. The last one is `done` or `failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageLine {
    Progress(Progress),
    Done(Box<Image>),
    Failed(#[schemars(with = "schema::Failure")] ErrorDocument),
}

/// A launch that was asked for: as it begins, or as it would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Asked {
    /// Nothing was changed, and its id is 0.
    pub dry_run: bool,
    /// What people should know beforehand, in words.
    pub notes: Vec<String>,
    #[serde(flatten)]
    pub launch: WholeLaunch,
}

/// One line of the streamed answer to `POST /api/launches`. The last one is `done` or `failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchLine {
    Progress(Progress),
    Done(Box<Asked>),
    Failed(#[schemars(with = "schema::Failure")] ErrorDocument),
}

/// What a person's word did for the keys of a machine's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Rekey {
    /// The machine's name, or its MAC address.
    pub node: String,
    pub keys: ReleasedTo,
    /// Its next boot begins by then, or gets none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Which boot gets the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReleasedTo {
    ThisBoot,
    NextBoot,
}
