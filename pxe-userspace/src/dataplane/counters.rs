//! What the programs counted.

use aya::maps::{MapData, PerCpuArray};
use pxe_common::verdict::{COUNTERS_PER_HOOK, Hook, counter_name};
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

pub(super) struct CounterMap(PerCpuArray<MapData, u64>);

impl CounterMap {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(map)
    }

    /// Sums over the CPUs; a counter that can't be read is left out.
    pub(super) fn read(&self) -> Counters {
        Counters { xdp: self.hook(Hook::Xdp), tc: self.hook(Hook::Tc) }
    }

    fn hook(&self, hook: Hook) -> HookCounters {
        let base = hook as usize * COUNTERS_PER_HOOK;
        (0..COUNTERS_PER_HOOK)
            .filter_map(|index| {
                let per_cpu = self.0.get(&((base + index) as u32), 0).ok()?;
                Some((counter_name(index)?, per_cpu.iter().sum()))
            })
            .collect()
    }
}
