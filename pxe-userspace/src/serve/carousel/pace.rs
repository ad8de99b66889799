//! The rate of a round, from its receivers' measurements. Pure: time is an argument.
//!
//! A sender of UDP does not learn the capacity of the slowest link on the path, so receivers report how many of the
//! packets sent since their last report have arrived. While the median receiver loses no more than at its best, the
//! rate grows. When it loses more, a queue on the path overflows, and the rate of arrival is the capacity. The median
//! is used because one machine behind a bad cable must not slow down the others: it has HTTP. Its best is used because
//! a link that loses packets at any rate is not congested.

use std::time::{Duration, Instant};

/// The assumed loss of the link itself at the beginning; and how much more indicates a full queue.
const LOSS: (f64, f64) = (0.02, 0.02);
/// The assumed loss of the link grows by this at a time, because links get worse.
const LOSS_GROWTH: f64 = 0.001;
/// Time between two changes, so that the effect of the first is seen.
const EVERY: Duration = Duration::from_millis(500);
/// Bytes a second: the rate at which a round starts unless its ceiling is lower, and the lowest rate.
const START: f64 = 6e6;
const LEAST: f64 = 125e3;
/// Growth of a round that has not reached a limit yet. After a limit the rate grows slowly at first, and faster each
/// time: it is careful near the old limit, but soon finds a new one.
const GROWTH: f64 = 0.5;
const CAREFUL: (f64, f64, f64) = (0.02, 1.5, 0.25);
/// Share of the measured throughput, so that a queue that has filled up drains.
const BACK_OFF: f64 = 0.95;

/// What a receiver measured between two of its reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// Packets that were sent, and how many of them arrived.
    pub(super) sent: u32,
    pub(super) came: u32,
    pub(super) within: Duration,
}

pub(super) struct Pace {
    /// Bytes a second.
    rate: f64,
    ceiling: f64,
    /// Bytes of a packet on the wire.
    packet: f64,
    /// By what share the next change increases the rate.
    growth: f64,
    /// The link's own loss, as estimated so far.
    loss: f64,
    /// Bytes a second that arrived at the median receiver.
    through: f64,
    changed: Instant,
    /// Loss and bytes a second of each report since the last change.
    seen: Vec<(f64, f64)>,
}

impl Pace {
    /// For packets of `packet` bytes, at most `ceiling` bytes a second.
    pub(super) fn new(ceiling: f64, packet: usize, now: Instant) -> Self {
        let ceiling = ceiling.max(LEAST);
        let rate = START.min(ceiling);
        Self {
            rate,
            ceiling,
            packet: packet as f64,
            growth: GROWTH,
            loss: LOSS.0,
            through: 0.0,
            changed: now,
            seen: Vec::new(),
        }
    }

    /// Bytes a second that arrive. That is less than the rate if the sender's socket blocks.
    pub(super) fn through(&self) -> f64 {
        self.through
    }

    /// How long this many packets take.
    pub(super) fn time(&self, packets: u32) -> Duration {
        Duration::from_secs_f64(f64::from(packets) * self.packet / self.rate)
    }

    /// Packets that are sent in one burst: few enough for a short queue.
    pub(super) fn burst(&self) -> u32 {
        (self.rate * 0.002 / self.packet).clamp(1.0, 64.0) as u32
    }

    /// Called when other rounds begin or end, because rounds share the ceiling.
    pub(super) fn set_ceiling(&mut self, ceiling: f64) {
        self.ceiling = ceiling.max(LEAST);
        self.rate = self.rate.min(self.ceiling);
    }

    pub(super) fn report(&mut self, seen: Seen, now: Instant) {
        let Seen { sent, came, within } = seen;
        if sent > 0 && !within.is_zero() {
            let came = f64::from(came.min(sent));
            self.seen.push((1.0 - came / f64::from(sent), came * self.packet / within.as_secs_f64()));
        }
        if now.saturating_duration_since(self.changed) < EVERY || self.seen.is_empty() {
            return;
        }
        let (loss, through) = (median(&mut self.seen, |seen| seen.0), median(&mut self.seen, |seen| seen.1));
        self.seen.clear();
        self.through = through;
        self.changed = now;
        self.loss = loss.min(self.loss + LOSS_GROWTH);
        if loss > self.loss + LOSS.1 {
            self.growth = CAREFUL.0;
            self.rate = self.rate.min(through * BACK_OFF).max(LEAST);
        } else if through > self.rate / 2.0 {
            // If the sender had little to send, the reports say nothing about the link.
            self.rate = (self.rate * (1.0 + self.growth)).min(self.ceiling);
            if self.growth < GROWTH {
                self.growth = (self.growth * CAREFUL.1).min(CAREFUL.2);
            }
        }
    }
}

fn median(seen: &mut [(f64, f64)], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    let middle = seen.len() / 2;
    of(seen.select_nth_unstable_by(middle, |a, b| of(a).total_cmp(&of(b))).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKET: usize = 1500;

    /// Runs a pace for `seconds` with receivers behind a link of `capacity`, each of which loses `loss` in addition.
    fn run(ceiling: f64, capacity: f64, loss: &[f64], seconds: f64) -> Pace {
        let start = Instant::now();
        let mut pace = Pace::new(ceiling, PACKET, start);
        let step = Duration::from_millis(250);
        for n in 1..=(seconds * 4.0) as u32 {
            let sent = pace.rate * 0.25 / PACKET as f64;
            let through = (capacity / pace.rate).min(1.0);
            for loss in loss {
                let seen =
                    Seen { sent: sent as u32, came: (sent * through * (1.0 - loss)) as u32, within: step };
                pace.report(seen, start + step * n);
            }
        }
        pace
    }

    #[test]
    fn a_free_link_is_used_up_to_the_ceiling() {
        let pace = run(125e6, 1e9, &[0.0, 0.01, 0.02], 10.0);
        assert_eq!(pace.rate, 125e6);
        assert!(run(1e6, 1e9, &[0.0], 1.0).rate <= 1e6);
    }

    #[test]
    fn one_bad_cable_slows_nobody_down() {
        assert!(run(50e6, 1e9, &[0.01, 0.6, 0.0, 0.01, 0.0], 10.0).rate > 49e6);
    }

    #[test]
    fn little_to_send_is_no_reason_to_send_faster() {
        let start = Instant::now();
        let mut pace = Pace::new(1e9, PACKET, start);
        for n in 1..100 {
            let seen = Seen { sent: 1, came: 1, within: Duration::from_secs(1) };
            pace.report(seen, start + Duration::from_secs(n));
        }
        assert_eq!(pace.rate, START);
        assert_eq!(pace.through(), PACKET as f64);
    }

    #[test]
    fn a_link_that_loses_whatever_the_rate_is_used_all_the_same() {
        assert!(run(50e6, 1e9, &[0.035; 9], 10.0).rate > 49e6);
    }

    proptest! {
        #[test]
        fn a_link_that_is_too_slow_is_filled_and_not_flooded(capacity in 1e6..500e6, loss in 0.0..0.02) {
            let pace = run(1.25e9, capacity, &[loss; 5], 60.0);
            prop_assert!(pace.rate > capacity * 0.8, "{} of {capacity}", pace.rate);
            prop_assert!(pace.rate < capacity * 1.2, "{} of {capacity}", pace.rate);
        }

        #[test]
        fn whatever_is_reported_the_rate_stays_in_its_bounds(
            ceiling in 0.0..1e9,
            reports in proptest::collection::vec((any::<u32>(), any::<u32>(), 0u64..2000), 0..50),
        ) {
            let start = Instant::now();
            let mut pace = Pace::new(ceiling, PACKET, start);
            for (n, (sent, came, millis)) in (1..).zip(reports) {
                let seen = Seen { sent, came, within: Duration::from_millis(millis) };
                pace.report(seen, start + Duration::from_secs(n));
                prop_assert!(pace.rate >= LEAST && pace.rate <= ceiling.max(LEAST), "{}", pace.rate);
                prop_assert!((1..=64).contains(&pace.burst()));
            }
        }
    }
}
