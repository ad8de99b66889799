//! Lines on their way to the appliance, which numbers and keeps them: the console's and the workload's.

use std::net::SocketAddrV4;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::report::post;

/// One batch.
pub(crate) const LINES_MAX: usize = 256;
/// Lines that come together go together.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    Kernel,
    Stage1,
    Workload,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// Seconds since the kernel started.
    pub(crate) uptime: f64,
    pub(crate) from: Source,
    /// The kernel's: 0 (emergency) to 7 (debug).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) level: Option<u8>,
    /// It goes on in the next one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) partial: bool,
    pub text: String,
}

impl Line {
    /// What is said now.
    pub(crate) fn now(from: Source, text: String) -> Self {
        Self { uptime: uptime(), from, level: None, partial: false, text }
    }
}

/// The body of `POST /node/console` and `POST /node/logs`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Batch<'a> {
    mac: &'a str,
    boot: &'a str,
    /// The first line's number in this boot: a batch that is sent again is known by it.
    first: u64,
    /// When this is sent.
    uptime: f64,
    lines: &'a [Line],
}

/// Sends lines to one path of the appliance.
pub(crate) struct Sender {
    appliance: SocketAddrV4,
    path: &'static str,
    mac: String,
    boot: String,
    first: u64,
}

impl Sender {
    pub(crate) fn new(appliance: SocketAddrV4, path: &'static str, mac: &str) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { appliance, path, mac: mac.to_owned(), boot: boot.trim().to_owned(), first: 0 }
    }

    /// Sends until the appliance took it, or said that it never will.
    pub(crate) fn send(&mut self, lines: &[Line]) {
        let mut pause = PAUSE;
        loop {
            let Self { mac, boot, first, .. } = &*self;
            let batch = Batch { mac, boot, first: *first, uptime: uptime(), lines };
            let body = serde_json::to_vec(&batch).expect("a batch has only text keys");
            // Nothing is said of a refusal: it would be the next thing to send.
            if let Ok(200..=299 | 400..=499) = post(self.appliance, self.path, &body) {
                self.first += lines.len() as u64;
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

/// The clock that the kernel's messages have, to within what counts here.
pub(crate) fn uptime() -> f64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0.0, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}
