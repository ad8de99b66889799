//! A daemon that is killed in the virtual machine: there, too, the kernel's part continues, and the next daemon takes
//! over.

use anyhow::{Context as _, Result, ensure};
use lab::appliance::ADDRESS;
use lab::clients::Dhcp;
use lab::guest::{Card, Guest, Inside, Options, Suite};
use lab::net::Host;
use lab::reader::Reader;
use lab::world::World;

use crate::row::{BLKSIZE, BLOCKS, WINDOW, content, host, start};

/// Our directories on the bpffs. The kernel's own entries end with .debug.
const PINNED: &str = "ls /sys/fs/bpf | grep -v debug || true";

/// Two transfers, lock-step and with windows, that last from before the kill to after the next start.
pub(crate) fn transfers_go_on(world: &World, suite: Suite, mode: &str) -> Result<()> {
    let guest = Guest::boot(world, &Options::new(suite, Card::VIRTIO)?)?;
    let inside = start(&guest, mode)?;
    let host = with_lease(world)?;
    let before = inside.status()?;
    let mut readers = [begin(&host, 1)?, begin(&host, WINDOW)?];
    let mut until = |blocks| readers.iter_mut().try_for_each(|reader| reader.until(blocks));
    until(BLOCKS / 4)?;
    inside.crash()?;
    ensure!(!guest.text(PINNED)?.is_empty(), "nothing is pinned");
    // Only the kernel answers now.
    until(BLOCKS / 2).context("without a daemon")?;
    let inside = Inside::again(&guest)?;
    until(usize::MAX).context("with the next daemon")?;
    for reader in &readers {
        ensure!(reader.bytes == content(), "{} bytes, not the same", reader.bytes.len());
    }
    // The kernel's counters are pinned, too; the daemon's own start at zero.
    let after = inside.status()?;
    let answered: u64 =
        ["kernel.xdp.replies", "kernel.tc.replies"].map(|n| after.count(n) - before.count(n)).iter().sum();
    let wanted = (BLOCKS + BLOCKS / WINDOW) as u64;
    ensure!(answered >= wanted, "the kernel answered {answered} ACKs of {wanted}");
    // Nobody requests more while the next daemon starts: it retransmits only what was sent last.
    let repeated = after.count("tftp.bytes-by-daemon");
    ensure!(repeated < content().len() as u64 / 10, "the daemon sent {repeated} bytes");
    let again = Dhcp::Udhcpc.lease(world, &host)?;
    println!("{suite:?} {mode}: {answered} ACKs answered by the kernel, {again} kept");
    inside.stop()?;
    let left = guest.text(PINNED)?;
    ensure!(left.is_empty(), "something is left pinned after SIGTERM: {left}");
    Ok(())
}

/// The next daemon finds maps with an unknown layout.
pub(crate) fn another_layout_is_replaced(world: &World, suite: Suite, mode: &str) -> Result<()> {
    let guest = Guest::boot(world, &Options::new(suite, Card::VIRTIO)?)?;
    let inside = start(&guest, mode)?;
    let host = with_lease(world)?;
    let mut reader = begin(&host, 1)?;
    reader.until(BLOCKS / 4)?;
    inside.crash()?;
    const LAYOUTS: &str = "cd /sys/fs/bpf/*/ && ls | grep '^v'";
    let now = guest.text(LAYOUTS)?;
    guest.text(&format!("cd /sys/fs/bpf/*/ && mv {} v0", now.trim()))?;
    let inside = Inside::again(&guest)?;
    ensure!(guest.text(LAYOUTS)? == now, "{:?}, not {now:?}", guest.text(LAYOUTS)?);
    let before = inside.status()?;
    let mut reader = begin(&host, 1)?;
    reader.rest()?;
    ensure!(reader.bytes == content(), "{} bytes, not the same", reader.bytes.len());
    let after = inside.status()?;
    let answered: u64 =
        ["kernel.xdp.replies", "kernel.tc.replies"].map(|n| after.count(n) - before.count(n)).iter().sum();
    ensure!(answered >= BLOCKS as u64, "{answered} of {BLOCKS} blocks on the new maps");
    inside.stop()?;
    let left = guest.text(PINNED)?;
    ensure!(left.is_empty(), "something is left pinned after SIGTERM: {left}");
    Ok(())
}

fn with_lease(world: &World) -> Result<Host> {
    let host = host("a", 1)?;
    let address = Dhcp::Udhcpc.lease(world, &host)?;
    host.address(&format!("{address}/24"))?;
    Ok(host)
}

fn begin(host: &Host, window: usize) -> Result<Reader> {
    Reader::begin(host, ADDRESS, "file", BLKSIZE.into(), window)
}
