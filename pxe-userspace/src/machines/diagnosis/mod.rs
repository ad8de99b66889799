//! Why a machine does not boot, or boots slowly: from observations to causes in words.
//!
//! [`Boot`] is what was observed of one boot: the timeline's stages, and [`Note`]s of the servers. [`diagnose`]
//! derives causes from it. [`Watch`] keeps the boots of all machines, and notices those that gave up. All of it is
//! pure: nothing here waits, reads a clock or does I/O.

mod boot;
mod loader;
mod node;
mod offer;
mod pace;
mod stated;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;

use jiff::Timestamp;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::text;

pub use boot::{Boot, End, Note, Planned, Reached, Refusal};
pub use pace::{BUCKETS, Histogram, Pace};
pub use watch::{NotLoaded, Past, Watch, Why};

/// Why a boot fails or makes no progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Cause {
    pub kind: Kind,
    /// What happened.
    pub words: String,
    pub evidence: Vec<Evidence>,
    /// What to do.
    pub remedy: String,
}

/// An observation, and when it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    #[serde(serialize_with = "text::micros_if_any", skip_serializing_if = "Option::is_none", default)]
    pub time: Option<Timestamp>,
    pub words: String,
}

/// Causes by name, as metrics count them. docs/why.md has a row for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "CauseKind")]
pub enum Kind {
    /// Its relay is of a subnet that is not served.
    OtherSubnet,
    /// Another DHCP server's offer was taken.
    OtherDhcpServer,
    /// No address was free, or the one given is in use.
    NoAddress,
    /// It waits for its turn: more machines boot than the links carry.
    Queued,
    /// Offers were sent and none was asked for.
    OfferNotTaken,
    /// Frames were lost, in one or both directions, while the link came up.
    LinkLate,
    /// The firmware's architecture has no loader, or another's was loaded.
    WrongArchitecture,
    /// It has an address and fetches nothing.
    NothingFetched,
    /// The machine aborted a transfer.
    TransferAborted,
    /// Blocks or acknowledgements stopped arriving.
    TransferStalled,
    /// It asked for a file that is not there.
    FileNotServed,
    /// The loader asks another server, which the other DHCP server names.
    NextServer,
    /// The loader was sent, and UEFI did not start it; or the loader does not start the kernel.
    SecureBoot,
    /// The loader was sent, and asked for nothing.
    LoaderSilent,
    /// The appliance can't boot the machine as it is configured.
    NotBootable,
    ImagePreparing,
    MemoryTooSmall,
    /// Kernel and initrd are there; nothing was heard since.
    KernelSilent,
    /// After kernel and initrd an operating system asked for an address, and stage 1 did not report.
    OtherSystem,
    /// Stage 1 reports from another address than its machine's.
    Stage1Network,
    DigestMismatch,
    TokenRefused,
    /// Stage 1 said itself why it can't go on.
    Stage1Failed,
    WorkloadEnded,
    /// It fell silent, and no observation says why.
    Silent,
    /// A stage takes longer than usual here.
    Slow,
}

impl Kind {
    /// Whether a boot with this cause can still succeed without help.
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::Queued | Self::LinkLate | Self::ImagePreparing | Self::Slow)
    }
}

/// The causes of a boot's state, the most likely first; empty if nothing is wrong.
pub fn diagnose(boot: &Boot, pace: &Pace, now: Timestamp) -> Vec<Cause> {
    let mut causes = Vec::new();
    match &boot.end {
        Some(End { said: Some(said), .. }) => causes.push(stated::cause(boot, said)),
        _ if boot.is_done() => {}
        _ if boot.is_stuck(now) => causes.extend(standstill(boot, now)),
        _ => causes.extend(waiting(boot)),
    }
    causes.extend(offer::late_link(boot));
    causes.extend(pace.slow(boot, now));
    causes.dedup_by_key(|cause| cause.kind);
    causes
}

/// Why the boot makes no progress, by the last stage that it reached.
fn standstill(boot: &Boot, now: Timestamp) -> Vec<Cause> {
    if let Some(cause) = loader::not_loaded(boot, now) {
        return vec![cause];
    }
    let cause = match boot.last_stage() {
        Some(Stage::Loader) => return loader::silent(boot),
        Some(Stage::Discover | Stage::Offer | Stage::Request) => offer::not_taken(boot),
        Some(Stage::Ack) => transfer::nothing_fetched(boot),
        Some(Stage::Config | Stage::Kernel) => transfer::files_missing(boot),
        Some(Stage::Initrd) => node::kernel_silent(boot),
        Some(Stage::Stage1 | Stage::Image) => node::stage1_silent(boot),
        None | Some(Stage::Workload | Stage::Failed | Stage::Warning) => None,
    };
    cause.into_iter().collect()
}

/// What is wrong already, or what keeps a live machine waiting.
fn waiting(boot: &Boot) -> Option<Cause> {
    offer::taken_elsewhere(boot)
        .or_else(|| offer::queued(boot))
        .or_else(|| transfer::preparing(boot))
        .or_else(|| loader::fetched_again(boot))
}

impl Cause {
    fn new(kind: Kind, words: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, words: words.into(), evidence: Vec::new(), remedy: remedy.into() }
    }

    fn seen(mut self, time: Timestamp, words: impl Into<String>) -> Self {
        self.evidence.push(Evidence { time: Some(time), words: words.into() });
        self
    }

    fn known(mut self, words: impl Into<String>) -> Self {
        self.evidence.push(Evidence { time: None, words: words.into() });
        self
    }

    fn with(mut self, evidence: impl IntoIterator<Item = Evidence>) -> Self {
        self.evidence.extend(evidence);
        self
    }
}
