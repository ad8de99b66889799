//! Kea's own load generator, which acts as a relay.

use std::fmt;
use std::fs;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::process::Process;
use ::lab::world::World;
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::dhcp_servers::Site;
use super::samples::{Column, Outcome, with_kernel_percent};
use crate::setup::peers;

/// The rates to try: perfdhcp sends at a fixed rate, whatever comes back. Each is tried until at most
/// [`DROPS_PERCENT`] are lost.
const RATES: [u32; 10] = [64_000, 32_000, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 125];
const DROPS_PERCENT: f64 = 0.5;

pub(super) const CAPTION: &str = "The same by perfdhcp: the highest rate tried with at most 0.5 % drops";
pub(super) const COLUMNS: &[Column<Load>] = &[
    Column { head: "exch./s", drawn: true, of: |o| o.exchanges_per_second },
    Column { head: "drops %", drawn: false, of: |o| o.drops_percent },
    Column { head: "CPU s/1000", drawn: true, of: |o| o.cpu_seconds / o.exchanges() * 1000.0 },
];

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) machines: u32,
}

/// What perfdhcp printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Load {
    /// The requested rate, in exchanges a second.
    asked: u32,
    exchanges_per_second: f64,
    drops_percent: f64,
    cpu_seconds: f64,
    seconds: f64,
    report: String,
}

impl Load {
    fn exchanges(&self) -> f64 {
        self.exchanges_per_second * self.seconds
    }
}

/// Makes its machines known to the server.
pub(super) fn acquaint(world: &World, site: &Site, cell: &Cell, cpus: &Cpus) -> Result<()> {
    const RATE: u32 = 250;
    let log = world.path(format!("perfdhcp-{:?}", site.server));
    let long_enough = Duration::from_secs(u64::from(cell.machines / RATE + 1));
    run_at(RATE, &log, site, cell, long_enough, cpus).map(drop)
}

/// Measures at the highest rate with which the server keeps up.
pub(super) fn run(
    world: &World,
    site: &Site,
    cell: &Cell,
    pair: u32,
    duration: Duration,
    cpus: &Cpus,
) -> Result<Outcome<Load>> {
    let mut rates = RATES.into_iter();
    loop {
        let asked = rates.next().expect("the last rate is taken as it is");
        let log = world.path(format!("perfdhcp-{:?}-{pair}-{asked}", site.server));
        let replies = |load: &Load| (2.0 * load.exchanges()) as u64;
        let outcome = with_kernel_percent(&*site.process, &["dhcp-offers", "dhcp-acks"], replies, || {
            run_at(asked, &log, site, cell, duration, cpus)
        })?;
        if outcome.load.drops_percent <= DROPS_PERCENT || rates.len() == 0 {
            return Ok(outcome);
        }
    }
}

fn run_at(
    asked: u32,
    log: &std::path::Path,
    site: &Site,
    cell: &Cell,
    duration: Duration,
    cpus: &Cpus,
) -> Result<Load> {
    let seconds = duration.as_secs().max(1);
    // It waits for late replies at the end.
    let patience = Duration::from_secs(seconds + 60);
    let (relay, address) = (site.relay_address.to_string(), site.address.to_string());
    let (cpu_seconds, report) = site.relay.inside(|| {
        cpus.be_client()?;
        let meter = cpus.meter()?;
        let mut command = peers::command("perfdhcp");
        command.args(["-4", "-l", &relay, "-r", &asked.to_string()]);
        command.args(["-p", &seconds.to_string(), "-R", &cell.machines.to_string()]);
        let mut process = Process::start(command.arg(address), log)?;
        // Exit code 3 means that not every exchange was completed.
        process.wait(patience)?;
        Ok((meter.seconds()?, fs::read_to_string(log)?))
    })?;
    let number = |name: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|w| w.parse().ok()).with_context(|| format!("perfdhcp said no {name:?}:\n{report}"))
    };
    Ok(Load {
        asked,
        exchanges_per_second: number("Rate:")?,
        drops_percent: number("drops ratio:")?,
        cpu_seconds,
        seconds: seconds as f64,
        report,
    })
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "perfdhcp, {} known machines, relayed", self.machines)
    }
}
