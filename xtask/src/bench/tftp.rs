//! `cargo xtask bench tftp`: one client program, five servers, turn by turn.

use std::fs;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::load::{Numbers, tftp as load};
use ::lab::world::World;
use anyhow::Result;
use serde::Serialize;

use super::Effort;
use super::measure::{column, cpus, median, save};
use super::tftp_servers::{Server, Site};

const FILE: &str = "load.bin";
/// A kernel's size. Not a multiple of any block size.
const FILE_LEN: usize = (8 << 20) + 77;

/// One row of the table, for each server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Cell {
    clients: usize,
    blksize: u16,
    window: u16,
    /// Percent.
    loss: f64,
}

/// One measurement, as `target/bench/tftp.json` keeps it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sample {
    #[serde(flatten)]
    cell: Cell,
    server: Server,
    pair: u32,
    /// Or why there is none.
    outcome: Result<load::Outcome, String>,
}

const fn cell(clients: usize, blksize: u16, window: u16, loss: f64) -> Cell {
    Cell { clients, blksize, window, loss }
}

const ALONE: Cell = cell(1, 1468, 1, 0.0);
const WINDOWS: Cell = cell(1, 1468, 16, 0.0);
const MANY: Cell = cell(256, 1468, 1, 0.0);

/// What the goals are about.
pub(super) fn goals() -> Vec<Cell> {
    vec![ALONE, WINDOWS, MANY]
}

/// Every value of every dimension, the others as usual.
pub(super) fn axes() -> Vec<Cell> {
    let mut cells = Vec::new();
    cells.extend([1, 8, 64, 256, 1000].map(|clients| cell(clients, 1468, 1, 0.0)));
    cells.extend([512, 1024, 1432].map(|blksize| cell(1, blksize, 1, 0.0)));
    cells.extend([4, 16].map(|window| cell(1, 1468, window, 0.0)));
    cells.extend([4, 16].map(|window| cell(64, 1468, window, 0.0)));
    cells.extend([1, 16].map(|window| cell(1, 1468, window, 1.0)));
    cells.extend([1, 16].map(|window| cell(64, 1468, window, 1.0)));
    cells.extend([1, 16].map(|window| cell(64, 1468, window, 5.0)));
    cells
}

/// Every combination.
pub(super) fn full() -> Vec<Cell> {
    let mut cells = Vec::new();
    for clients in [1, 8, 64, 256, 1000] {
        for blksize in [512, 1024, 1432, 1468] {
            for window in [1, 4, 16] {
                cells.extend([0.0, 1.0, 5.0].map(|loss| cell(clients, blksize, window, loss)));
            }
        }
    }
    cells
}

pub(super) fn tftp(world: &World, cells: &[Cell], effort: &Effort<'_>) -> Result<()> {
    let cpus = cpus()?;
    let content = Numbers::new(1350).bytes(FILE_LEN);
    let root = world.path("files");
    fs::create_dir_all(&root)?;
    fs::write(root.join(FILE), &content)?;
    let mut sites = Vec::new();
    for server in Server::ALL {
        sites.push(server.start(world, &root, effort.fast_path)?);
    }
    let mut samples: Vec<Sample> = Vec::new();
    for (number, cell) in (1..).zip(cells) {
        println!("{number}/{}  {}", cells.len(), cell.title());
        for pair in 1..=effort.pairs {
            for site in &sites {
                let failed = |s: &Sample| s.cell == *cell && s.server == site.server && s.outcome.is_err();
                // What failed once, or can't be, is not tried again.
                if (cell.window > 1 && !site.server.has_windows()) || samples.iter().any(failed) {
                    continue;
                }
                let outcome = measure(site, cell, &content, effort.duration, &cpus);
                match &outcome {
                    Ok(outcome) => println!("    {}: {:.1} MB/s", site.server.name(), rate(outcome)),
                    Err(why) => println!("    {}: {why}", site.server.name()),
                }
                samples.push(Sample { cell: *cell, server: site.server, pair, outcome });
            }
        }
        save("tftp", &samples)?;
    }
    table(cells, &samples);
    verdicts(cells, &samples);
    Ok(())
}

fn measure(
    site: &Site,
    cell: &Cell,
    content: &[u8],
    duration: Duration,
    cpus: &Cpus,
) -> Result<load::Outcome, String> {
    let plan = load::Plan {
        server: site.address,
        file: (FILE, content),
        clients: cell.clients,
        blksize: cell.blksize,
        window: cell.window,
        loss: cell.loss,
        duration,
    };
    let outcome = site.host.inside(|| load::run(&plan, cpus)).map_err(|e| format!("{e:#}"));
    // Transfers that were broken off end meanwhile, and are not in the next one's bill.
    std::thread::sleep(Duration::from_millis(300));
    outcome
}

/// MB/s.
fn rate(outcome: &load::Outcome) -> f64 {
    outcome.bytes as f64 / 1e6 / outcome.seconds
}

/// CPU seconds of the server's side per GB.
fn cost(outcome: &load::Outcome) -> f64 {
    outcome.cpu_seconds / (outcome.bytes as f64 / 1e9)
}

impl Cell {
    fn title(&self) -> String {
        let Self { clients, blksize, window, loss } = self;
        let window = if *window == 1 { "lock-step".into() } else { format!("window {window}") };
        let loss = if *loss == 0.0 { String::new() } else { format!(", {loss} % lost") };
        format!("{clients} clients, {blksize} bytes, {window}{loss}")
    }
}

/// The outcomes of a server, by pair.
fn outcomes<'a>(
    samples: &'a [Sample],
    cell: &Cell,
    server: Server,
) -> impl Iterator<Item = (u32, &'a load::Outcome)> {
    let these = samples.iter().filter(move |s| s.cell == *cell && s.server == server);
    these.filter_map(|s| Some((s.pair, s.outcome.as_ref().ok()?)))
}

/// Medians of what we did over what a peer did, in the same pair.
fn ratio(samples: &[Sample], cell: &Cell, peer: Server, of: impl Fn(&load::Outcome) -> f64) -> Option<f64> {
    median(outcomes(samples, cell, Server::Bridgehead).filter_map(|(pair, ours)| {
        let (_, theirs) = outcomes(samples, cell, peer).find(|(other, _)| *other == pair)?;
        Some(of(ours) / of(theirs))
    }))
}

fn table(cells: &[Cell], samples: &[Sample]) {
    println!(
        "\nmedians; latency in us from an ACK to the last block it asked for; CPU seconds of the server's side"
    );
    println!("(softirqs included) per GB; raw samples in target/bench/tftp.json");
    for cell in cells {
        println!("\n{}", cell.title());
        let heads = ["MB/s", "p50", "p99", "max", "CPU s/GB", "we/they"];
        println!("{:16}{}", "", heads.map(|head| format!("{head:>10}")).concat());
        for server in Server::ALL {
            let of = |value: fn(&load::Outcome) -> f64| {
                column(median(outcomes(samples, cell, server).map(|(_, outcome)| value(outcome))))
            };
            let columns =
                [of(rate), of(|o| o.latency.p50), of(|o| o.latency.p99), of(|o| o.latency.max), of(cost)];
            println!(
                "  {:14}{}{}",
                server.name(),
                columns.concat(),
                column(ratio(samples, cell, server, rate))
            );
        }
    }
}

/// What the goals say, where their cells were measured.
fn verdicts(cells: &[Cell], samples: &[Sample]) {
    let mut lines = Vec::new();
    let mut goal = |cell: &Cell, what: &str, value: Option<f64>, least: f64| {
        if cells.contains(cell) {
            lines.push(format!("  {what}: {} (goal {least})", column(value).trim()));
        }
    };
    goal(
        &ALONE,
        "one client, lock-step, MB/s over dnsmasq's",
        ratio(samples, &ALONE, Server::Dnsmasq, rate),
        12.0,
    );
    let best = |server| ratio(samples, &WINDOWS, server, rate);
    let least = [Server::Atftpd, Server::Tftpd].into_iter().filter_map(best).min_by(f64::total_cmp);
    goal(&WINDOWS, "one client, window 16, MB/s over the best peer's", least, 10.0);
    let cost = ratio(samples, &MANY, Server::Dnsmasq, cost).map(|ours| 1.0 / ours);
    goal(&MANY, "256 clients, lock-step, dnsmasq's CPU seconds per GB over ours", cost, 10.0);
    println!("\nmedians of pairs\n{}", lines.join("\n"));
}
