//! `cargo xtask bench storm`: `bridgehead storm` powers on a rack at once, against the appliance and against dnsmasq
//! with the same files; and the time that the same bytes take from a program that only bounces frames.

use std::any::Any;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ::lab::appliance::{ADDRESS, Appliance, BRIDGE, program};
use ::lab::dnsmasq::Dnsmasq;
use ::lab::load::{Numbers, tftp};
use ::lab::net::Host;
use ::lab::world::World;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::dhcp_servers::{inside, lay_wire};
use super::report::{Bound, Goal, Report};
use super::samples::{Column, Contender, OURS, Outcome, Samples, with_kernel_percent};
use super::tftp::{Cell as Clients, FILE_LEN, measure, serve};
use super::{Effort, cpus, limit};

const DNSMASQ: &str = "dnsmasq";
/// Of kernel and initrd together.
const MIB: usize = 24;
/// GRUB's block size, with which most bytes are sent.
const GRUBS_BLKSIZE: u16 = 1024;

/// One group of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cell {
    nodes: u32,
    /// Percent of the frames, in each direction.
    loss: f64,
}

/// The result of one `bridgehead storm --json`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Storm {
    seconds: f64,
    booted: f64,
    failed: f64,
    /// Packets that machines retransmitted without simulated loss.
    server_retries: f64,
    /// Seconds from power-on to the initrd, of the machines that reached it.
    p50: f64,
    p99: f64,
    bytes: f64,
    /// CPU seconds of the whole host, and of the simulator's own code.
    host_cpu: f64,
    simulator_cpu: f64,
}

const COLUMNS: &[Column<Storm>] = &[
    Column { head: "seconds", drawn: true, of: |s| s.seconds },
    Column { head: "booted", drawn: true, of: |s| s.booted },
    Column { head: "failed", drawn: false, of: |s| s.failed },
    Column { head: "late", drawn: false, of: |s| s.server_retries },
    Column { head: "p50", drawn: false, of: |s| s.p50 },
    Column { head: "p99", drawn: false, of: |s| s.p99 },
    Column { head: "MB/s", drawn: false, of: |s| s.bytes / s.seconds / 1e6 },
    Column { head: "CPU s", drawn: false, of: |s| s.host_cpu },
    Column { head: "of it sim.", drawn: false, of: |s| s.simulator_cpu },
];
const CAPTION: &str = "Medians. A mix of UEFI, BIOS and iPXE machines, all powered on at once, 24 MiB of kernel and \
     initrd each; seconds until the last one has them; late: packets sent again for no simulated loss; CPU \
     seconds of the whole host, and of them the simulator's own code";

pub(super) fn storm(world: &World, effort: &Effort<'_>, quick: bool) -> Result<Report> {
    let (cpus, note) = cpus()?;
    let content = vec![0; FILE_LEN];
    serve(world, &content)?;
    let bounce = limit::bounce(GRUBS_BLKSIZE)?;
    let mut sites = [Site::bridgehead(world, effort.fast_path)?, Site::dnsmasq(world)?];
    let nodes = if quick { 100 } else { 1000 };
    let cells = [0.0, 2.0].map(|loss| Cell { nodes, loss });
    let cells = if quick { &cells[..1] } else { &cells };
    let mut samples = Samples::new("storm", COLUMNS);
    samples.measure(cells, effort.pairs, &mut sites, |site, cell, _| Some(site.run(cell)))?;

    let clients = Clients { clients: 64, blksize: GRUBS_BLKSIZE, window: 1, loss: 0.0 };
    let bounced: tftp::Outcome = measure(&bounce, &clients, &content, effort.duration, &cpus)?.load;
    let limit = bounced.bytes as f64 / bounced.seconds;
    let calm = cells[0];
    let ours = |of| samples.median(&calm, OURS, of);
    let at_limit =
        ours(|s| s.seconds).zip(ours(|s| s.bytes)).map(|(seconds, bytes)| seconds / (bytes / limit));
    let mut goals = vec![Goal::new(
        &format!("{calm}: our time over that of the same bytes from a program that only bounces"),
        at_limit,
        Bound::AtMost(1.25),
    )];
    for cell in cells {
        goals.push(Goal::new(
            &format!("{cell}: machines that did not boot from ours"),
            samples.median(cell, OURS, |s| s.failed),
            Bound::AtMost(0.0),
        ));
    }
    goals.push(Goal::new(
        &format!("{calm}: packets that ours made machines send again"),
        ours(|s| s.server_retries),
        Bound::AtMost(0.0),
    ));
    let tables = vec![samples.table(CAPTION, cells, &[OURS, DNSMASQ])];
    Ok(Report { name: "storm", tables, goals, notes: note.into_iter().collect() })
}

/// A server, and the host whose card all simulated machines share.
struct Site {
    name: &'static str,
    host: Host,
    server: Box<dyn Any>,
}

impl Contender for Site {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Site {
    fn bridgehead(world: &World, fast_path: &str) -> Result<Self> {
        let host = Host::new("rack1", 1)?;
        write_files(&world.path("files"))?;
        let config = format!(
            r#"state-dir = {state:?}
[network]
bridge    = "{BRIDGE}"
address   = "{ADDRESS}/18"
ports     = [{port:?}]
fast-path = "{fast_path}"
[dhcp]
range = ["10.77.1.0", "10.77.63.0"]
[files]
root = {files:?}
[default]
profile = "storm"
[[profile]]
name   = "storm"
kernel = "/kernel"
initrd = "/initrd"
"#,
            state = world.path("state"),
            port = host.port(),
            files = world.path("files"),
        );
        let server = Box::new(Appliance::start(world, &config)?);
        Ok(Self { name: OURS, host, server })
    }

    /// In its usual configuration, but with room for all machines.
    fn dnsmasq(world: &World) -> Result<Self> {
        let host = Host::new("rack2", 2)?;
        let root = world.path("tftp");
        write_files(&root)?;
        let grub = root.join("grub");
        fs::create_dir_all(&grub)?;
        for loader in ["i386-pc.0", "x86_64-efi.efi"] {
            fs::copy(::lab::assets().join("grub").join(loader), grub.join(loader))?;
        }
        let config = grub.join("grub.cfg");
        fs::write(&config, "linux /kernel\ninitrd /initrd\nboot\n")?;
        // A simulated GRUB requests the file with its MAC in the name: for 1,000 machines, and those that boot first.
        for number in (0..1000).chain(0xff_ff00..0xff_ff03) {
            let [_, b, c, d] = u32::to_be_bytes(number);
            let own = grub.join(format!("grub.cfg-01-02-73-74-{b:02x}-{c:02x}-{d:02x}"));
            fs::hard_link(&config, own)?;
        }
        // The appliance holds port 67 of every address outside.
        lay_wire("room", "peer", "10.78.0.1/18", &[host.port()])?;
        let arguments = [
            "--interface=peer",
            "--dhcp-range=10.78.1.0,10.78.63.0,1h",
            "--dhcp-lease-max=20000",
            "--dhcp-authoritative",
            "--no-ping",
            "--dhcp-match=set:efi64,option:client-arch,7",
            "--dhcp-boot=grub/i386-pc.0",
            "--dhcp-boot=tag:efi64,grub/x86_64-efi.efi",
            "--enable-tftp",
            "--tftp-max=5000",
            "--quiet-tftp",
            "--quiet-dhcp",
            &format!("--tftp-root={}", root.display()),
        ]
        .map(str::to_owned);
        let server = Dnsmasq::start(
            inside("room", &Command::new("dnsmasq")),
            &arguments,
            &world.path("storm-dnsmasq.log"),
        )?;
        Ok(Self { name: DNSMASQ, host, server: Box::new(server) })
    }

    fn run(&self, cell: &Cell) -> Result<Outcome<Storm>> {
        with_kernel_percent(&*self.server, &["reply-bytes"], |s: &Storm| s.bytes as u64, || self.storm(cell))
    }

    fn storm(&self, cell: &Cell) -> Result<Storm> {
        let mut command = self.host.command(program()?.to_str().context("a path in UTF-8")?);
        command.args(["storm", "--json", "--yes", "--interface", "eth0"]);
        command.args(["--nodes", &cell.nodes.to_string(), "--loss", &format!("{}%", cell.loss)]);
        let output = command.stderr(Stdio::piped()).output()?;
        let Ok(said) = serde_json::from_slice::<Value>(&output.stdout) else {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
        };
        read(&said).with_context(|| format!("in what the storm said: {said:#}"))
    }
}

fn read(said: &Value) -> Result<Storm> {
    let number = |value: &Value| value.as_f64();
    let stages = said["stages"].as_array().context("stages")?;
    let at = stages.iter().find(|s| s["stage"] == "initrd").map_or(&Value::Null, |s| &s["at"]);
    let cpu = &said["cpu"];
    Ok(Storm {
        seconds: number(&said["seconds"]).context("seconds")?,
        booted: number(&said["booted"]).context("booted")?,
        failed: number(&said["failed"]).context("failed")?
            + number(&said["unfinished"]).context("unfinished")?,
        server_retries: number(&said["retries"]["server"]).context("retries")?,
        p50: number(&at["p50"]).unwrap_or(f64::NAN),
        p99: number(&at["p99"]).unwrap_or(f64::NAN),
        bytes: number(&said["bytes"]).context("bytes")?,
        host_cpu: number(&cpu["host"]).context("CPU")?,
        simulator_cpu: number(&cpu["simulator-user"]).context("CPU")?,
    })
}

/// Writes a kernel and an initrd of typical sizes.
fn write_files(root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for (name, mib) in [("kernel", 8), ("initrd", MIB - 8)] {
        fs::write(root.join(name), Numbers::new(mib as u64).bytes(mib << 20))?;
    }
    Ok(())
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} machines", self.nodes)?;
        if self.loss > 0.0 { write!(f, ", {} % loss", self.loss) } else { Ok(()) }
    }
}
