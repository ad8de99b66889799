//! Virtual machines with real, unmodified firmware: iPXE's ROM under a legacy BIOS, and EDK2's own PXE.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::process::{Process, last_lines};
use crate::world::World;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The firmware of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS and the iPXE ROM of QEMU's virtio-net.
    Bios,
    /// OVMF with EDK2's PXE.
    Uefi,
}

impl Firmware {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        }
    }
}

/// A machine's description, whether it is on or off.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub mac: String,
    pub uuid: String,
    pub firmware: Firmware,
    pub memory_mib: u32,
    /// A reservation in the appliance's configuration.
    pub address: Option<Ipv4Addr>,
    /// The tap that is its network cable.
    pub tap: String,
    pub disks: Vec<Disk>,
    /// Its system's serial number in SMBIOS.
    pub serial: Option<String>,
}

/// A disk in a machine.
#[derive(Clone, Debug)]
pub struct Disk {
    pub serial: String,
    /// A raw image with the disk's contents.
    pub image: PathBuf,
}

impl Disk {
    /// A disk of zeros.
    pub fn blank(world: &World, serial: &str, mib: u64) -> Result<Self> {
        let image = world.path(format!("{serial}.disk"));
        fs::File::create(&image)?.set_len(mib << 20)?;
        Ok(Self { serial: serial.into(), image })
    }
}

impl Spec {
    /// The lab's machine number `n`, from 1. Machines are BIOS and UEFI in turn, unless
    /// `BRIDGEHEAD_LAB_FIRMWARE` sets all of them.
    pub fn numbered(n: u8) -> Self {
        let firmware = match std::env::var("BRIDGEHEAD_LAB_FIRMWARE").as_deref() {
            Ok("bios") => Firmware::Bios,
            Ok("uefi") => Firmware::Uefi,
            Ok(other) => panic!("BRIDGEHEAD_LAB_FIRMWARE={other}: bios or uefi"),
            Err(_) if n % 2 == 1 => Firmware::Bios,
            Err(_) => Firmware::Uefi,
        };
        Self {
            name: format!("n{n}"),
            mac: format!("52:54:00:77:00:{n:02x}"),
            uuid: format!("77000000-0000-4000-8000-0000000000{n:02x}"),
            firmware,
            // UEFI, GRUB and Linux need 320 MiB; see docs/booting.md.
            memory_mib: 512,
            address: None,
            tap: format!("tap{n}"),
            disks: Vec::new(),
            serial: None,
        }
    }

    /// Where its serial console is logged.
    pub fn console(&self, world: &World) -> PathBuf {
        world.path(format!("{}.console", self.name))
    }

    /// What powers it on: QEMU, with the machine in its arguments, for who starts it by himself.
    pub fn qemu(&self, world: &World, capture: Option<&Path>) -> Result<Command> {
        let console = self.console(world);
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-name", &self.name, "-uuid", &self.uuid]);
        qemu.args(["-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", &self.memory_mib.to_string()]);
        if let Some(serial) = &self.serial {
            qemu.args(["-smbios", &format!("type=1,serial={serial}")]);
        }
        qemu.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        let mut netdev = format!("tap,id=n0,ifname={},script=no,downscript=no", self.tap);
        if let Some(path) = capture {
            // Otherwise filter-dump writes virtio-net's header, of changing length, before each frame.
            netdev += ",vnet_hdr=off";
            qemu.args(["-object", &format!("filter-dump,id=dump,netdev=n0,file={}", path.display())]);
            qemu.args(["-rtc", "base=2000-01-01T00:00:00,clock=vm"]);
        }
        qemu.args(["-netdev", &netdev]);
        for (n, Disk { serial, image }) in self.disks.iter().enumerate() {
            qemu.args(["-drive", &format!("if=none,id=disk{n},format=raw,file={}", image.display())]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{n},serial={serial}")]);
        }
        let card = format!("netdev=n0,mac={},bootindex=1", self.mac);
        match self.firmware {
            Firmware::Bios => {
                qemu.args(["-machine", "q35,graphics=off", "-boot", "order=n"]);
                qemu.args(["-device", &format!("virtio-net-pci,{card}")]);
            }
            Firmware::Uefi => {
                // UEFI variables are written to, so every boot begins with fresh ones.
                let vars = world.path(format!("{}.vars.fd", self.name));
                fs::copy(OVMF_VARS, &vars).with_context(|| format!("{OVMF_VARS}: is ovmf installed?"))?;
                let pflash = "if=pflash,format=raw";
                qemu.args(["-machine", "q35", "-drive", &format!("{pflash},readonly=on,file={OVMF_CODE}")]);
                qemu.args(["-drive", &format!("{pflash},file={}", vars.display())]);
                // Without romfile= QEMU's iPXE ROM takes the place of EDK2's PXE.
                qemu.args(["-device", &format!("virtio-net-pci,romfile=,{card}")]);
            }
        }
        Ok(qemu)
    }
}

/// A machine that is on. Dropping it powers it off.
pub struct Machine {
    pub spec: Spec,
    pub powered_on: Timestamp,
    console: PathBuf,
    qemu: Process,
}

impl Machine {
    /// Powers a machine on. With `capture`, QEMU writes every frame of its card to that file, with times
    /// counted from power-on (see [`CAPTURE_EPOCH`]).
    pub fn power_on(world: &World, spec: Spec, capture: Option<&Path>) -> Result<Self> {
        let console = spec.console(world);
        let mut qemu = spec.qemu(world, capture)?;
        // After several power-ons, an old boot's console must not be shown.
        let _ = fs::remove_file(&console);
        let powered_on = Timestamp::now();
        let log = world.path(format!("{}.qemu.log", spec.name));
        let qemu = Process::start(&mut qemu, &log).context("is qemu-system-x86 installed?")?;
        Ok(Self { spec, powered_on, console, qemu })
    }

    /// The serial console's log.
    pub fn console(&self) -> &Path {
        &self.console
    }

    pub fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The end of the console, for a message about a boot that failed.
    pub fn console_tail(&self) -> String {
        last_lines(&self.console, 15)
    }

    /// An error if the machine went off by itself (-no-reboot: a reset is a power-off).
    pub fn ensure_running(&mut self) -> Result<()> {
        self.qemu.ensure_running()
    }
}

/// The second that a capture of [`Machine::power_on`] counts as power-on: 2000-01-01.
///
/// QEMU 7.2's filter-dump adds the virtual clock, which is 0 at power-on, to the second that the machine's
/// real-time clock starts at (net/dump.c), so the clock's start is given.
pub const CAPTURE_EPOCH: f64 = 946_684_800.0;
