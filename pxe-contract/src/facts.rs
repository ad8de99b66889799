//! What a machine is made of, as its own firmware and kernel tell it: `POST /node/facts`.
//!
//! A node tells it in each boot, as soon as it knows its disks, and once more when it knows its neighbours. Nothing of it
//! is to be believed more than the node is: it is what the node says.
//!
//! Texts and lists have bounds, which the writing side keeps and the reading side enforces ([`Facts::bound`]). Sizes are
//! in bytes, speeds of links in Mbit/s, of memory in MT/s.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a text.
pub const TEXT_MAX: usize = 128;
/// Memory modules, and disks.
pub const LIST_MAX: usize = 128;
/// Network cards, and neighbours.
pub const NICS_MAX: usize = 64;
/// Bytes of a request's body: more than all lists with such texts take.
pub const BODY_MAX: usize = 512 * 1024;

/// The body. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Told<M> {
    /// Whose facts.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
    /// What it is made of.
    pub facts: Facts,
}

/// What is known of a machine. What is absent is not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Facts {
    /// The machine as its maker describes it.
    pub system: System,
    /// Its main board.
    pub board: Board,
    /// Its firmware, and how that started the kernel.
    pub firmware: Firmware,
    /// Its processors.
    pub cpu: Cpu,
    /// Its memory.
    pub memory: Memory,
    /// Its disks, by the kernel's name.
    pub disks: Vec<Disk>,
    /// Its network cards, by the kernel's name.
    pub nics: Vec<Nic>,
    /// What is at the other end of its links, by LLDP. `None`: it did not listen for a whole interval, and heard nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Vec<Neighbour>>,
    /// The version of its TPM, `1.2` or `2.0`; `None` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<String>,
}

/// SMBIOS, system information (DSP0134 section 7.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct System {
    /// The maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Of the chassis's label, mostly. Some makers leave their placeholder there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// As the kernel and dmidecode write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// SMBIOS, baseboard (DSP0134 section 7.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Board {
    /// The maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// SMBIOS, platform firmware (DSP0134 section 7.1), and how the kernel was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Firmware {
    /// The maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it was released, `MM/DD/YYYY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// How it started the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BootMode>,
    /// Whether Secure Boot is on. `None` with BIOS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
}

/// How a machine's firmware starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// A legacy BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// Processors, as the kernel sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Cpu {
    /// The first one's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Cores of all packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// What the kernel calls CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Memory {
    /// Bytes of all modules that SMBIOS lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed: Option<u64>,
    /// Bytes that the kernel can use: less than what is installed, and other with each kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable: Option<u64>,
    /// Slots, empty ones left out.
    pub modules: Vec<Module>,
}

/// A memory module (DSP0134 section 7.18).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Module {
    /// The slot's name on the board.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// In bytes.
    pub size: u64,
    /// What it runs at, else what it could, in MT/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
    /// The maker's number of its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Its own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Disk {
    /// The kernel's name, which changes with the order in which disks are found.
    pub name: String,
    /// What it says it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// In bytes.
    pub size: u64,
    /// Whether it turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// How it is connected: `nvme`, `sata`, `sas`, `usb`, `virtio`, `iscsi`, `scsi`, `mmc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// How much of its life is used up, in percent, as its maker reckons; more than 100 is possible. NVMe tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wear: Option<u8>,
}

/// A network card's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Nic {
    /// The kernel's name.
    pub name: String,
    /// Its present MAC address.
    pub mac: String,
    /// Its driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Whether it has a carrier. Only a link that is up can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<bool>,
    /// In Mbit/s, where it has a carrier and the driver knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
    /// Its place on the bus: `0000:01:00.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

/// What an LLDP frame says of its sender (IEEE 802.1AB).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Neighbour {
    /// The node's interface that heard it.
    pub nic: String,
    /// Which chassis: a MAC address, or its name.
    pub chassis: String,
    /// Which of its ports: `Ethernet1/7`, or a MAC address.
    pub port: String,
    /// What people call the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_description: Option<String>,
    /// What people call the chassis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The VLAN of untagged frames on that port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

impl Facts {
    /// Cuts off whatever is beyond the bounds, and takes control characters and white space at the ends out of texts. A
    /// text of which nothing is left is none.
    pub fn bound(&mut self) {
        self.lists();
        self.each_text(&mut |text| {
            let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let mut plain = plain.trim();
            if plain.len() > TEXT_MAX {
                plain = plain[..plain.floor_char_boundary(TEXT_MAX)].trim_end();
            }
            *text = plain.to_owned();
        });
        self.each_optional(&mut |text| {
            if text.as_ref().is_some_and(String::is_empty) {
                *text = None;
            }
        });
    }

    /// Calls `change` with each text.
    pub fn each_text(&mut self, change: &mut dyn FnMut(&mut String)) {
        for disk in &mut self.disks {
            change(&mut disk.name);
        }
        for nic in &mut self.nics {
            change(&mut nic.name);
            change(&mut nic.mac);
        }
        for Neighbour { nic, chassis, port, .. } in self.neighbours.iter_mut().flatten() {
            [nic, chassis, port].into_iter().for_each(&mut *change);
        }
        self.each_optional(&mut |text| {
            if let Some(text) = text {
                change(text);
            }
        });
    }

    /// The patterns name every field: a new text does not compile until it is bounded here.
    fn each_optional(&mut self, change: &mut dyn FnMut(&mut Option<String>)) {
        let Self { system, board, firmware, cpu, memory, disks, nics, neighbours, tpm } = self;
        let System { vendor, product, version, serial, uuid } = system;
        [vendor, product, version, serial, uuid].into_iter().for_each(&mut *change);
        let Board { vendor, product, serial } = board;
        [vendor, product, serial].into_iter().for_each(&mut *change);
        let Firmware { vendor, version, date, mode: _, secure_boot: _ } = firmware;
        [vendor, version, date].into_iter().for_each(&mut *change);
        let Cpu { model, sockets: _, cores: _, threads: _ } = cpu;
        change(model);
        let Memory { installed: _, usable: _, modules } = memory;
        for Module { slot, size: _, speed: _, part, serial } in modules {
            [slot, part, serial].into_iter().for_each(&mut *change);
        }
        for Disk { name: _, model, serial, size: _, rotational: _, transport, wear: _ } in disks {
            [model, serial, transport].into_iter().for_each(&mut *change);
        }
        for Nic { name: _, mac: _, driver, carrier: _, speed: _, bus } in nics {
            [driver, bus].into_iter().for_each(&mut *change);
        }
        for Neighbour { nic: _, chassis: _, port: _, port_description, system, vlan: _ } in
            neighbours.iter_mut().flatten()
        {
            [port_description, system].into_iter().for_each(&mut *change);
        }
        change(tpm);
    }

    fn lists(&mut self) {
        self.memory.modules.truncate(LIST_MAX);
        self.disks.truncate(LIST_MAX);
        self.nics.truncate(NICS_MAX);
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.truncate(NICS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    /// Facts in which everything says `text`, and of which there are a thousand each.
    fn full(text: &str) -> Facts {
        let some = || Some(text.to_owned());
        let module =
            Module { slot: some(), size: u64::MAX, speed: Some(u32::MAX), part: some(), serial: some() };
        let disk = Disk {
            name: text.to_owned(),
            model: some(),
            serial: some(),
            size: u64::MAX,
            rotational: Some(false),
            transport: some(),
            wear: Some(255),
        };
        let nic = Nic {
            name: text.to_owned(),
            mac: text.to_owned(),
            driver: some(),
            carrier: Some(false),
            speed: Some(u32::MAX),
            bus: some(),
        };
        let neighbour = Neighbour {
            nic: text.to_owned(),
            chassis: text.to_owned(),
            port: text.to_owned(),
            port_description: some(),
            system: some(),
            vlan: Some(u16::MAX),
        };
        Facts {
            system: System { vendor: some(), product: some(), version: some(), serial: some(), uuid: some() },
            memory: Memory { modules: vec![module; 1000], ..Memory::default() },
            disks: vec![disk; 1000],
            nics: vec![nic; 1000],
            neighbours: Some(vec![neighbour; 1000]),
            tpm: some(),
            ..Facts::default()
        }
    }

    #[test]
    fn texts_and_lists_are_bounded() {
        let mut facts = full(&"é".repeat(1000));
        facts.bound();
        let neighbours = facts.neighbours.as_ref().unwrap();
        assert_eq!((facts.disks.len(), facts.memory.modules.len()), (LIST_MAX, LIST_MAX));
        assert_eq!((facts.nics.len(), neighbours.len()), (NICS_MAX, NICS_MAX));
        let texts = [&facts.disks[0].name, &neighbours[0].chassis, facts.tpm.as_ref().unwrap()];
        assert!(texts.iter().all(|text| text.len() == TEXT_MAX), "{texts:?}");
        let bounded = facts.clone();
        facts.bound();
        assert_eq!(facts, bounded, "once is enough");

        let mut facts = full("\0 \n");
        facts.bound();
        assert_eq!((&*facts.disks[0].name, &facts.disks[0].model, &facts.tpm), ("", &None, &None));
        let mut facts = full(" a\u{1b}[2J ");
        facts.bound();
        assert_eq!(facts.system.serial.as_deref(), Some("a [2J"));
    }

    /// Whatever it says, a request with it is no longer than it may be.
    #[test]
    fn the_most_that_can_be_said_fits() {
        for text in ["\"", "\u{10ffff}", "x"] {
            let mut facts = full(&text.repeat(1000));
            facts.bound();
            let len = serde_json::to_vec(&facts).unwrap().len();
            assert!(len + 1000 < BODY_MAX, "{len}");
        }
    }
}
