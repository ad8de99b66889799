//! The progress of a wave of boots.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::schema;
use crate::base::text::word;

/// The present rate is measured over this time.
const RECENT: Duration = Duration::from_secs(10);

/// Bytes sent, by how long it took.
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Duration, u64)>,
    looked: Option<Timestamp>,
}

impl Rate {
    /// This many bytes were sent since the start. Time in which nobody fetched anything, because firmware waits or
    /// kernels start, says nothing about the links, and does not count.
    pub fn sample(&mut self, now: Timestamp, sent: u64, somebody_fetches: bool) {
        let passed = self
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |before| now.duration_since(before).unsigned_abs());
        let (busy, before) = self.samples.back().copied().unwrap_or_default();
        if !self.samples.is_empty() && sent == before && !somebody_fetches {
            return;
        }
        let busy = busy + passed;
        self.samples.push_back((busy, sent));
        while self.samples.get(1).is_some_and(|(then, _)| busy - *then >= RECENT) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second, of late.
    pub fn per_second(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.samples.front()?, self.samples.back()?);
        let seconds = to.saturating_sub(*from).as_secs_f64();
        (seconds > 0.0 && after > before).then(|| (after - before) as f64 / seconds)
    }
}

/// The bytes of a boot's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub loader: u64,
    pub kernel: u64,
    /// All of them together.
    pub initrds: u64,
    /// The image, where stage 1 fetches it.
    pub stage2: u64,
}

impl Needs {
    pub fn all(&self) -> u64 {
        self.loader + self.kernel + self.initrds + self.stage2
    }

    /// What is still to be sent to a machine at `stage`, which fetches a file if it has `percent` of it.
    pub fn left(&self, stage: Stage, percent: Option<u8>) -> u64 {
        let Self { loader, kernel, initrds, stage2 } = *self;
        let part = |next: u64| next * u64::from(100 - percent.unwrap_or(0).min(100)) / 100;
        match stage {
            Stage::Discover | Stage::Offer | Stage::Request | Stage::Ack => {
                part(loader) + kernel + initrds + stage2
            }
            Stage::Loader | Stage::Config => part(kernel) + initrds + stage2,
            Stage::Kernel => part(initrds) + stage2,
            // Another initrd, the large one, which is the last.
            Stage::Initrd if percent.is_some() => part(initrds) + stage2,
            Stage::Initrd | Stage::Stage1 => stage2,
            Stage::Image | Stage::Workload | Stage::Failed | Stage::Warning => 0,
        }
    }
}

/// One machine of a wave.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    pub stage: Stage,
    /// Nothing more is needed from the appliance.
    pub done: bool,
    /// What it needs in all, and what it still needs, if that is known.
    pub needs: Option<u64>,
    pub left: Option<u64>,
    /// It has not moved for longer than is usual: when it will is nobody's guess.
    pub still: bool,
}

impl Boot {
    /// A machine at `stage`, which fetches a file if it has `percent` of it.
    pub fn of(stage: Stage, percent: Option<u8>, needs: Option<Needs>, still: bool) -> Self {
        let left = needs.map(|needs| needs.left(stage, percent));
        // If its needs are unknown, the initrd counts as the last file.
        let done = (Stage::Initrd..=Stage::Workload).contains(&stage) && left.unwrap_or(0) == 0;
        let still = still && !done && stage != Stage::Failed;
        Self { stage, done, needs: needs.map(|needs| needs.all()), left, still }
    }
}

/// A wave of boots: those that are in progress, and those that came with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Wave {
    pub machines: usize,
    /// The latest stage that at least half of the boots that did not fail have reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    /// Machines that have reached it.
    pub reached: usize,
    pub done: usize,
    pub failed: usize,
    pub waiting: usize,
    /// Machines that have not moved for longer than is usual. What they lack is not among what is left.
    #[serde(default)]
    pub still: usize,
    /// Bytes that are still to be sent.
    pub left: u64,
    /// Seconds until everything is sent, at the present rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_in: Option<f64>,
}

impl Wave {
    /// None when no boot is in progress.
    pub fn of(boots: &[Boot], waiting: usize, rate: Option<f64>) -> Option<Self> {
        let failed = boots.iter().filter(|b| b.stage == Stage::Failed).count();
        let done = boots.iter().filter(|b| b.done).count();
        if done + failed == boots.len() && waiting == 0 {
            return None;
        }
        let mut stages: Vec<Stage> = boots.iter().map(|b| b.stage).filter(|s| *s != Stage::Failed).collect();
        stages.sort_unstable();
        let stage = stages.get(stages.len() / 2).copied();
        let reached = stages.iter().filter(|s| Some(**s) >= stage).count();
        let still = boots.iter().filter(|b| b.still).count();
        let left = boots.iter().filter(|b| !b.done && !b.still).filter_map(|b| b.left).sum();
        let done_in = rate.filter(|_| left > 0).map(|rate| left as f64 / rate);
        Some(Self { machines: boots.len(), stage, reached, done, failed, waiting, still, left, done_in })
    }
}

impl std::fmt::Display for Wave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.stage {
            Some(stage) => write!(f, "{} of {} at {}", self.reached, self.machines, word(stage))?,
            None => write!(f, "{} boots", self.machines)?,
        }
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.waiting > 0 {
            write!(f, ", {} waiting for their turn", self.waiting)?;
        }
        if self.still > 0 {
            write!(f, ", {} silent", self.still)?;
        }
        match self.done_in {
            Some(seconds) => write!(f, ", done in {:.0} s", seconds.ceil()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_issue_s_sentence() {
        let mut rate = Rate::default();
        // It was slower before.
        (0..15).for_each(|second| rate.sample(at(second), second as u64 * 10, true));
        (15..30).for_each(|second| rate.sample(at(second), 150 + (second as u64 - 15) * 1000, true));
        // Nobody wants anything.
        (30..99).for_each(|second| rate.sample(at(second), 14_150, false));
        assert_eq!(rate.per_second(), Some(1000.0));
        let boot = |stage, left| Boot {
            stage,
            done: stage >= Stage::Initrd,
            needs: None,
            left: Some(left),
            still: false,
        };
        let mut boots = vec![boot(Stage::Initrd, 0); 431];
        boots.extend(vec![boot(Stage::Kernel, 500); 59]);
        boots.extend(vec![boot(Stage::Discover, 1050); 10]);
        let wave = Wave::of(&boots, 0, rate.per_second()).unwrap();
        assert_eq!(wave.to_string(), "431 of 500 at initrd, done in 40 s");
        assert!(Wave::of(&boots[..431], 0, rate.per_second()).is_none(), "nothing is under way");
        // Those that stand still are not waited for: nobody knows when they go on.
        boots.iter_mut().filter(|boot| boot.stage == Stage::Discover).for_each(|boot| boot.still = true);
        let wave = Wave::of(&boots, 0, rate.per_second()).unwrap();
        assert_eq!(wave.to_string(), "431 of 500 at initrd, 10 silent, done in 30 s");
        let wave = Wave::of(&boots[490..], 0, rate.per_second()).unwrap();
        assert_eq!((wave.to_string().as_str(), wave.left), ("10 of 10 at discover, 10 silent", 0));
    }

    #[test]
    fn what_is_left_shrinks_with_every_stage() {
        let needs = Needs { loader: 1, kernel: 10, initrds: 100, stage2: 1000 };
        let steps = [
            (Stage::Discover, None),
            (Stage::Loader, None),
            (Stage::Loader, Some(50)),
            (Stage::Kernel, None),
            (Stage::Initrd, Some(25)),
            (Stage::Initrd, None),
            (Stage::Image, None),
        ];
        let left: Vec<u64> = steps.iter().map(|(stage, percent)| needs.left(*stage, *percent)).collect();
        assert_eq!(left, [1111, 1110, 1105, 1100, 1075, 1000, 0]);
    }

    #[test]
    fn nothing_is_promised_without_a_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        rate.sample(at(1), 5, true);
        rate.sample(at(2), 5, true);
        assert_eq!(rate.per_second(), None);
        let boot = Boot::of(Stage::Discover, None, None, false);
        let wave = Wave::of(&[boot], 1, None).unwrap();
        assert_eq!(wave.to_string(), "1 of 1 at discover, 1 waiting for their turn");
    }
}
