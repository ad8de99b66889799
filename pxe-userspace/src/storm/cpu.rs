//! The storm's CPU time: the simulator's own, so that it is never mistaken for the server's, and
//! the server's where it runs on this host.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::Serialize;

/// USER_HZ, the unit of /proc: 100 on every architecture that Linux shows it to.
const TICKS: f64 = 100.0;

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Cpu {
    /// The simulator's own code.
    simulator_user: f64,
    /// The kernel on its behalf: its system calls. For frames that it sends this includes the path
    /// through the bridge and the appliance's programs, until the answer is in its socket.
    simulator_system: f64,
    /// `bridgehead serve`, where it runs on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<f64>,
    /// All CPUs of this host, whatever ran on them.
    host: f64,
    cpus: usize,
}

/// A moment to measure from.
pub(super) struct Meter(Cpu);

impl Meter {
    pub(super) fn start() -> Self {
        Self(Cpu::now())
    }

    pub(super) fn stop(&self) -> Cpu {
        let (before, now) = (self.0, Cpu::now());
        Cpu {
            simulator_user: now.simulator_user - before.simulator_user,
            simulator_system: now.simulator_system - before.simulator_system,
            // A restarted daemon began at zero.
            daemon: now.daemon.map(|after| after - before.daemon.filter(|b| *b <= after).unwrap_or(0.0)),
            host: now.host - before.host,
            cpus: now.cpus,
        }
    }
}

impl Cpu {
    fn now() -> Self {
        let own = getrusage(UsageWho::RUSAGE_SELF).ok();
        let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self {
            simulator_user: own.map_or(0.0, |usage| seconds(usage.user_time())),
            simulator_system: own.map_or(0.0, |usage| seconds(usage.system_time())),
            daemon: daemon(),
            host: host(&stat),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { simulator_user, simulator_system, daemon, host, cpus } = self;
        let daemon = daemon.map_or_else(|| "not on this host".to_owned(), |s| format!("{s:.2} s"));
        format!(
            "CPU       simulator {simulator_user:.2} s, the kernel for it {simulator_system:.2} s (with the answers of the appliance's programs, \
             where they run here); daemon {daemon}; this host in all {host:.2} s on {cpus} CPUs\n"
        )
    }
}

/// Busy time of all CPUs: proc_stat(5) has user, nice, system, idle, iowait, irq, softirq.
fn host(stat: &str) -> f64 {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    match ticks[..] {
        [user, nice, system, _, _, irq, softirq, ..] => (user + nice + system + irq + softirq) / TICKS,
        _ => 0.0,
    }
}

/// User and system time of every `bridgehead serve` (proc_pid_stat(5): fields 14 and 15).
fn daemon() -> Option<f64> {
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|process| {
        let words = fs::read(process.path().join("cmdline")).ok()?;
        let mut words = words.split(|b| *b == 0);
        let is_daemon = words.next()?.ends_with(b"bridgehead") && words.any(|w| w == b"serve");
        let stat = is_daemon.then(|| fs::read_to_string(process.path().join("stat")).ok())??;
        // The second field is the name, in parentheses, which may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let ticks: Vec<f64> = rest.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        // Numbers only: the state, a letter, is left out.
        Some((ticks.get(10)? + ticks.get(11)?) / TICKS)
    });
    processes.reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_time_is_all_but_idle() {
        assert_eq!(host("cpu  100 200 300 9999 9999 400 500 9999 0 0\ncpu0 1\n"), 15.0);
        assert_eq!(host(""), 0.0);
    }

    #[test]
    fn own_time_counts() {
        let meter = Meter::start();
        let mut sum = 0u64;
        while meter.stop().simulator_user + meter.stop().simulator_system < 0.01 {
            sum = sum.wrapping_add(1);
        }
        assert!(meter.stop().simulator_user < 60.0, "{sum}");
    }
}
