//! The data of the screen, from three of the API's documents.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pxe_contract::stage::Stage;

use crate::api::documents::Status;
use crate::cli::{AskError, Client};
use crate::machines::Machine;
use crate::machines::diagnosis::{Kind, Why};

/// Who sends files, and the counter of the bytes sent: whole frames in the kernel, contents elsewhere.
pub(super) const TIERS: [(&str, &str); 4] = [
    ("xdp", "kernel.xdp.reply-bytes"),
    ("tc", "kernel.tc.reply-bytes"),
    ("daemon", "tftp.bytes-by-daemon"),
    ("http", "http.sent-bytes"),
];

#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) now: Timestamp,
    pub(super) status: Status,
    pub(super) machines: Vec<Machine>,
    /// Boots that are under way, failed or had problems; the longest first.
    pub(super) boots: Vec<Why>,
    pub(super) sent: Totals,
}

/// Bytes, or bytes a second, by sender.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals(pub(super) [f64; TIERS.len()]);

impl Site {
    pub(super) fn ask(client: &Client) -> Result<Self, AskError> {
        let status: Status = client.document(client.get("/api/status")?)?;
        let machines = client.document(client.get("/api/nodes")?)?;
        let boots = client.document(client.get("/api/why")?)?;
        Ok(Self::new(Timestamp::now(), status, machines, boots))
    }

    pub(super) fn new(now: Timestamp, status: Status, machines: Vec<Machine>, boots: Vec<Why>) -> Self {
        let sent = Totals(TIERS.map(|(_, counter)| status.counters.get(counter).map_or(0.0, |n| *n as f64)));
        Self { now, status, machines, boots, sent }
    }

    /// Machines by the stage of their last boot.
    pub(super) fn stages(&self) -> BTreeMap<Stage, usize> {
        let mut stages = BTreeMap::new();
        for stage in self.machines.iter().filter_map(|m| m.stage) {
            *stages.entry(stage).or_default() += 1;
        }
        stages
    }

    /// Boots under way, the longest first.
    pub(super) fn underway(&self) -> impl Iterator<Item = &Why> {
        self.boots.iter().filter(|why| !why.done && !why.failed)
    }

    /// Each cause, with how many machines have it, and one of them.
    pub(super) fn causes(&self) -> Vec<(Kind, usize, &Why)> {
        let mut causes = BTreeMap::<Kind, (usize, &Why)>::new();
        for why in &self.boots {
            if let Some(cause) = why.causes.first() {
                causes.entry(cause.kind).or_insert((0, why)).0 += 1;
            }
        }
        let mut causes: Vec<_> = causes.into_iter().map(|(kind, (count, why))| (kind, count, why)).collect();
        causes.sort_by_key(|(kind, count, _)| (std::cmp::Reverse(*count), *kind));
        causes
    }
}

impl Totals {
    /// Bytes a second since `before`. A restarted daemon counts from zero: where that shows, the rate is 0.
    pub(super) fn since(&self, before: &Self, seconds: f64) -> Self {
        let mut rates = self.clone();
        for (rate, before) in rates.0.iter_mut().zip(before.0) {
            *rate = if *rate >= before { (*rate - before) / seconds.max(0.001) } else { 0.0 };
        }
        rates
    }
}
