//! The programs' counters.

use aya::maps::{MapData, PerCpuArray};
use pxe_common::verdict::{COUNTERS_PER_HOOK, Hook, LOST_COUNTER, counter_name};
use serde::Serialize;

/// One hook's counters by name: `replies`, `reply-bytes`, then frames dropped and passed by reason.
pub type HookCounters = std::collections::BTreeMap<&'static str, u64>;

/// Both hooks' counters. A frame that XDP passed is counted again by tc.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counters {
    pub xdp: HookCounters,
    pub tc: HookCounters,
}

impl Counters {
    /// Frames that XDP saw: each has one verdict.
    pub fn frames_at_xdp(&self) -> u64 {
        self.xdp.iter().filter(|(name, _)| !NO_FRAMES.contains(name)).map(|(_, count)| count).sum()
    }
}

/// Counters that don't count frames.
const NO_FRAMES: [&str; 2] = ["reply-bytes", "events-lost"];

pub(super) struct CounterMap(PerCpuArray<MapData, u64>);

impl CounterMap {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(map)
    }

    /// Sums over the CPUs; a counter that can't be read is left out.
    pub(super) fn read(&self) -> Counters {
        Counters { xdp: self.hook(Hook::Xdp), tc: self.hook(Hook::Tc) }
    }

    /// Events for which the ring had no room.
    pub(super) fn events_lost(&self) -> u64 {
        [Hook::Xdp, Hook::Tc].into_iter().filter_map(|hook| self.sum(hook, LOST_COUNTER as usize)).sum()
    }

    fn hook(&self, hook: Hook) -> HookCounters {
        (0..COUNTERS_PER_HOOK)
            .filter_map(|index| Some((counter_name(index)?, self.sum(hook, index)?)))
            .collect()
    }

    fn sum(&self, hook: Hook, index: usize) -> Option<u64> {
        let per_cpu = self.0.get(&((hook as usize * COUNTERS_PER_HOOK + index) as u32), 0).ok()?;
        Some(per_cpu.iter().sum())
    }
}
