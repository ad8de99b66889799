//! Sends lines of the console and of the workload to the appliance, which stores them.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pxe_contract::backoff::Backoff;
use pxe_contract::console::{Batch, Said, Source};

use crate::appliance::Appliance;

/// The pause between batches: lines within it are sent together.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// A line with the present time.
pub(crate) fn said(from: Source, text: String) -> Said {
    Said { uptime: uptime(), from, level: None, partial: false, text }
}

/// Sends lines to one path of the appliance.
pub(crate) struct Sender {
    appliance: Appliance,
    path: &'static str,
    mac: String,
    boot: String,
    first: u64,
}

impl Sender {
    pub(crate) fn new(appliance: Appliance, path: &'static str, mac: &str) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { appliance, path, mac: mac.to_owned(), boot: boot.trim().to_owned(), first: 0 }
    }

    /// Sends until the appliance accepts the lines, or refuses them for good.
    pub(crate) fn send(&mut self, lines: Vec<Said>) {
        let Self { mac, boot, first, .. } = &*self;
        let (mac, boot, first) = (mac.clone(), boot.clone(), *first);
        let mut batch = Batch { mac, boot, first, uptime: 0.0, lines };
        let mut pauses = Backoff::new(PAUSE, Duration::from_secs(5));
        loop {
            batch.uptime = uptime();
            let body = serde_json::to_vec(&batch).expect("a batch has only text keys");
            // A refusal is not logged, because that line would be the next one to send.
            if let Ok(200..=299 | 400..=499) = self.appliance.post(self.path, &body) {
                self.first += batch.lines.len() as u64;
                return;
            }
            std::thread::sleep(pauses.pause());
        }
    }
}

/// The clock of the kernel's messages, precisely enough for this.
pub(crate) fn uptime() -> f64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0.0, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}
