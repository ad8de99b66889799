//! `cargo xtask bench limit`: the appliance compared with programs that only grow a frame and send it back
//! (`pxe-ebpf/src/limit.rs`), which is the limit of tc and XDP.

use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use ::lab::load::{Latency, tftp as load};
use ::lab::net::{self, Host};
use ::lab::world::World;
use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use serde::Serialize;

use super::live::{Live, Program};
use super::report::{Bound, Goal, Report};
use super::samples::{Column, Contender, OURS, Outcome, Samples};
use super::tftp::{ALONE, FILE_LEN, measure, serve};
use super::tftp_servers::{Server, Wire};
use super::{Effort, cpus};

const LIMIT: &str = "only bounced";
/// The block size of [`ALONE`].
pub(super) const BLKSIZE: u16 = ALONE.blksize;

/// One group of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "hook")]
enum Hook {
    Tc,
    Xdp,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Load {
    seconds: f64,
    blocks: u64,
    cpu_seconds: f64,
    latency: Latency,
}

const COLUMNS: &[Column<Load>] = &[
    Column { head: "blocks/s", drawn: true, of: rate },
    Column { head: "ns/block", drawn: true, of: time },
    Column { head: "p50", drawn: false, of: |o| o.latency.p50 },
    Column { head: "p99", drawn: false, of: |o| o.latency.p99 },
    Column { head: "max", drawn: false, of: |o| o.latency.max },
    Column { head: "CPU s/GB", drawn: false, of: |o| o.cpu_seconds / (o.blocks as f64 * 1.468e-6) },
];
const CAPTION: &str = "Medians, blocks of 1,468 bytes in lock-step. tc: one client, its own time in it; p50, p99 \
     and max in us. XDP: live frames on one core";

pub(super) fn limit(world: &World, effort: &Effort<'_>) -> Result<Report> {
    let (cpus, note) = cpus()?;
    // Zeros, with which the kernel fills a growing frame, so that the client's comparison succeeds; the same for both.
    let content = vec![0; FILE_LEN];
    let root = serve(world, &content)?;
    let mut by_tc = [
        Measured { name: OURS, what: Server::Bridgehead.start(world, &root, effort.fast_path)? },
        Measured { name: LIMIT, what: bounce(BLKSIZE)? },
    ];
    let mut samples = Samples::new("limit", COLUMNS);
    samples.measure(&[Hook::Tc], effort.pairs, &mut by_tc, |side, _, _| {
        Some(
            measure(&side.what, &ALONE, &content, effort.duration, &cpus)
                .map(|outcome| Outcome { load: outcome.load.into(), kernel_percent: outcome.kernel_percent }),
        )
    })?;
    let mut live = Live::new()?;
    let mut by_xdp =
        [Measured { name: OURS, what: Program::Bridgehead }, Measured { name: LIMIT, what: Program::Limit }];
    samples.measure(&[Hook::Xdp], effort.pairs, &mut by_xdp, |side, _, _| {
        let run = live.run(side.what, effort.duration, &cpus);
        let load = run.map(|(blocks, seconds)| Load {
            seconds,
            blocks,
            // The core does nothing else.
            cpu_seconds: seconds,
            // There is no client whose latency could be measured.
            latency: Latency { p50: f64::NAN, p99: f64::NAN, max: f64::NAN },
        });
        Some(load.map(|load| Outcome { load, kernel_percent: None }))
    })?;
    let goals = vec![
        Goal::new(
            "tc, one client, lock-step: our time per block over the limit's",
            samples.ratio(&Hook::Tc, OURS, LIMIT, time),
            Bound::AtMost(1.25),
        ),
        Goal::new(
            "XDP alone, one core, blocks/s (this, or the next)",
            samples.median(&Hook::Xdp, OURS, rate),
            Bound::AtLeast(3e6),
        ),
        Goal::new(
            "XDP alone, one core, blocks/s over the limit's",
            samples.ratio(&Hook::Xdp, OURS, LIMIT, rate),
            Bound::AtLeast(0.7),
        ),
    ];
    let tables = vec![samples.table(CAPTION, &[Hook::Tc, Hook::Xdp], &[OURS, LIMIT])];
    Ok(Report { name: "limit", tables, goals, notes: note.into_iter().collect() })
}

/// One of the two sides.
struct Measured<T> {
    name: &'static str,
    what: T,
}

impl<T> Contender for Measured<T> {
    fn name(&self) -> &'static str {
        self.name
    }
}

fn rate(load: &Load) -> f64 {
    load.blocks as f64 / load.seconds
}

/// Nanoseconds a block.
fn time(load: &Load) -> f64 {
    load.seconds * 1e9 / load.blocks as f64
}

impl From<load::Outcome> for Load {
    fn from(load: load::Outcome) -> Self {
        let load::Outcome { seconds, blocks, cpu_seconds, latency, .. } = load;
        Self { seconds, blocks, cpu_seconds, latency }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tc => "tc",
            Self::Xdp => "XDP",
        })
    }
}

/// The port on which the bouncing programs answer.
pub(super) const PORT: u16 = 6969;

/// The object with the bouncing programs, set up for a file of `len` bytes and this block size.
pub(super) fn object(len: usize, blksize: u16) -> Result<Ebpf> {
    let last = u16::try_from(len / usize::from(blksize) + 1).context("block numbers don't wrap here")?;
    let last_len = (len % usize::from(blksize)) as u16;
    let path = ::lab::target().join("bpf/limit");
    let mut loader = EbpfLoader::new();
    loader.override_global("PORT", &PORT, true).override_global("BLKSIZE", &blksize, true);
    loader.override_global("LAST", &last, true).override_global("LAST_LEN", &last_len, true);
    loader.load_file(&path).with_context(|| format!("loading {}", path.display()))
}

/// A TFTP server for one file of zeros: requests are granted here, and the program does everything else.
pub(super) fn bounce(blksize: u16) -> Result<Wire> {
    let address = Ipv4Addr::new(10, 79, 0, 1);
    let host = Host::new("bounce", 200)?;
    net::bridge("limit", &format!("{address}/24"))?;
    net::plug(&host.port(), "limit")?;
    host.address("10.79.0.50/24")?;
    let mut ebpf = object(FILE_LEN, blksize)?;
    let program: &mut SchedClassifier = ebpf.program_mut("limit_tc").context("limit_tc")?.try_into()?;
    program.load()?;
    program.attach(&host.port(), TcAttachType::Ingress)?;
    let requests = UdpSocket::bind((address, 69))?;
    let transfers = UdpSocket::bind((address, PORT))?;
    // The thread ends with the process.
    thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((_, client)) = requests.recv_from(&mut buf) {
            let options = format!("\0\x06blksize\0{blksize}\0");
            if transfers.send_to(options.as_bytes(), client).is_err() {
                break;
            }
        }
    });
    Ok(Wire { address, host, running: Box::new(ebpf) })
}
