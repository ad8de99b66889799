//! `cargo xtask bench dhcp`: one client program, three servers, in turn; and Kea's perfdhcp.

use std::fmt;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::load::dhcp::{self as load, End, Plan, Way};
use ::lab::world::World;
use anyhow::Result;
use serde::Serialize;

use super::dhcp_servers::{Server, Site};
use super::report::{Bound, Goal, Report};
use super::samples::{Column, OURS, Outcome, Samples, with_kernel_percent};
use super::{Effort, cpus, perfdhcp};

/// Machines that ask again and again.
const KNOWN: u32 = 1000;
/// Machines that ask for the first time, in each pair.
const NEW: u32 = 500;

/// One group of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cell {
    machines: Machines,
    relayed: bool,
    /// Exchanges at a time.
    outstanding: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Machines {
    /// Never seen before: each gets an address that goes to disk.
    New,
    /// They have leases, as when a rack is powered on again.
    Known,
}

const COLUMNS: &[Column<load::Outcome>] = &[
    Column { head: "exch./s", drawn: true, of: rate },
    Column { head: "drops", drawn: false, of: |o| o.drops as f64 },
    Column { head: "p50", drawn: false, of: |o| o.latency.p50 },
    Column { head: "p99", drawn: true, of: p99 },
    Column { head: "max", drawn: false, of: |o| o.latency.max },
    Column { head: "CPU s/1000", drawn: true, of: cost },
];
const CAPTION: &str = "Medians; p50, p99 and max in us from DISCOVER to ACK; CPU seconds of the server's side, \
     softirqs included, per 1,000 exchanges";

pub(super) fn dhcp(world: &World, effort: &Effort<'_>, quick: bool) -> Result<Report> {
    let (cpus, note) = cpus()?;
    let mut sites = Vec::new();
    for server in Server::ALL {
        let mut site = server.start(world, effort.fast_path)?;
        site.await_ready(&cpus)?;
        run(&mut site, &cell(Machines::New, true, 16), 0, Duration::ZERO, &cpus)?;
        sites.push(site);
    }
    let cells = cells(quick);
    let mut samples = Samples::new("dhcp", COLUMNS);
    samples.measure(&cells, effort.pairs, &mut sites, |site, cell, pair| {
        Some(run(site, cell, pair, effort.duration, &cpus))
    })?;
    let storm = [perfdhcp::Cell { machines: KNOWN }];
    for site in &sites {
        perfdhcp::acquaint(world, site, &storm[0], &cpus)?;
    }
    let mut by_perfdhcp = Samples::new("perfdhcp", perfdhcp::COLUMNS);
    by_perfdhcp.measure(&storm, effort.pairs, &mut sites, |site, cell, pair| {
        Some(perfdhcp::run(world, site, cell, pair, effort.duration, &cpus))
    })?;
    let mut goals = Vec::new();
    for cell in GOALS {
        let drops = samples.median(&cell, OURS, |o| o.drops as f64);
        let over_kea = |of| samples.ratio(&cell, OURS, Server::Kea.name(), of);
        goals.extend([
            Goal::new(&format!("{cell}: exchanges/s over Kea's"), over_kea(rate), Bound::AtLeast(20.0)),
            Goal::new(&format!("{cell}: p99 latency over Kea's"), over_kea(p99), Bound::AtMost(0.1)),
            Goal::new(&format!("{cell}: our drops"), drops, Bound::AtMost(0.0)),
        ]);
    }
    let servers = Server::ALL.map(Server::name);
    let tables = vec![
        samples.table(CAPTION, &cells, &servers),
        by_perfdhcp.table(perfdhcp::CAPTION, &storm, &servers),
    ];
    Ok(Report { name: "dhcp", tables, goals, notes: note.into_iter().collect() })
}

const fn cell(machines: Machines, relayed: bool, outstanding: u32) -> Cell {
    Cell { machines, relayed, outstanding }
}

/// What the goals are about.
const GOALS: [Cell; 2] = [cell(Machines::Known, true, 16), cell(Machines::Known, true, 64)];

fn cells(quick: bool) -> Vec<Cell> {
    use Machines::{Known, New};
    let mut cells = GOALS.to_vec();
    if !quick {
        cells.insert(0, cell(Known, true, 1));
        cells.extend([cell(Known, false, 1), cell(Known, false, 16), cell(New, true, 16)]);
    }
    cells
}

/// One measurement. Pair 0 with new machines makes the known ones known.
fn run(
    site: &mut Site,
    cell: &Cell,
    pair: u32,
    duration: Duration,
    cpus: &Cpus,
) -> Result<Outcome<load::Outcome>> {
    let (first, machines, end) = match (cell.machines, pair) {
        (Machines::Known, _) => (0, KNOWN, End::After(duration)),
        (Machines::New, 0) => (0, KNOWN, End::Round),
        (Machines::New, pair) => (KNOWN + (pair - 1) * NEW, NEW, End::Round),
    };
    let way = if cell.relayed { Way::Relayed(site.relay_address) } else { Way::Direct };
    let plan = Plan { server: site.address, way, first, machines, outstanding: cell.outstanding, end };
    let host = if cell.relayed { &site.relay } else { &site.direct };
    // An OFFER and an ACK.
    let replies = |o: &load::Outcome| 2 * o.exchanges;
    let outcome = with_kernel_percent(&*site.process, &["dhcp-offers", "dhcp-acks"], replies, || {
        host.inside(|| load::run(&plan, &mut site.given, cpus))
    });
    // So that the server's work after its last reply does not count for the next one.
    std::thread::sleep(Duration::from_millis(300));
    outcome
}

pub(super) fn rate(outcome: &load::Outcome) -> f64 {
    outcome.exchanges as f64 / outcome.seconds
}

pub(super) fn p99(outcome: &load::Outcome) -> f64 {
    outcome.latency.p99
}

/// The server's CPU milliseconds per exchange, which is seconds per 1,000.
pub(super) fn cost(outcome: &load::Outcome) -> f64 {
    outcome.cpu_seconds / outcome.exchanges as f64 * 1000.0
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machines = match self.machines {
            Machines::New => "new machines",
            Machines::Known => "known machines",
        };
        let way = if self.relayed { "relayed" } else { "direct" };
        write!(f, "{machines}, {way}, {} at a time", self.outstanding)
    }
}
