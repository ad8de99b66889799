//! A virtual machine for the appliance: a kernel of Debian's under QEMU's software emulation, with its card on the lab's
//! wire.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::agent::{Agent, Output};
use super::card::Card;
use super::initramfs::Initramfs;
use super::kernel::Suite;
use crate::net;
use crate::process::{Process, last_lines};
use crate::world::World;

/// The bridge on this side of the cable, to which hosts and machines are connected.
pub const LAN: &str = "lan";
/// The card's address.
pub const MAC: &str = "52:54:00:77:01:01";
/// This side's end of the cable.
const TAP: &str = "guest0";

/// How long a machine may take to boot: on one of two processors it is six seconds.
const BOOT: Duration = Duration::from_secs(120);
/// How long a script may take by default.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine's options.
#[derive(Clone, Debug)]
pub struct Options {
    pub suite: Suite,
    pub card: Card,
    pub memory_mib: u32,
    /// Programs, which get their C libraries, and their names in the machine.
    pub programs: Vec<(PathBuf, String)>,
    /// Files and directories, and their paths in the machine.
    pub files: Vec<(PathBuf, String)>,
    /// Card and cable pass each other a header with the remaining work on a frame (checksums, segmentation).
    pub vnet_hdr: bool,
}

impl Options {
    /// A machine with nothing but `bridgehead` in it.
    pub fn new(suite: Suite, card: Card) -> Result<Self> {
        let programs = vec![(crate::appliance::program()?, "bridgehead".to_owned())];
        Ok(Self { suite, card, memory_mib: 1024, programs, files: Vec::new(), vnet_hdr: true })
    }
}

/// A machine that is on, and answers. Dropping it powers it off.
pub struct Guest {
    agent: RefCell<Agent>,
    console: PathBuf,
    _qemu: Process,
    /// Dropped after QEMU, which holds the other end.
    _cable: Cable,
}

/// A tap that is a port of [`LAN`].
struct Cable;

impl Guest {
    /// Boots a machine and waits until its agent answers.
    pub fn boot(world: &World, options: &Options) -> Result<Self> {
        let archive = world.path("guest.initramfs");
        let initramfs = Initramfs::new(world.path("guest-root"), options.suite, options.card)?;
        for (program, name) in &options.programs {
            initramfs.program(program, name)?;
        }
        for (from, inside) in &options.files {
            initramfs.tree(from, inside.trim_start_matches('/'))?;
        }
        initramfs.pack(&archive)?;

        let cable = Cable::plug(options.card)?;
        let (channel, console) = (world.path("guest.agent"), world.path("guest.console"));
        let shell = world.path("guest.shell");
        for old in [&channel, &console, &shell] {
            let _ = std::fs::remove_file(old);
        }
        let listener = Agent::listen(&channel)?;
        let mut qemu = qemu(options);
        qemu.arg("-initrd").arg(&archive);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-serial").arg(format!("unix:{},server=on,wait=off", shell.display()));
        qemu.arg("-chardev").arg(format!("socket,id=agent,path={}", channel.display()));
        let qemu = Process::start(&mut qemu, &world.path("guest.qemu.log"))?;
        let agent = Agent::ready(&listener, BOOT)
            .with_context(|| format!("{}\n{}", qemu.last_lines(5), last_lines(&console, 15)))?;
        Ok(Self { agent: RefCell::new(agent), console, _qemu: qemu, _cable: cable })
    }

    /// The output of `uname -r`.
    pub fn kernel(&self) -> String {
        self.agent.borrow().kernel.clone()
    }

    /// Runs a shell script and returns its result.
    pub fn run(&self, script: &str) -> Result<Output> {
        self.run_for(PATIENCE, script)
    }

    /// Runs a shell script that may take this long.
    pub fn run_for(&self, patience: Duration, script: &str) -> Result<Output> {
        self.exchange(patience, script, b"")
    }

    /// Runs a shell script, which must succeed, and returns its stdout.
    pub fn text(&self, script: &str) -> Result<String> {
        self.run(script)?.text().with_context(|| format!("in the machine: {script}"))
    }

    /// Writes a file in the machine.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = format!("mkdir -p \"$(dirname '{path}')\" && cat >'{path}'");
        self.exchange(PATIENCE, &script, bytes)?.text()?;
        Ok(())
    }

    fn exchange(&self, patience: Duration, script: &str, stdin: &[u8]) -> Result<Output> {
        self.agent
            .borrow_mut()
            .run(script, stdin, patience)
            .with_context(|| format!("its console ends with:\n{}", last_lines(&self.console, 25)))
    }
}

/// QEMU with all arguments but those with paths in the world's directory.
fn qemu(options: &Options) -> Command {
    let Options { suite, card, memory_mib, vnet_hdr, .. } = options;
    let mut qemu = Command::new("qemu-system-x86_64");
    // A panic causes a reset (panic=-1), and a reset ends QEMU (-no-reboot), which closes the agent's channel.
    qemu.args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-display", "none"]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-smp", &card.processors().to_string(), "-m", &memory_mib.to_string()]);
    qemu.arg("-kernel").arg(suite.image());
    qemu.args(["-append", "console=ttyS0 no_timer_check quiet panic=-1"]);
    let queues = card.queues();
    let mut netdev = format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vhost=off");
    netdev += if *vnet_hdr { "" } else { ",vnet_hdr=off" };
    if queues > 1 {
        netdev += &format!(",queues={queues}");
    }
    qemu.args(["-netdev", &netdev, "-device", &card.device("n0", MAC)]);
    qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"]);
    qemu
}

impl Cable {
    fn plug(card: Card) -> Result<Self> {
        if net::index(LAN).is_err() {
            net::ip(["link", "add", LAN, "type", "bridge", "forward_delay", "0", "stp_state", "0"])?;
            net::ip(["link", "set", LAN, "up"])?;
        }
        let mut add = vec!["tuntap", "add", TAP, "mode", "tap"];
        if card.queues() > 1 {
            add.push("multi_queue");
        }
        net::ip(add)?;
        net::plug(TAP, LAN)?;
        net::ip(["link", "set", TAP, "up"])?;
        Ok(Self)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = net::ip(["link", "del", TAP]);
    }
}
