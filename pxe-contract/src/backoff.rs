//! Back-off: how long to wait before each retry. Both sides need it, and neither may depend on the other.

use core::time::Duration;

/// Pauses between attempts: a first one, then each twice as long as the one before, up to a longest.
///
/// A value is the state of one series of failures. A constant is copied, and so each copy starts afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// No attempt has failed so far.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// An attempt failed: returns the pause before the next one.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// An attempt succeeded, or made progress: the next failure counts as the first.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(150), Duration::from_secs(1));
        let pauses: [u128; 5] = core::array::from_fn(|_| backoff.pause().as_millis());
        assert_eq!(pauses, [150, 300, 600, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 150);
        let mut endless = Backoff::new(Duration::MAX, Duration::MAX);
        assert_eq!([endless.pause(), endless.pause()], [Duration::MAX; 2]);
    }
}
