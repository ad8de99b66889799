//! `cargo xtask bench dhcp`: one client program, three servers, turn by turn; and Kea's perfdhcp.

use std::fs;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::load::dhcp::{self as load, End, Plan, Way};
use ::lab::process::Process;
use ::lab::world::World;
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Effort;
use super::dhcp_servers::{Server, Site};
use super::measure::{column, cpus, median, save};
use crate::setup::peers;

/// Machines that ask again and again.
const KNOWN: u32 = 1000;
/// Machines that ask for the first time, in each pair.
const NEW: u32 = 500;
/// perfdhcp sends at a rate that it is told, whatever comes back: each of these is tried until at most
/// [`PERFDHCP_DROPS`] percent are lost.
const PERFDHCP_RATES: [u32; 10] = [64_000, 32_000, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 125];
const PERFDHCP_DROPS: f64 = 0.5;

/// One row of the table, for each server.
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

/// One measurement, as `target/bench/dhcp.json` keeps it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sample {
    #[serde(flatten)]
    cell: Cell,
    server: Server,
    pair: u32,
    outcome: load::Outcome,
}

/// What perfdhcp printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Perfdhcp {
    server: Server,
    pair: u32,
    /// Exchanges a second to begin.
    asked: u32,
    exchanges_per_second: f64,
    drops_percent: f64,
    cpu_seconds: f64,
    seconds: f64,
    report: String,
}

#[derive(Serialize)]
struct Raw<'a> {
    samples: &'a [Sample],
    perfdhcp: &'a [Perfdhcp],
}

pub(super) fn dhcp(world: &World, effort: &Effort<'_>, quick: bool) -> Result<()> {
    let cpus = cpus()?;
    let mut sites = Vec::new();
    for server in Server::ALL {
        let mut site = server.start(world, effort.fast_path)?;
        site.await_ready(&cpus)?;
        run(&mut site, &cell(Machines::New, true, 16), 0, Duration::ZERO, &cpus)?;
        sites.push(site);
    }
    let cells = cells(quick);
    let mut samples = Vec::new();
    for (number, cell) in (1..).zip(&cells) {
        println!("{number}/{}  {}", cells.len(), cell.title());
        for pair in 1..=effort.pairs {
            for site in &mut sites {
                let outcome = run(site, cell, pair, effort.duration, &cpus)
                    .with_context(|| format!("{}, {}", site.server.name(), cell.title()))?;
                println!("    {}: {:.0}/s, {} drops", site.server.name(), rate(&outcome), outcome.drops);
                samples.push(Sample { cell: *cell, server: site.server, pair, outcome });
            }
        }
        save("dhcp", &Raw { samples: &samples, perfdhcp: &[] })?;
    }
    let mut reports = Vec::new();
    for pair in 1..=effort.pairs {
        for site in &sites {
            let report = perfdhcp(world, site, pair, effort.duration, &cpus)?;
            println!("    perfdhcp, {}: {:.0}/s", site.server.name(), report.exchanges_per_second);
            reports.push(report);
        }
    }
    save("dhcp", &Raw { samples: &samples, perfdhcp: &reports })?;
    table(&cells, &samples);
    perfdhcp_table(&reports);
    Ok(())
}

const fn cell(machines: Machines, relayed: bool, outstanding: u32) -> Cell {
    Cell { machines, relayed, outstanding }
}

fn cells(quick: bool) -> Vec<Cell> {
    use Machines::{Known, New};
    let mut cells = vec![cell(Known, true, 16), cell(Known, true, 64)];
    if !quick {
        cells.insert(0, cell(Known, true, 1));
        cells.extend([cell(Known, false, 1), cell(Known, false, 16), cell(New, true, 16)]);
    }
    cells
}

/// One measurement. Pair 0 with new machines makes the known ones known.
fn run(site: &mut Site, cell: &Cell, pair: u32, duration: Duration, cpus: &Cpus) -> Result<load::Outcome> {
    let (first, machines, end) = match (cell.machines, pair) {
        (Machines::Known, _) => (0, KNOWN, End::After(duration)),
        (Machines::New, 0) => (0, KNOWN, End::Round),
        (Machines::New, pair) => (KNOWN + (pair - 1) * NEW, NEW, End::Round),
    };
    let way = if cell.relayed { Way::Relayed(site.relay_address) } else { Way::Direct };
    let plan = Plan { server: site.address, way, first, machines, outstanding: cell.outstanding, end };
    let host = if cell.relayed { &site.relay } else { &site.direct };
    let outcome = host.inside(|| load::run(&plan, &mut site.given, cpus));
    // What the server does after its last reply is not in the next one's bill.
    std::thread::sleep(Duration::from_millis(300));
    outcome
}

/// Kea's own load generator, which plays a relay, at the highest rate that the server keeps up with.
fn perfdhcp(world: &World, site: &Site, pair: u32, duration: Duration, cpus: &Cpus) -> Result<Perfdhcp> {
    let mut rates = PERFDHCP_RATES.into_iter();
    loop {
        let asked = rates.next().expect("the last rate is taken as it is");
        let report = perfdhcp_at(world, site, pair, asked, duration, cpus)?;
        if report.drops_percent <= PERFDHCP_DROPS || rates.len() == 0 {
            return Ok(report);
        }
    }
}

fn perfdhcp_at(
    world: &World,
    site: &Site,
    pair: u32,
    asked: u32,
    duration: Duration,
    cpus: &Cpus,
) -> Result<Perfdhcp> {
    let log = world.path(format!("perfdhcp-{:?}-{pair}-{asked}", site.server));
    let seconds = duration.as_secs().max(1);
    // It goes on for a while to collect what is late.
    let patience = Duration::from_secs(seconds + 60);
    let (relay, address) = (site.relay_address.to_string(), site.address.to_string());
    let (cpu_seconds, report) = site.relay.inside(|| {
        cpus.be_client()?;
        let meter = cpus.meter()?;
        let mut command = peers::command("perfdhcp");
        command.args(["-4", "-l", &relay]);
        command.args(["-r", &asked.to_string(), "-p", &seconds.to_string(), "-R", &KNOWN.to_string()]);
        let mut process = Process::start(command.arg(address), &log)?;
        // 3 says that not every exchange was completed.
        process.wait(patience)?;
        Ok((meter.seconds()?, fs::read_to_string(&log)?))
    })?;
    let number = |name: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|w| w.parse().ok()).with_context(|| format!("perfdhcp said no {name:?}:\n{report}"))
    };
    Ok(Perfdhcp {
        server: site.server,
        pair,
        asked,
        exchanges_per_second: number("Rate:")?,
        drops_percent: number("drops ratio:")?,
        cpu_seconds,
        seconds: seconds as f64,
        report,
    })
}

/// Exchanges a second.
fn rate(outcome: &load::Outcome) -> f64 {
    outcome.exchanges as f64 / outcome.seconds
}

/// The server's CPU milliseconds an exchange: seconds per 1,000.
fn cost(outcome: &load::Outcome) -> f64 {
    outcome.cpu_seconds / outcome.exchanges as f64 * 1000.0
}

impl Cell {
    fn title(&self) -> String {
        let machines = match self.machines {
            Machines::New => "new machines",
            Machines::Known => "known machines",
        };
        let way = if self.relayed { "relayed" } else { "direct" };
        format!("{machines}, {way}, {} at a time", self.outstanding)
    }
}

fn table(cells: &[Cell], samples: &[Sample]) {
    println!(
        "\nmedians; latency in us from DISCOVER to ACK; CPU seconds of the server's side (softirqs included)"
    );
    println!("per 1,000 exchanges; raw samples in target/bench/dhcp.json");
    for cell in cells {
        println!("\n{}", cell.title());
        let heads = ["exch./s", "drops", "p50", "p99", "max", "CPU s/1000", "we/they"];
        println!("{:16}{}", "", heads.map(|head| format!("{head:>11}")).concat());
        let of_server =
            |server: Server| samples.iter().filter(move |s| s.cell == *cell && s.server == server);
        for server in Server::ALL {
            let of = |value: fn(&load::Outcome) -> f64| median(of_server(server).map(|s| value(&s.outcome)));
            let drops: fn(&load::Outcome) -> f64 = |o| o.drops as f64;
            let waits: [fn(&load::Outcome) -> f64; 3] =
                [|o| o.latency.p50, |o| o.latency.p99, |o| o.latency.max];
            let ratios = of_server(Server::Bridgehead).filter_map(|ours| {
                let theirs = of_server(server).find(|s| s.pair == ours.pair)?;
                Some(rate(&ours.outcome) / rate(&theirs.outcome))
            });
            let mut columns = vec![of(rate), of(drops)];
            columns.extend(waits.map(of));
            columns.extend([of(cost), median(ratios)]);
            let columns: String = columns.into_iter().map(|value| format!(" {}", column(value))).collect();
            println!("  {:14}{columns}", server.name());
        }
    }
}

fn perfdhcp_table(reports: &[Perfdhcp]) {
    println!("\nperfdhcp, {KNOWN} machines, the highest rate tried with at most {PERFDHCP_DROPS} % drops");
    println!("{:16}{:>11}{:>11}{:>11}", "", "exch./s", "drops %", "CPU s/1000");
    for server in Server::ALL {
        let of = |value: fn(&Perfdhcp) -> f64| {
            column(median(reports.iter().filter(|r| r.server == server).map(value)))
        };
        let cost = of(|r| r.cpu_seconds / (r.exchanges_per_second * r.seconds) * 1000.0);
        println!(
            "  {:14} {} {} {cost}",
            server.name(),
            of(|r| r.exchanges_per_second),
            of(|r| r.drops_percent)
        );
    }
}
