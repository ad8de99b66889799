//! How long each step of the boot took, from this process's first instruction on: for the timeline.

use std::fmt;
use std::time::{Duration, Instant};

pub(crate) struct Steps {
    began: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, done: Vec::new() }
    }

    /// A step is over.
    pub(crate) fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.done.push((step, now - self.last));
        self.last = now;
    }

    /// Since the first instruction.
    pub(crate) fn all(&self) -> Duration {
        self.last - self.began
    }

    /// The steps since the last call, as text.
    pub(crate) fn take(&mut self) -> String {
        let words = self.to_string();
        self.done.clear();
        words
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.done.iter().map(|(step, took)| format!("{step} {} ms", took.as_millis()));
        f.write_str(&steps.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_once_and_their_time_adds_up() {
        let mut steps = Steps::begin();
        std::thread::sleep(Duration::from_millis(20));
        steps.done("mounts");
        steps.done("link");
        let words = steps.take();
        assert!(words.starts_with("mounts 2") && words.contains(" ms, link "), "{words}");
        assert!(steps.all() >= Duration::from_millis(20));
        assert_eq!(steps.take(), "");
    }
}
