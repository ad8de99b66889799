//! How often a node may report. Pure: time is an argument.
//!
//! A boot has a dozen reports. Otherwise a node that sends thousands a second would fill the disk, and its own history,
//! with them.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pxe_common::Mac;

use crate::base::lock::Unpoisoned as _;

/// Reports that a machine may send at once.
const BURST: u32 = 50;
/// The interval of further reports.
const EVERY: Duration = Duration::from_millis(100);
/// The same report within this time is counted, but not recorded again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Machines that are remembered. Those that have been silent until their whole burst is free again are forgotten first.
const MACHINES_MAX: usize = 8192;

/// What all machines send of one kind. Cloning it is cheap.
#[derive(Clone)]
pub struct Rates {
    by_mac: Arc<Mutex<HashMap<Mac, Rate>>>,
    burst: u32,
    every: Duration,
}

/// Of reports.
impl Default for Rates {
    fn default() -> Self {
        Self::of(BURST, EVERY)
    }
}

struct Rate {
    /// From then on the whole burst is free again.
    full: Instant,
    /// The last recorded report's hash, and its time.
    said: Option<(u64, Instant)>,
    /// Reports dropped since the last recorded one.
    left_out: u64,
}

impl Rates {
    /// So many at once, and one in this time afterwards.
    pub fn of(burst: u32, every: Duration) -> Self {
        Self { by_mac: Arc::default(), burst, every }
    }

    /// What machines are made of: a boot tells it twice.
    pub fn of_facts() -> Self {
        Self::of(4, Duration::from_secs(15))
    }

    /// Whether to record this report; if so, returns how many before it were dropped.
    pub(super) fn take(&self, mac: Mac, says: impl Hash, now: Instant) -> Option<u64> {
        let says = BuildHasherDefault::<DefaultHasher>::default().hash_one(says);
        let mut rates = self.by_mac.lock().unpoisoned();
        if rates.len() >= MACHINES_MAX && !rates.contains_key(&mac) {
            rates.retain(|_, rate| rate.full > now);
        }
        let rate = rates.entry(mac).or_insert(Rate { full: now, said: None, left_out: 0 });
        let full = rate.full.max(now) + self.every;
        let again = rate.said.is_some_and(|(said, at)| said == says && now < at + AGAIN_AFTER);
        if again || full > now + self.every * self.burst {
            rate.left_out += 1;
            return None;
        }
        rate.full = full;
        rate.said = Some((says, now));
        Some(std::mem::take(&mut rate.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_ten_a_second_are_taken_and_the_rest_is_counted() {
        let rates = Rates::default();
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let begun = Instant::now();
        let taken = (0..1000).filter(|n| rates.take(a, n, begun).is_some()).count();
        assert_eq!(taken, BURST as usize);
        assert_eq!(rates.take(b, 1, begun), Some(0), "another's are its own");
        assert_eq!(rates.take(a, 1, begun + EVERY), Some(950));
        let at = |n: u32| begun + EVERY + EVERY * n / 10;
        let minute = (0..6000).filter(|n| rates.take(a, n, at(*n)).is_some()).count();
        assert!((595..=605).contains(&minute), "{minute} in a minute");
        let later = begun + Duration::from_secs(3600);
        assert!((0..BURST).all(|n| rates.take(a, n, later).is_some()));
    }

    #[test]
    fn the_same_words_again_are_counted() {
        let rates = Rates::default();
        let (mac, begun) = (Mac([2, 0, 0, 0, 0, 1]), Instant::now());
        assert_eq!(rates.take(mac, ("failed", "no disk"), begun), Some(0));
        assert!((0..9).all(|n| rates.take(mac, ("failed", "no disk"), begun + EVERY * n).is_none()));
        assert_eq!(rates.take(mac, ("failed", "no link"), begun + EVERY), Some(9));
        assert_eq!(rates.take(mac, ("failed", "no link"), begun + EVERY + AGAIN_AFTER), Some(0));
    }
}
