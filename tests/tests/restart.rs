//! A daemon that is killed: what is in the kernel keeps working, and the next daemon takes it over.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{ADDRESS, Appliance, address_only, program};
use lab::clients::Dhcp;
use lab::net::Host;
use lab::process::{PATIENCE, output, wait_for};
use lab::world::{self, World};
use serde_json::Value;

const BLKSIZE: usize = 1468;
const WINDOW: usize = 4;
const BLOCKS: usize = 2_000;

#[test]
fn transfers_go_on_while_the_daemon_is_dead_and_the_next_takes_them_over() {
    world::test(&["ip", "udhcpc"], |world| {
        let (appliance, host, config) = set_up(world)?;
        let before = fs::read(world.path("files/big"))?;
        let mut fetch = Fetch::begin(&host)?;
        fetch.until(BLOCKS / 4)?;
        let link = link_id()?;
        appliance.crash()?;
        // Only the kernel answers now.
        fetch.until(BLOCKS / 2)?;
        // The bytes are those from the transfer's beginning.
        fs::write(world.path("files/other"), vec![0; before.len()])?;
        fs::rename(world.path("files/other"), world.path("files/big"))?;
        let appliance = Appliance::start(world, &config)?;
        ensure!(link_id()? == link, "the same link with another program: no frame between them");
        fetch.until(BLOCKS / 2 + 100)?;
        fetch.lose_a_window()?;
        fetch.until(BLOCKS)?;
        ensure!(fetch.bytes == before, "{} bytes, not these {}", fetch.bytes.len(), before.len());

        let (_following, events) = appliance.follow(world)?;
        let kernel = loop {
            let event = events.recv_timeout(PATIENCE).context("the transfer's end")?;
            if event.stage == "kernel" {
                break event;
            }
        };
        ensure!(kernel.answered_by == "tc" && kernel.bytes == Some(before.len() as u64), "{kernel:?}");
        ensure!(kernel.duration > Some(1.0), "from the request on, not from the restart: {kernel:?}");
        ensure!(answers(&appliance)? == Some(BLOCKS.div_ceil(WINDOW) as u64), "counters go on");

        ensure!(pinned()? == 1, "the daemon's directory");
        appliance.stop()?;
        ensure!(pinned()? == 0, "something is left pinned after SIGTERM");
        Ok(())
    });
}

#[test]
fn what_a_killed_daemon_left_can_be_taken_off() {
    world::test(&["ip", "udhcpc"], |world| {
        let (appliance, host, _) = set_up(world)?;
        let mut fetch = Fetch::begin(&host)?;
        fetch.until(100)?;
        appliance.crash()?;
        fetch.until(200)?;
        let mut detach = Command::new(program()?);
        detach.args(["serve", "--detach-fast-path", "--config"]).arg(world.path("bridgehead.toml"));
        ensure!(detach.status()?.success());
        ensure!(pinned()? == 0, "something is left pinned");
        if lab::installed("bpftool") {
            // The kernel takes a program off some moments after its link's last name is gone.
            wait_for(PATIENCE, || {
                let attached = output(Command::new("bpftool").args(["net", "show"]))?;
                Ok((!attached.contains(&host.port())).then_some(()))
            })?;
        }
        // What was sent before is received, and nothing else. A program would answer as soon as the ACK is sent.
        fetch.socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        ensure!(fetch.until(300).is_err() && fetch.blocks <= 204, "a program still answers");
        Ok(())
    });
}

#[test]
fn maps_of_another_layout_are_replaced() {
    world::test(&["ip", "udhcpc"], |world| {
        let (appliance, host, config) = set_up(world)?;
        appliance.crash()?;
        let ours = fs::read_dir("/sys/fs/bpf")?.flatten().find(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let ours = ours.context("the daemon's directory")?.path();
        let version = |dir: &Path| -> Result<Vec<String>> {
            let names = fs::read_dir(dir)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            Ok(names.filter(|n| n != "links").collect())
        };
        let now = version(&ours)?;
        fs::rename(ours.join(&now[0]), ours.join("v0"))?;
        let appliance = Appliance::start(world, &config)?;
        ensure!(version(&ours)? == now, "{:?}", version(&ours)?);
        let mut fetch = Fetch::begin(&host)?;
        fetch.until(BLOCKS)?;
        ensure!(fetch.bytes == fs::read(world.path("files/big"))?);
        ensure!(answers(&appliance)? == Some(BLOCKS.div_ceil(WINDOW) as u64), "on the new maps");
        appliance.stop()?;
        ensure!(pinned()? == 0, "something is left pinned");
        Ok(())
    });
}

/// An appliance whose profile for the host names `files/big` as kernel, and its configuration.
fn set_up(world: &World) -> Result<(Appliance, Host, String)> {
    let host = Host::new("slow", 1)?;
    fs::create_dir_all(world.path("files"))?;
    let bytes: Vec<u8> = (0..BLOCKS * BLKSIZE - 7).map(|i| (i.wrapping_mul(131) ^ (i >> 9)) as u8).collect();
    fs::write(world.path("files/big"), bytes)?;
    let mut config = address_only(world, &[host.port()], "auto");
    config += &format!(
        "\n[[profile]]\nname = \"big\"\nkernel = \"big\"\n\n[[node]]\nname = \"slow\"\nmac = {:?}\nprofile = \"big\"\n",
        host.mac()
    );
    let appliance = Appliance::start(world, &config)?;
    let address = Dhcp::Udhcpc.lease(world, &host)?;
    host.address(&format!("{address}/24"))?;
    Ok((appliance, host, config))
}

/// Frames that tc answered, according to the status.
fn answers(appliance: &Appliance) -> Result<Option<u64>> {
    Ok(appliance.json(&["status"])?["counters"]["kernel.tc.replies"].as_u64())
}

/// The kernel's ID of the pinned link; `None` if it can't be read here.
fn link_id() -> Result<Option<u64>> {
    if !lab::installed("bpftool") {
        return Ok(None);
    }
    let ours = fs::read_dir("/sys/fs/bpf")?.flatten().find(|e| e.path().join("links").is_dir());
    let links = ours.context("the daemon's directory")?.path().join("links");
    let link = fs::read_dir(links)?.next().context("a pinned link")??.path();
    let shown = output(Command::new("bpftool").args(["--json", "link", "show", "pinned"]).arg(link))?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(Some(shown["id"].as_u64().with_context(|| format!("no id in {shown}"))?))
}

/// Number of directories on the bpffs, which is the world's own.
fn pinned() -> Result<usize> {
    let entries = fs::read_dir("/sys/fs/bpf")?.flatten();
    Ok(entries.filter(|e| !e.file_name().to_string_lossy().ends_with(".debug")).count())
}

/// A slow client.
struct Fetch {
    socket: UdpSocket,
    bytes: Vec<u8>,
    blocks: usize,
}

impl Fetch {
    fn begin(host: &Host) -> Result<Self> {
        let socket = host.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let request = format!("\0\x01big\0octet\0blksize\0{BLKSIZE}\0windowsize\0{WINDOW}\0");
        socket.send_to(request.as_bytes(), (ADDRESS, 69))?;
        let mut buf = [0; 2048];
        let (len, server) = socket.recv_from(&mut buf)?;
        ensure!(buf[..2] == [0, 6], "no OACK: {:?}", &buf[..len]);
        socket.connect(server)?;
        socket.send(&[0, 4, 0, 0])?;
        Ok(Self { socket, bytes: Vec::new(), blocks: 0 })
    }

    /// Receives the blocks up to this one, window by window.
    fn until(&mut self, block: usize) -> Result<()> {
        while self.blocks < block {
            self.window()?;
            std::thread::sleep(Duration::from_millis(3));
            self.socket.send(&[[0, 4], (self.blocks as u16).to_be_bytes()].concat())?;
        }
        Ok(())
    }

    /// Receives a window as if it were lost, and again when it is retransmitted.
    fn lose_a_window(&mut self) -> Result<()> {
        let (len, blocks) = (self.bytes.len(), self.blocks);
        self.window()?;
        let first = self.bytes.split_off(len);
        self.blocks = blocks;
        self.window()?;
        ensure!(self.bytes[len..] == first, "the repeat differs");
        self.socket.send(&[[0, 4], (self.blocks as u16).to_be_bytes()].concat())?;
        Ok(())
    }

    fn window(&mut self) -> Result<()> {
        let last = BLOCKS.min(self.blocks + WINDOW);
        let mut buf = [0; 2048];
        while self.blocks < last {
            let len = self.socket.recv(&mut buf).with_context(|| format!("after block {}", self.blocks))?;
            match (&buf[..2], usize::from(u16::from_be_bytes([buf[2], buf[3]]))) {
                ([0, 3], block) if block == self.blocks + 1 => {
                    self.bytes.extend_from_slice(&buf[4..len]);
                    self.blocks = block;
                }
                // A retransmission that crossed our ACK.
                ([0, 3], block) if block <= self.blocks => {}
                (_, block) => bail!("{:?} (block {block}) after block {}", &buf[..2], self.blocks),
            }
        }
        Ok(())
    }
}
