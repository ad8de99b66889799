//! `cargo xtask bench tftp`: one client program, five servers, in turn.

use std::fmt;
use std::fs;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::load::{Numbers, tftp as load};
use ::lab::world::World;
use anyhow::Result;
use serde::Serialize;

use super::report::{Bound, Goal, Report};
use super::samples::{Column, OURS, Outcome, Samples, with_kernel_percent};
use super::tftp_servers::{Server, Site, Wire};
use super::{Effort, cpus};

pub(super) const FILE: &str = "load.bin";
/// A kernel's size. Not a multiple of any block size.
pub(super) const FILE_LEN: usize = (8 << 20) + 77;

/// One group of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) clients: usize,
    pub(super) blksize: u16,
    pub(super) window: u16,
    /// Percent.
    pub(super) loss: f64,
}

const COLUMNS: &[Column<load::Outcome>] = &[
    Column { head: "MB/s", drawn: true, of: rate },
    Column { head: "p50", drawn: false, of: |o| o.latency.p50 },
    Column { head: "p99", drawn: true, of: |o| o.latency.p99 },
    Column { head: "max", drawn: false, of: |o| o.latency.max },
    Column { head: "CPU s/GB", drawn: true, of: cost },
];
const CAPTION: &str = "Medians; p50, p99 and max in us from an ACK to the last block it asked for; CPU seconds of \
     the server's side, softirqs included, per GB";

const fn cell(clients: usize, blksize: u16, window: u16, loss: f64) -> Cell {
    Cell { clients, blksize, window, loss }
}

pub(super) const ALONE: Cell = cell(1, 1468, 1, 0.0);
const WINDOWS: Cell = cell(1, 1468, 16, 0.0);
const MANY: Cell = cell(256, 1468, 1, 0.0);

/// What the goals are about.
pub(super) fn goals() -> Vec<Cell> {
    vec![ALONE, WINDOWS, MANY]
}
/// Every value of every dimension, with the others at their default.
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

pub(super) fn tftp(world: &World, cells: &[Cell], effort: &Effort<'_>) -> Result<Report> {
    let (cpus, note) = cpus()?;
    let content = Numbers::new(1350).bytes(FILE_LEN);
    let root = serve(world, &content)?;
    let mut sites = Vec::new();
    for server in Server::ALL {
        sites.push(Site { server, wire: server.start(world, &root, effort.fast_path)? });
    }
    let mut samples = Samples::new("tftp", COLUMNS);
    samples.measure(cells, effort.pairs, &mut sites, |site, cell, _| {
        let can = cell.window == 1 || site.server.has_windows();
        can.then(|| measure(&site.wire, cell, &content, effort.duration, &cpus))
    })?;
    let over = |cell, peer: Server, of| samples.ratio(cell, OURS, peer.name(), of);
    let windowed = [Server::Atftpd, Server::Tftpd].into_iter().filter_map(|peer| over(&WINDOWS, peer, rate));
    let goals = vec![
        Goal::new(
            "one client, lock-step, MB/s over dnsmasq's",
            over(&ALONE, Server::Dnsmasq, rate),
            Bound::AtLeast(12.0),
        ),
        Goal::new(
            "one client, window 16, MB/s over the best peer's",
            windowed.min_by(f64::total_cmp),
            Bound::AtLeast(10.0),
        ),
        Goal::new(
            "256 clients, lock-step, dnsmasq's CPU seconds per GB over ours",
            samples.ratio(&MANY, Server::Dnsmasq.name(), OURS, cost),
            Bound::AtLeast(10.0),
        ),
    ];
    let tables = vec![samples.table(CAPTION, cells, &Server::ALL.map(Server::name))];
    Ok(Report { name: "tftp", tables, goals, notes: note.into_iter().collect() })
}

/// Puts the file where the servers look for it, and returns the directory.
pub(super) fn serve(world: &World, content: &[u8]) -> Result<std::path::PathBuf> {
    let root = world.path("files");
    fs::create_dir_all(&root)?;
    fs::write(root.join(FILE), content)?;
    Ok(root)
}

pub(super) fn measure(
    wire: &Wire,
    cell: &Cell,
    content: &[u8],
    duration: Duration,
    cpus: &Cpus,
) -> Result<Outcome<load::Outcome>> {
    let plan = load::Plan {
        server: wire.address,
        file: (FILE, content),
        clients: cell.clients,
        blksize: cell.blksize,
        window: cell.window,
        loss: cell.loss,
        duration,
    };
    let outcome = with_kernel_percent(
        &*wire.running,
        &["reply-bytes"],
        |o: &load::Outcome| o.bytes,
        || wire.host.inside(|| load::run(&plan, cpus)),
    );
    // So that aborted transfers end meanwhile, and don't count for the next one.
    std::thread::sleep(Duration::from_millis(300));
    outcome
}

fn rate(outcome: &load::Outcome) -> f64 {
    outcome.bytes as f64 / 1e6 / outcome.seconds
}

/// CPU seconds of the server's side per GB.
pub(super) fn cost(outcome: &load::Outcome) -> f64 {
    outcome.cpu_seconds / (outcome.bytes as f64 / 1e9)
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, blksize, window, loss } = self;
        let plural = if *clients == 1 { "" } else { "s" };
        let window = if *window == 1 { "lock-step".into() } else { format!("window {window}") };
        let loss = if *loss == 0.0 { String::new() } else { format!(", {loss} % lost") };
        write!(f, "{clients} client{plural}, {blksize} bytes, {window}{loss}")
    }
}
