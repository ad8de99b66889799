//! Load for servers, the same from the same client for each, and the CPU time that it costs them.

mod batch;
pub mod cpu;
pub mod dhcp;
mod ring;
pub mod tftp;

use std::time::Duration;

use serde::Serialize;

/// Waiting times, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Collects waiting times.
#[derive(Default)]
struct Waits(Vec<u32>);

impl Waits {
    fn add(&mut self, wait: Duration) {
        self.0.push(u32::try_from(wait.as_nanos()).unwrap_or(u32::MAX));
    }

    fn latency(mut self) -> Latency {
        self.0.sort_unstable();
        let Some(last) = self.0.len().checked_sub(1) else { return Latency::default() };
        let at = |share: f64| f64::from(self.0[(last as f64 * share).round() as usize]) / 1000.0;
        Latency { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// A reproducible sequence (xorshift64*, Vigna 2014): which packets are lost, what a file holds.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// `len` bytes in which a block with a wrong offset never looks right.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        (((self.next() >> 32) * u64::from(end)) >> 32) as u32
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Whether something of this probability, in percent, happens now.
    pub fn happens(&mut self, percent: f64) -> bool {
        // 53 bits are what a float holds.
        percent > 0.0 && (self.next() >> 11) as f64 / (1u64 << 53) as f64 * 100.0 < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut waits = Waits::default();
        (1..=101).rev().for_each(|n| waits.add(Duration::from_micros(n)));
        let Latency { p50, p99, max } = waits.latency();
        assert_eq!((p50, p99, max), (51.0, 100.0, 101.0));
    }

    #[test]
    fn one_in_twenty_is_lost() {
        let mut numbers = Numbers::new(7);
        let lost = (0..100_000).filter(|_| numbers.happens(5.0)).count();
        assert!((4_500..5_500).contains(&lost), "{lost}");
        assert!(!numbers.happens(0.0));
    }
}
