//! `cargo xtask bench growth`: what one more machine costs when there are many.

use std::fmt;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::load::dhcp::{self as load, End, Plan, Way};
use ::lab::world::World;
use anyhow::{Result, ensure};
use serde::Serialize;

use super::dhcp::{cost, p99, rate};
use super::dhcp_servers::{Server, Site};
use super::report::{Bound, Goal, Report};
use super::samples::{Column, OURS, Outcome, Samples};
use super::{Effort, cpus};

/// New machines in each measurement.
const NEW: u32 = 2_000;
/// Exchanges at a time.
const OUTSTANDING: u32 = 16;

/// One group of the table: this many machines have a lease before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cell {
    leases: u32,
}

const CELLS: [Cell; 3] = [Cell { leases: 1_000 }, Cell { leases: 10_000 }, Cell { leases: 100_000 }];

const COLUMNS: &[Column<load::Outcome>] = &[
    Column { head: "exch./s", drawn: true, of: rate },
    Column { head: "drops", drawn: false, of: |o| o.drops as f64 },
    Column { head: "p50", drawn: false, of: |o| o.latency.p50 },
    Column { head: "p99", drawn: true, of: p99 },
    Column { head: "CPU s/1000", drawn: true, of: cost },
];
const CAPTION: &str = "Medians of machines that ask for the first time, 16 at a time, by relay; p50 and p99 in us from DISCOVER \
     to ACK; CPU seconds of the server's side, softirqs included, per 1,000 exchanges";

pub(super) fn growth(world: &World, effort: &Effort<'_>) -> Result<Report> {
    let (cpus, note) = cpus()?;
    let mut sites = Vec::new();
    for server in [Server::Bridgehead, Server::Kea] {
        let mut site = server.start_wide(world, effort.fast_path)?;
        site.await_ready(&cpus)?;
        sites.push(site);
    }
    let mut samples = Samples::new("growth", COLUMNS);
    for cell in CELLS {
        for site in &mut sites {
            fill(site, cell.leases, &cpus)?;
        }
        // Each measurement adds new machines, which are few compared with the existing leases.
        samples.measure(&[cell], effort.pairs, &mut sites, |site, _, _| Some(measure(site, &cpus)))?;
    }
    let grows = |of: fn(&load::Outcome) -> f64| {
        let [first, _, last] = CELLS.map(|cell| samples.median(&cell, OURS, of));
        Some(last? / first?)
    };
    let goals = vec![
        Goal::new("CPU of one more machine, 100,000 leases over 1,000", grows(cost), Bound::AtMost(1.3)),
        Goal::new(
            "its latency (p50), 100,000 leases over 1,000",
            grows(|o| o.latency.p50),
            Bound::AtMost(1.3),
        ),
        Goal::new(
            "our drops with 100,000 leases",
            samples.median(&CELLS[2], OURS, |o| o.drops as f64),
            Bound::AtMost(0.0),
        ),
    ];
    let servers = [Server::Bridgehead, Server::Kea].map(Server::name);
    let tables = vec![samples.table(CAPTION, &CELLS, &servers)];
    Ok(Report { name: "growth", tables, goals, notes: note.into_iter().collect() })
}

/// Gives addresses until this many machines have one.
fn fill(site: &mut Site, leases: u32, cpus: &Cpus) -> Result<()> {
    let has = site.given.len() as u32;
    if has < leases {
        run(site, leases - has, 64, cpus)?;
    }
    let has = site.given.len() as u32;
    ensure!(has >= leases, "{} gave {has} addresses of {leases}", site.server.name());
    Ok(())
}

fn measure(site: &mut Site, cpus: &Cpus) -> Result<Outcome<load::Outcome>> {
    let outcome = run(site, NEW, OUTSTANDING, cpus)?;
    // So that the server's work after its last reply does not count for the next one.
    std::thread::sleep(Duration::from_millis(300));
    Ok(Outcome { load: outcome, kernel_percent: None })
}

/// Runs exchanges of this many new machines.
fn run(site: &mut Site, machines: u32, outstanding: u32, cpus: &Cpus) -> Result<load::Outcome> {
    let way = Way::Relayed(site.relay_address);
    let first = site.given.len() as u32;
    let plan = Plan { server: site.address, way, first, machines, outstanding, end: End::Round };
    site.relay.inside(|| load::run(&plan, &mut site.given, cpus))
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} machines have a lease", self.leases)
    }
}
