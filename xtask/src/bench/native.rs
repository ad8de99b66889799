//! `cargo xtask bench native`: XDP in a real driver, tc and the daemon, side by side on virtio-net in a virtual
//! machine with another kernel. The machine is emulated, so only the ratios mean anything.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use ::lab::appliance::{Places, base};
use ::lab::guest::appliance::{FILES, PORT, STATE};
use ::lab::guest::{Card, Guest, Inside, LAN, Options, Suite};
use ::lab::load::cpu::Cpus;
use ::lab::load::{Latency, Numbers, dhcp, tftp};
use ::lab::net::{self, Host};
use ::lab::world::World;
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::report::{Bound, Goal, Report};
use super::samples::{Column, Contender, Outcome, Samples};
use super::tftp::{ALONE, FILE};
use super::{Effort, cpus};

const SUITE: Suite = Suite::Trixie;
const CARD: Card = Card::VIRTIO;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// A quarter of the other benchmarks' file, because an emulated processor sends it.
const FILE_LEN: usize = (2 << 20) + 77;
/// As many machines as the pool has addresses for; they ask one after the other.
const MACHINES: u32 = 90;

/// One group of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "load")]
enum Cell {
    Blocks { window: u16 },
    Leases { outstanding: u32 },
}

const CELLS: [Cell; 4] = [
    Cell::Blocks { window: 1 },
    Cell::Blocks { window: 16 },
    Cell::Leases { outstanding: 1 },
    Cell::Leases { outstanding: 16 },
];

/// What may answer. Each has the machine for itself while it is measured.
struct Side {
    name: &'static str,
    fast_path: &'static str,
}

const XDP: Side = Side { name: "XDP and tc", fast_path: "auto" };
const TC: Side = Side { name: "tc", fast_path: "tc" };
const DAEMON: Side = Side { name: "daemon", fast_path: "off" };

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Load {
    seconds: f64,
    /// Blocks, or exchanges of four packets.
    answers: u64,
    latency: Latency,
    /// The percentages of answers by XDP and by tc.
    by_xdp: f64,
    by_tc: f64,
}

const COLUMNS: &[Column<Load>] = &[
    Column { head: "answers/s", drawn: true, of: rate },
    Column { head: "p50", drawn: false, of: |o| o.latency.p50 },
    Column { head: "p99", drawn: true, of: |o| o.latency.p99 },
    Column { head: "XDP %", drawn: false, of: |o| o.by_xdp },
    Column { head: "tc %", drawn: false, of: |o| o.by_tc },
];
const CAPTION: &str = "Medians. Answers: blocks of 1,468 bytes, or exchanges from DISCOVER to ACK; p50 and p99 in us, \
     of a block or window, or of an exchange. One emulated processor: only ratios mean anything";

pub(super) fn native(world: &World, effort: &Effort<'_>) -> Result<Report> {
    let (cpus, note) = cpus()?;
    let content = Numbers::new(1350).bytes(FILE_LEN);
    let guest = Guest::boot(world, &Options::new(SUITE, CARD)?)?;
    guest.write(&format!("{FILES}/{FILE}"), &content)?;
    // Two hosts, because the DHCP client makes its host's own stack drop everything.
    let hosts = [Host::new("a", 1)?, Host::new("b", 2)?];
    for host in &hosts {
        net::plug(&host.port(), LAN)?;
    }
    hosts[0].address("10.77.0.50/24")?;

    let mut samples = Samples::new("native", COLUMNS);
    samples.measure(&CELLS, effort.pairs, &mut [XDP, TC, DAEMON], |side, cell, _| {
        let places = Places { state: STATE.into(), files: FILES.into() };
        let config = base(&places, &[PORT.to_owned()], side.fast_path, "address-only");
        Some(Inside::start(&guest, &config).and_then(|inside| {
            let load = measure(&inside, &hosts, *cell, &content, effort.duration, &cpus);
            inside.stop()?;
            Ok(Outcome { load: load?, kernel_percent: None })
        }))
    })?;
    let goals = CELLS.map(|cell| {
        let over = samples.ratio(&cell, XDP.name, DAEMON.name, rate);
        Goal::new(&format!("{cell}: answers/s over the daemon's alone"), over, Bound::AtLeast(1.0))
    });
    let notes = note
        .into_iter()
        .chain([format!("Linux {} in QEMU's software emulation, virtio-net", guest.kernel())]);
    let tables = vec![samples.table(CAPTION, &CELLS, &[XDP.name, TC.name, DAEMON.name])];
    Ok(Report { name: "native", tables, goals: goals.into(), notes: notes.collect() })
}

fn measure(
    inside: &Inside<'_>,
    hosts: &[Host; 2],
    cell: Cell,
    content: &[u8],
    duration: Duration,
    cpus: &Cpus,
) -> Result<Load> {
    // So that publishing blobs, writing leases and the emulator's translation are not measured.
    warm_up(hosts, cell, content, cpus)?;
    let before = inside.status()?;
    let (seconds, answers, latency) = run(hosts, cell, content, duration, cpus)?;
    let after = inside.status()?;
    let percent = |hook: &str| {
        let names: &[&str] = match cell {
            Cell::Blocks { .. } => &["reply-bytes"],
            Cell::Leases { .. } => &["dhcp-offers", "dhcp-acks"],
        };
        let name = |name: &&str| format!("kernel.{hook}.{name}");
        let by: u64 = names.iter().map(|n| after.count(&name(n)) - before.count(&name(n))).sum();
        let each = match cell {
            Cell::Blocks { .. } => f64::from(ALONE.blksize),
            Cell::Leases { .. } => 2.0,
        };
        // Frames in flight at the end are counted by one side only.
        (by as f64 * 100.0 / (answers as f64 * each)).min(100.0)
    };
    Ok(Load { seconds, answers, latency, by_xdp: percent("xdp"), by_tc: percent("tc") })
}

/// Runs until a block came by the measured path, or every machine has an address.
fn warm_up(hosts: &[Host; 2], cell: Cell, content: &[u8], cpus: &Cpus) -> Result<()> {
    match cell {
        Cell::Blocks { .. } => run(hosts, cell, content, Duration::from_millis(500), cpus).map(drop),
        Cell::Leases { outstanding } => leases(&hosts[1], outstanding, dhcp::End::Round, cpus).map(drop),
    }
}

/// Seconds, answers, and how long each took.
fn run(
    hosts: &[Host; 2],
    cell: Cell,
    content: &[u8],
    duration: Duration,
    cpus: &Cpus,
) -> Result<(f64, u64, Latency)> {
    let [reader, machines] = hosts;
    match cell {
        Cell::Blocks { window } => {
            let (file, blksize) = ((FILE, content), ALONE.blksize);
            let plan = tftp::Plan { server: SERVER, file, clients: 1, blksize, window, loss: 0.0, duration };
            let done = reader.inside(|| tftp::run(&plan, cpus)).context("a transfer")?;
            Ok((done.seconds, done.blocks, done.latency))
        }
        Cell::Leases { outstanding } => {
            let done = leases(machines, outstanding, dhcp::End::After(duration), cpus)?;
            Ok((done.seconds, done.exchanges, done.latency))
        }
    }
}

fn leases(machines: &Host, outstanding: u32, end: dhcp::End, cpus: &Cpus) -> Result<dhcp::Outcome> {
    let way = dhcp::Way::Direct;
    let plan = dhcp::Plan { server: SERVER, way, first: 0, machines: MACHINES, outstanding, end };
    let done = machines.inside(|| dhcp::run(&plan, &mut dhcp::Given::new(), cpus)).context("leases")?;
    ensure!(done.exchanges > 0, "no machine got an address");
    Ok(done)
}

fn rate(load: &Load) -> f64 {
    load.answers as f64 / load.seconds
}

impl Contender for Side {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks { window: 1 } => f.write_str("blocks in lock-step"),
            Self::Blocks { window } => write!(f, "blocks in windows of {window}"),
            Self::Leases { outstanding: 1 } => f.write_str("leases of known machines, one at a time"),
            Self::Leases { outstanding } => write!(f, "leases of known machines, {outstanding} at a time"),
        }
    }
}
