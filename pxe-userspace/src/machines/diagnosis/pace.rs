//! How long stages take at this site: for metrics since the start, and to tell which boots are slow.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use pxe_contract::stage::Stage;

use super::boot::{Note, since};
use super::{Boot, Cause, Evidence, Kind};
use crate::base::text::word;

/// Upper bounds of a histogram's buckets, in seconds; there is one more bucket above the last.
pub const BUCKETS: [f64; 13] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// How many steps a median is taken of at most, and at least.
const RECENT: usize = 127;
const ENOUGH: usize = 5;

/// A step is slow if it exceeds the median by this factor, and by this many seconds.
const FACTOR: f64 = 3.0;
const MARGIN: f64 = 5.0;

/// Times by bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Not cumulative; the last is for values above all bounds.
    pub counts: [u64; BUCKETS.len() + 1],
    pub sum: f64,
}

/// How long boots take on this site.
#[derive(Debug, Default)]
pub struct Pace {
    since_discover: BTreeMap<Stage, Histogram>,
    /// From the stage before, of the last boots.
    steps: BTreeMap<Stage, VecDeque<f64>>,
}

impl Pace {
    /// Seconds from DISCOVER to each stage, of every boot.
    pub fn since_discover(&self) -> impl Iterator<Item = (Stage, &Histogram)> {
        self.since_discover.iter().map(|(stage, histogram)| (*stage, histogram))
    }

    /// How long the stage usually takes here, from the one before it.
    pub fn median(&self, stage: Stage) -> Option<f64> {
        let mut steps: Vec<f64> = self.steps.get(&stage)?.iter().copied().collect();
        steps.sort_by(f64::total_cmp);
        (steps.len() >= ENOUGH).then(|| steps[steps.len() / 2])
    }

    /// `boot` has just reached `stage` for the first time, so the stages before it are complete.
    pub(super) fn reached(&mut self, boot: &Boot, stage: Stage) {
        let Some(discover) = boot.stages.get(&Stage::Discover) else { return };
        let Some(reached) = boot.stages.get(&stage) else { return };
        self.since_discover.entry(stage).or_default().add(since(discover.first, reached.first).as_secs_f64());
        let before = boot.stages.range(..stage).next_back().map(|(stage, _)| *stage);
        for complete in before.into_iter().chain((stage == Stage::Workload).then_some(stage)) {
            let Some((_, seconds)) = step(boot, complete) else { continue };
            let steps = self.steps.entry(complete).or_default();
            steps.push_back(seconds);
            if steps.len() > RECENT {
                steps.pop_front();
            }
        }
    }

    /// The stage of `boot` that takes longest beyond what is usual here, if one does.
    pub(super) fn slow(&self, boot: &Boot, now: Timestamp) -> Option<Cause> {
        let over = |stage: Stage, seconds: f64| {
            // Waiting for its turn is no slowness of its own.
            if stage == Stage::Offer && boot.waited().is_some() {
                return None;
            }
            let median = self.median(stage)?;
            let limit = (median * FACTOR).max(median + MARGIN);
            (seconds > limit).then_some((stage, seconds, median))
        };
        let last = boot.last_stage()?;
        let complete = boot.stages.keys().filter_map(|stage| {
            let (_, seconds) = step(boot, *stage)?;
            over(*stage, seconds)
        });
        let next =
            self.steps.keys().find(|stage| **stage > last).filter(|_| boot.end.is_none() && !boot.is_done());
        let underway =
            next.and_then(|next| over(*next, since(boot.stages.get(&last)?.last, now).as_secs_f64()));
        let (stage, seconds, median) =
            complete.chain(underway).max_by(|a, b| (a.1 - a.2).total_cmp(&(b.1 - b.2)))?;
        let reached = boot.has(stage);
        let words = format!(
            "slow: {} {} {seconds:.1} s; here it takes {median:.1} s as a rule",
            word(stage),
            if reached { "took" } else { "is waited for since" },
        );
        let cause = Cause::new(
            Kind::Slow,
            words,
            "blocks sent again mean loss: `ethtool -S`, the switch's counters. A file that the daemon sends and not xdp \
             or tc: `bridgehead status` says why. All machines slow at once: the link is full",
        );
        Some(cause.with(boot.evidence(stage)).with(answered(boot, stage)).with(repeats(boot)))
    }
}

/// A stage's last event and the seconds from the last of the stage before.
fn step(boot: &Boot, stage: Stage) -> Option<(Timestamp, f64)> {
    let (_, before) = boot.stages.range(..stage).next_back()?;
    let last = boot.stages.get(&stage)?.last;
    Some((last, since(before.last, last).as_secs_f64()))
}

fn answered(boot: &Boot, stage: Stage) -> Option<Evidence> {
    let reached = boot.stages.get(&stage).filter(|r| r.bytes > 0)?;
    Some(Evidence { time: None, words: format!("sent by {}", word(reached.answered_by)) })
}

fn repeats(boot: &Boot) -> impl Iterator<Item = Evidence> {
    boot.notes.iter().filter_map(|(time, note)| match note {
        Note::Sent { path, repeated } if *repeated > 0 => Some(Evidence {
            time: Some(*time),
            words: format!("blocks of {path} were sent again {repeated} times"),
        }),
        _ => None,
    })
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}
