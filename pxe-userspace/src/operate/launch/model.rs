//! What a launch is: what was asked for, and how far each machine is. As it is stored, and as people read it. Pure.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::base::schema;
use crate::base::text;
use crate::config::nodes::Launched;

/// A launch without its machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Launch {
    /// From 1, in the order of asking.
    pub id: u64,
    #[serde(serialize_with = "text::micros")]
    pub asked: Timestamp,
    /// Who asked: a token's name or a user.
    pub by: String,
    /// As it was written.
    pub select: String,
    /// What was asked for, in words: `image hello-metal:latest`.
    pub what: String,
    /// The launch whose machines this one brings back to what they were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undoes: Option<u64>,
    #[serde(flatten)]
    pub terms: Terms,
    pub phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verdict: Option<Verdict>,
    /// Up to this event of the timeline, everything is taken into account.
    pub seen: u64,
}

/// How a launch goes about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Terms {
    /// Machines that are begun and not through, at most; absent when only the links limit it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_a_time: Option<u32>,
    /// So many machines go first. The others begin when all of them are healthy.
    pub canary: u32,
    /// When more machines than this are set aside, no other machine begins.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Limit>")]
    pub max_failed: Option<Limit>,
    /// How often a machine is powered on at most.
    pub tries: u32,
    /// It is over by then, whatever is missing.
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "text::micros_if_any")]
    pub deadline: Option<Timestamp>,
    /// Seconds: how long a machine may take from power-on to its first DISCOVER, and from its workload to its health.
    pub patience: u64,
    /// The URL that says that a machine is healthy, with `{address}` or `{name}`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub healthy: Option<String>,
}

/// A number of machines, or a share of those of the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Machines(u32),
    /// 0 to 100.
    Percent(u8),
}

impl Limit {
    /// So many of `all`, rounded down.
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Machines(machines) => machines as usize,
            Self::Percent(percent) => all * usize::from(percent) / 100,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machines(machines) => write!(f, "{machines}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = || "write a number of machines, or a share such as 5%".to_owned();
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Machines).map_err(|_| right()),
            Some(percent) => match percent.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(right()),
            },
        }
    }
}

/// A number, or text such as `"5%"`.
impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(String),
        }
        match Either::deserialize(d)? {
            Either::Number(machines) => Ok(Self::Machines(machines)),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Machines(machines) => s.serialize_u32(*machines),
            Self::Percent(_) => s.collect_str(self),
        }
    }
}

/// How far a launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Machines begin.
    Running,
    /// No other machine begins, and none is tried again; those that were begun are watched to their end.
    Stopping,
    /// It is over as soon as each power action in flight is answered.
    Ending,
    Ended,
}

/// How a launch ended, or is about to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    pub outcome: Outcome,
    /// For people.
    pub words: String,
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every machine is healthy.
    Healthy,
    /// Every machine had its tries, and some are set aside.
    Failed,
    /// A canary, or too many machines, failed: some never began.
    Stopped,
    Deadline,
    Cancelled,
}

/// A machine in a launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Member {
    /// As it was called when the launch was asked for.
    pub name: String,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub canary: bool,
    /// What can be done about its power.
    pub reach: Reach,
    /// What tells that it is healthy.
    pub judged: Judged,
    /// What it boots from its turn on; absent for what its declaration says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Launched>,
    /// What it booted before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<Launched>,
    /// The target is in effect, by this launch.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub assigned: bool,
    /// When the launch was asked for, it ran the target already.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub runs: bool,
    pub state: State,
    /// The last stage of this try's boot.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    /// What its power is asked for. It is stored before it is done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<Step>,
    /// From 1; 0 before its turn.
    pub tries: u32,
    /// When it came to this state.
    #[serde(serialize_with = "text::micros")]
    pub since: Timestamp,
    /// When this try was last heard of, from its boot on.
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "text::micros_if_any")]
    pub heard: Option<Timestamp>,
    /// When this try's workload came up.
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "text::micros_if_any")]
    pub up: Option<Timestamp>,
    /// Why the last try failed, or why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
}

/// The order is that of people's interest in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is not its turn yet.
    Waiting,
    Powering,
    /// It is on, or somebody else has to switch it on.
    Booting,
    Healthy,
    /// This try failed; another follows.
    Failed,
    /// It is left alone.
    SetAside,
}

impl State {
    /// Nothing more happens to it in this launch.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Healthy | Self::SetAside)
    }
}

/// A power action in flight. Each can be repeated: a machine that is off is switched off again without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Whether it is on.
    Ask,
    Off,
    On,
}

/// What can be done about a machine's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// It can be asked, switched on and off.
    Full,
    /// It can only be woken, and nothing says whether it is on.
    Wake,
    /// Somebody has to switch it on.
    None,
}

/// What tells that a machine is healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    /// The image's own check says so.
    HealthCheck,
    /// The workload runs for [`RUNS_FOR`](super::engine::RUNS_FOR).
    Workload,
    /// The URL of the launch's terms answers, once the workload runs.
    Url,
    /// The same for a kernel by hand, of which nothing is heard after its initrd.
    UrlFromKernel,
}

/// Something that changed: one line of the stream of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct LaunchEvent {
    /// In ascending order over all launches.
    pub id: u64,
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
    pub launch: u64,
    #[serde(flatten)]
    pub change: Changed,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Changed {
    /// The launch itself.
    #[serde(rename = "phase")]
    Phase {
        phase: Phase,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        verdict: Option<Verdict>,
    },
    Machine(MachineChange),
}

/// A machine's new state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct MachineChange {
    pub name: String,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    pub state: State,
    pub tries: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
}

impl From<&Member> for MachineChange {
    fn from(member: &Member) -> Self {
        let Member { name, mac, state, tries, stage, step, cause, .. } = member;
        let (state, tries, stage, step) = (*state, *tries, *stage, *step);
        Self { name: name.clone(), mac: *mac, state, tries, stage, step, cause: cause.clone() }
    }
}
