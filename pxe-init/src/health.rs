//! The image's health check (Docker's HEALTHCHECK): a program that is run periodically and says whether the workload
//! is healthy. As with Docker the state is only reported: no workload is ended for it.

use std::io::Read as _;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pxe_contract::image::HealthCheck;

use crate::image::Image;
use crate::supervise::Ended;
use crate::workload;

/// The checks of one run of a workload.
pub struct Health<'a> {
    image: &'a Image,
    check: &'a HealthCheck,
    workload: Pid,
    started: Instant,
    next: Instant,
    running: Option<Running>,
    failures: u32,
    healthy: Option<bool>,
}

struct Running {
    pid: Pid,
    until: Instant,
    overdue: bool,
    output: Receiver<String>,
}

/// The workload's health has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Healthy,
    Unhealthy(String),
}

/// What is kept of a check's output.
const OUTPUT_MAX: u64 = 512;

impl<'a> Health<'a> {
    /// `None` for an image without a check.
    pub fn new(image: &'a Image, workload: Pid, now: Instant) -> Option<Self> {
        let check = image.description.health_check.as_ref()?;
        let next = later(now, check.interval);
        Some(Self { image, check, workload, started: now, next, running: None, failures: 0, healthy: None })
    }

    /// When [`Self::act`] has something to do.
    pub fn due(&self) -> Instant {
        match &self.running {
            Some(Running { overdue: false, until, .. }) => *until,
            // It was killed, and will end soon.
            Some(_) => Instant::now() + Duration::from_secs(60),
            None => self.next,
        }
    }

    /// Starts a check that is due, and ends one that takes too long. `extra` is the workload's own.
    pub fn act(&mut self, extra: &[(&str, &str)]) -> Option<Change> {
        let now = Instant::now();
        match &mut self.running {
            Some(running) if now >= running.until && !running.overdue => {
                running.overdue = true;
                let _ = kill(running.pid, Signal::SIGKILL);
                None
            }
            None if now >= self.next => {
                match workload::check(self.image, &self.check.argv, extra, self.workload) {
                    Ok((pid, mut output)) => {
                        let (sender, output_read) = sync_channel(1);
                        // The thread ends with the check, or with processes that the check leaves behind.
                        std::thread::spawn(move || {
                            let mut text = Vec::new();
                            let _ = (&mut output).take(OUTPUT_MAX).read_to_end(&mut text);
                            let _ = std::io::copy(&mut output, &mut std::io::sink());
                            let _ = sender.send(String::from_utf8_lossy(&text).trim().to_owned());
                        });
                        let until = later(now, self.check.timeout);
                        self.running = Some(Running { pid, until, overdue: false, output: output_read });
                        None
                    }
                    Err(error) => {
                        self.next = later(now, self.check.interval);
                        self.failed(error.to_string())
                    }
                }
            }
            _ => None,
        }
    }

    /// A process ended: perhaps the check.
    pub fn ended(&mut self, pid: Pid, ended: Ended) -> Option<Change> {
        let running = self.running.take_if(|running| running.pid == pid)?;
        self.next = later(Instant::now(), self.check.interval);
        if ended == Ended::Exited(0) && !running.overdue {
            self.failures = 0;
            return (self.healthy.replace(true) != Some(true)).then_some(Change::Healthy);
        }
        let mut words = match running.overdue {
            true => format!("the check took longer than {:?}", Duration::from_millis(self.check.timeout)),
            false => format!("the check ended with {ended}"),
        };
        if let Ok(output) = running.output.recv_timeout(Duration::from_millis(200))
            && !output.is_empty()
        {
            words = format!("{words}: {output}");
        }
        self.failed(words)
    }

    /// Ends a running check.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = kill(running.pid, Signal::SIGKILL);
        }
    }

    fn failed(&mut self, words: String) -> Option<Change> {
        if self.healthy.is_none() && self.started.elapsed() < Duration::from_millis(self.check.start_period) {
            return None;
        }
        self.failures += 1;
        let now = self.failures == self.check.retries.max(1) && self.healthy != Some(false);
        now.then(|| {
            self.healthy = Some(false);
            let times = if self.failures == 1 {
                String::new()
            } else {
                format!("{} times in a row, ", self.failures)
            };
            Change::Unhealthy(format!("{times}{words}"))
        })
    }
}

/// That much later, but at most a bounded time.
fn later(now: Instant, milliseconds: u64) -> Instant {
    now + Duration::from_millis(milliseconds.min(86_400_000))
}
