//! What is tested on a kernel with a card: from outside, by what hosts on the cable receive.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Places, base};
use lab::clients::{Dhcp, Fetch};
use lab::guest::appliance::{FILES, PORT, STATE, Status};
use lab::guest::{Guest, Inside, LAN, Options};
use lab::net::{self, Host};
use lab::process::wait_for;
use lab::reader::Reader;
use lab::world::World;

use crate::matrix::Row;
use crate::wire::{self, Capture};

pub(crate) const PROGRAMS: [&str; 9] =
    ["ip", "qemu-system-x86_64", "modprobe", "cpio", "find", "strip", "xz", "curl", "udhcpc"];

pub(crate) const BLKSIZE: u16 = 1468;
/// More than 16 KiB: the daemon itself sends smaller files.
pub(crate) const BLOCKS: usize = 700;
pub(crate) const WINDOW: usize = 8;

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Xdp,
    Tc,
    Daemon,
}

/// Answers by origin, during one exchange.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    pub(crate) xdp: u64,
    pub(crate) tc: u64,
    /// DATA in bytes, or DHCP messages.
    pub(crate) daemon: u64,
}

impl Answers {
    /// Whether only this one answered.
    pub(crate) fn only(&self, by: By) -> bool {
        let others = match by {
            By::Xdp => [self.tc, self.daemon],
            By::Tc => [self.xdp, self.daemon],
            By::Daemon => [self.xdp, self.tc],
        };
        others == [0, 0] && self.xdp + self.tc + self.daemon > 0
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = [("xdp", self.xdp), ("tc", self.tc), ("daemon", self.daemon)];
        let words: Vec<_> =
            answered.iter().filter(|(_, n)| *n > 0).map(|(by, n)| format!("{by} {n}")).collect();
        f.write_str(&if words.is_empty() { "nobody".to_owned() } else { words.join(", ") })
    }
}

/// The results of a row.
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) tier: String,
    /// Why the port has no better tier, with the kernel's message.
    pub(crate) reason: String,
    /// The instructions that the verifier processed for each program.
    pub(crate) instructions: Vec<(String, u64)>,
    pub(crate) lease: Answers,
    pub(crate) lock_step: Answers,
    pub(crate) windows: Answers,
}

/// Programs, a lease, a lock-step transfer and one with windows.
pub(crate) fn briefly(world: &World, row: &Row) -> Result<Report> {
    let guest = Guest::boot(world, &Options::new(row.suite, row.card)?)?;
    let inside = start(&guest, row.mode)?;
    let host = host("a", 1)?;
    let report = answers(world, row, &inside, &guest, &host)?;
    inside.stop()?;
    Ok(report)
}

/// The same, and everything else that clients can do; every frame that they receive is checked.
pub(crate) fn wholly(world: &World, row: &Row) -> Result<Report> {
    let mut options = Options::new(row.suite, row.card)?;
    options.vnet_hdr = row.vnet_hdr();
    let guest = Guest::boot(world, &options)?;
    let inside = start(&guest, row.mode)?;
    let host = host("a", 1)?;
    let capture = Capture::start(world, &host)?;
    let report = answers(world, row, &inside, &guest, &host).and_then(|report| {
        let address = net::ip(["-n", "a", "-4", "-brief", "address", "show", "eth0"])?;
        let address = address.split_whitespace().nth(2).and_then(|a| a.split('/').next());
        wire::other_traffic(world, &guest, &host, address.context("the host has an address")?)
            .context("other traffic")?;
        Ok(report)
    });
    let report = report.with_context(|| format!("the daemon's log ends with:\n{}", why(&inside)))?;
    capture.stop()?.checksums_are_right()?;
    wire::tags_are_kept_apart(world, &wire::second(2)?).context("with a VLAN tag")?;
    inside.stop()?;
    Ok(report)
}

/// Starts the daemon with a file that has [`BLOCKS`] blocks.
pub(crate) fn start<'g>(guest: &'g Guest, mode: &str) -> Result<Inside<'g>> {
    guest.write(&format!("{FILES}/file"), &content())?;
    let places = Places { state: STATE.into(), files: FILES.into() };
    Inside::start(guest, &base(&places, &[PORT.to_owned()], mode, "address-only"))
}

pub(crate) fn content() -> Vec<u8> {
    (0..BLOCKS * usize::from(BLKSIZE) - 7).map(|i| (i.wrapping_mul(131) ^ (i >> 9)) as u8).collect()
}

/// A host on the cable.
pub(crate) fn host(name: &str, number: u8) -> Result<Host> {
    let host = Host::new(name, number)?;
    net::plug(&host.port(), LAN)?;
    Ok(host)
}

/// A lease and both kinds of transfer by a host, and who answered each. Afterwards the host has its address.
pub(crate) fn answers(
    world: &World,
    row: &Row,
    inside: &Inside<'_>,
    guest: &Guest,
    host: &Host,
) -> Result<Report> {
    let status = inside.status()?;
    let instructions = programs(&status).with_context(|| format!("{}\n{}", status.0, why(inside)))?;
    // An unknown machine's DISCOVER is answered by the daemon. From then on the kernel knows the machine.
    let address = Dhcp::Udhcpc.lease(world, host)?;
    let before = inside.status()?;
    let again = Dhcp::Udhcpc.lease(world, host)?;
    ensure!(again == address, "the machine holds {address}, and was given {again}");
    let lease = dhcp(&before, &inside.status()?);
    host.address(&format!("{address}/24"))?;

    let before = inside.status()?;
    let got = Fetch::CurlTftp(BLKSIZE).fetch(world, host, ADDRESS, "file")?;
    ensure!(got == content(), "lock-step: {} bytes, not the same", got.len());
    let between = inside.status()?;
    let mut reader = Reader::begin(host, ADDRESS, "file", BLKSIZE.into(), WINDOW)?;
    reader.rest()?;
    ensure!(reader.bytes == content(), "in windows: {} bytes, not the same", reader.bytes.len());
    let (lock_step, windows) = (tftp(&before, &between), tftp(&between, &inside.status()?));
    ensure!(
        lock_step.daemon > 0 || lock_step.xdp + lock_step.tc >= BLOCKS as u64,
        "{lock_step} of {BLOCKS} blocks"
    );
    // The appliance, too, learns only from incoming frames what a driver does with its programs: it looks every few
    // seconds.
    let settled = wait_for(Duration::from_secs(30), || {
        let status = inside.status()?;
        Ok((status.tier().0 == row.tier).then_some(status))
    });
    let status = settled.or_else(|_| inside.status())?;
    let (tier, reason) = status.tier();
    Ok(Report {
        kernel: guest.kernel(),
        tier: tier.to_owned(),
        reason: reason.to_owned(),
        instructions,
        lease,
        lock_step,
        windows,
    })
}

/// The instructions that the verifier processed for each program. None may be rejected.
fn programs(status: &Status) -> Result<Vec<(String, u64)>> {
    let mut instructions = Vec::new();
    for program in status.0["fast-path"]["programs"].as_array().into_iter().flatten() {
        let name = program["name"].as_str().context("a program has a name")?.to_owned();
        match program["state"].as_str() {
            Some("loaded") => {
                let followed = program["instructions"].as_u64();
                instructions.push((name, followed.context("a loaded program without its instructions")?));
            }
            Some("not-needed") => {}
            state => anyhow::bail!("{name} is {state:?}: {program:#}"),
        }
    }
    Ok(instructions)
}

/// The end of the daemon's log, for error messages.
fn why(inside: &Inside<'_>) -> String {
    inside.log().unwrap_or_else(|e| format!("{e:#}"))
}

fn between(before: &Status, after: &Status, name: &str) -> u64 {
    after.count(name).saturating_sub(before.count(name))
}

fn dhcp(before: &Status, after: &Status) -> Answers {
    let count = |name: &str| between(before, after, name);
    let daemon = count("dhcp.discovers") + count("dhcp.requests");
    let kernel =
        |hook| count(&format!("kernel.{hook}.dhcp-offers")) + count(&format!("kernel.{hook}.dhcp-acks"));
    Answers { xdp: kernel("xdp"), tc: kernel("tc"), daemon }
}

fn tftp(before: &Status, after: &Status) -> Answers {
    let count = |name| between(before, after, name);
    Answers {
        xdp: count("kernel.xdp.replies"),
        tc: count("kernel.tc.replies"),
        daemon: count("tftp.bytes-by-daemon"),
    }
}
