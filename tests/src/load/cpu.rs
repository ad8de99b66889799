//! The CPU time that a load costs its server, softirqs included.
//!
//! A frame that a client sends into a veth pair is handled by the kernel in the client's own context: bridge,
//! attached programs, and what they answer. Without CONFIG_IRQ_TIME_ACCOUNTING that time is counted twice, as
//! the CPU's softirq time and as the client's own system time, so neither the server's process time nor "all
//! less the client's process time" is the server's cost. Here the client has a CPU for itself, and the
//! server's cost is the busy time of all CPUs less what `/proc/stat` calls user and system time on the
//! client's. Handing frames to the client's socket is softirq work, too, and stays in: for every server alike.
//!
//! Whatever else runs on the other CPUs is counted as the server's: measure on an idle machine.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// USER_HZ, the unit of `/proc/stat`: 100 on every architecture that Linux shows it to.
const TICKS: f64 = 100.0;

/// The client's CPU and everybody else's.
#[derive(Clone, Copy)]
pub struct Cpus {
    client: CpuSet,
    rest: CpuSet,
    /// The number of the client's.
    number: usize,
}

/// CPU time since a moment.
pub struct Meter {
    cpus: Cpus,
    since: f64,
}

impl Cpus {
    /// The last CPU for the client.
    pub fn divide() -> Result<Self> {
        let all = sched_getaffinity(Pid::from_raw(0))?;
        let numbers: Vec<usize> =
            (0..CpuSet::count()).filter(|n| all.is_set(*n).unwrap_or_default()).collect();
        let (mut client, mut rest) = (CpuSet::new(), all);
        let number = *numbers.last().context("there is a CPU")?;
        ensure!(numbers.len() > 1, "load and server need a CPU each; this machine has one");
        client.set(number)?;
        rest.unset(number)?;
        Ok(Self { client, rest, number })
    }

    /// Moves this thread, and what it starts from now on, to the CPUs that are not the client's.
    pub fn leave_to_client(&self) -> Result<()> {
        Ok(sched_setaffinity(Pid::from_raw(0), &self.rest)?)
    }

    /// Moves this thread to the client's CPU.
    pub fn be_client(&self) -> Result<()> {
        Ok(sched_setaffinity(Pid::from_raw(0), &self.client)?)
    }

    pub fn meter(&self) -> Result<Meter> {
        Ok(Meter { cpus: *self, since: self.servers_seconds()? })
    }

    fn servers_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        servers_ticks(&stat, self.number).map(|ticks| ticks as f64 / TICKS)
    }
}

impl Meter {
    /// CPU time of everything but the client.
    pub fn seconds(&self) -> Result<f64> {
        Ok(self.cpus.servers_seconds()? - self.since)
    }
}

/// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
fn servers_ticks(stat: &str, client: usize) -> Result<u64> {
    let mut ticks = 0;
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let Some(Ok(cpu)) = words.next().and_then(|w| w.strip_prefix("cpu")).map(str::parse::<usize>) else {
            continue;
        };
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().context("/proc/stat")?;
        let [user, nice, system, _, _, irq, softirq, ..] = numbers[..] else {
            anyhow::bail!("/proc/stat: {line:?} is too short");
        };
        ticks += irq + softirq + if cpu == client { 0 } else { user + nice + system };
    }
    Ok(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_time_is_left_out() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 1000 1000 8 16 1000 0 0\n\
                    cpu1 1000 1000 1000 1000 1000 32 64 1000 0 0\nintr 5\n";
        assert_eq!(servers_ticks(stat, 1).unwrap(), 1 + 2 + 4 + 8 + 16 + 32 + 64);
    }
}
