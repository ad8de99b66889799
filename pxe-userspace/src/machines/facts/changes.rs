//! What is different about a machine since it told its facts last, in words. Pure.

use std::collections::BTreeMap;

use pxe_contract::facts::{BootMode, Disk, Facts, Memory, Nic};

use crate::base::table::size;

/// Things that are told one by one.
const TOLD_MAX: usize = 8;

/// From this share of its life on, a disk is worn, in percent.
const WORN: u8 = 90;

/// What somebody who answers for the machine wants to know. What either of the two does not say is no change.
pub(super) fn changes(old: &Facts, new: &Facts) -> Vec<String> {
    let mut said = Vec::new();
    identity(old, new, &mut said);
    memory(&old.memory, &new.memory, &mut said);
    processors(old, new, &mut said);
    disks(&old.disks, &new.disks, &mut said);
    nics(&old.nics, &new.nics, &mut said);
    neighbours(old, new, &mut said);
    firmware(old, new, &mut said);
    let more = said.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        said.truncate(TOLD_MAX);
        said.push(format!(
            "{more} more things are different about it: `bridgehead facts` shows it as it is now"
        ));
    }
    said
}

/// Of a text that both say.
fn other(what: &str, old: &Option<String>, new: &Option<String>, said: &mut Vec<String>) {
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        said.push(format!("its {what} is {new}, and was {old}"));
    }
}

fn identity(old: &Facts, new: &Facts, said: &mut Vec<String>) {
    other("serial number", &old.system.serial, &new.system.serial, said);
    other("model", &old.system.product, &new.system.product, said);
    other("board's serial number", &old.board.serial, &new.board.serial, said);
}

fn memory(old: &Memory, new: &Memory, said: &mut Vec<String>) {
    let (before, now) = match (old.installed, new.installed) {
        (Some(before), Some(now)) => (before, now),
        _ => {
            let (Some(before), Some(now)) = (old.usable, new.usable) else { return };
            // Another kernel keeps other parts for itself.
            if before.abs_diff(now) < (before / 32).max(64 << 20) {
                return;
            }
            (before, now)
        }
    };
    if before == now {
        return;
    }
    let (difference, what) = (size(before.abs_diff(now)), if now < before { "less" } else { "more" });
    let slots = |memory: &Memory| -> BTreeMap<String, u64> {
        let named = memory.modules.iter().filter_map(|module| Some((module.slot.clone()?, module.size)));
        named.collect()
    };
    let (had, has) = (slots(old), slots(new));
    let gone: Vec<&str> = had.keys().filter(|slot| !has.contains_key(*slot)).map(String::as_str).collect();
    let where_ = match (gone.as_slice(), now < before) {
        ([], _) | (_, false) => String::new(),
        ([slot], true) => format!("; the module in {slot} is gone"),
        ([slot, rest @ ..], true) => {
            format!("; the modules in {slot} and {} more slots are gone", rest.len())
        }
    };
    said.push(format!("{difference} {what} memory than last time: {}{where_}", size(now)));
}

fn processors(old: &Facts, new: &Facts, said: &mut Vec<String>) {
    other("processor", &old.cpu.model, &new.cpu.model, said);
    let counts = [
        ("processors", old.cpu.sockets, new.cpu.sockets),
        ("cores", old.cpu.cores, new.cpu.cores),
        ("threads", old.cpu.threads, new.cpu.threads),
    ];
    // One of them says the others.
    let changed = counts.into_iter().find_map(|(what, old, new)| {
        let (old, new) = (old?, new?);
        (old != new).then(|| format!("it has {new} {what}, and had {old}"))
    });
    said.extend(changed);
}

fn disks(old: &[Disk], new: &[Disk], said: &mut Vec<String>) {
    // A name is the next best: it changes with the order in which disks are found.
    let by_id = |disks: &[Disk]| -> BTreeMap<String, Disk> {
        let id = |disk: &Disk| disk.serial.clone().unwrap_or_else(|| format!(" {}", disk.name));
        disks.iter().map(|disk| (id(disk), disk.clone())).collect()
    };
    let (had, has) = (by_id(old), by_id(new));
    for (_, disk) in had.iter().filter(|(id, _)| !has.contains_key(*id)) {
        said.push(format!("{} is gone", named(disk)));
    }
    for (id, disk) in &has {
        let Some(before) = had.get(id) else {
            said.push(format!("{} is new", named(disk)));
            continue;
        };
        if before.size != disk.size {
            said.push(format!("{} has another size than last time: {}", named(disk), size(before.size)));
        }
        if let Some(wear) = disk.wear.filter(|wear| *wear >= WORN)
            && before.wear.is_none_or(|before| before < WORN)
        {
            said.push(format!("{} has used up {wear} % of its life", named(disk)));
        }
    }
}

/// `disk sda (S5Y1, 477.0 GiB)`
fn named(disk: &Disk) -> String {
    let serial = disk.serial.as_deref().unwrap_or("no serial number");
    format!("disk {} ({serial}, {})", disk.name, size(disk.size))
}

fn nics(old: &[Nic], new: &[Nic], said: &mut Vec<String>) {
    let by_mac = |nics: &[Nic]| -> BTreeMap<String, Nic> {
        nics.iter().map(|nic| (nic.mac.clone(), nic.clone())).collect()
    };
    let (had, has) = (by_mac(old), by_mac(new));
    for (mac, nic) in had.iter().filter(|(mac, _)| !has.contains_key(*mac)) {
        said.push(format!("network card {} ({mac}) is gone", nic.name));
    }
    for (mac, nic) in &has {
        match had.get(mac) {
            None => said.push(format!("network card {} ({mac}) is new", nic.name)),
            Some(before) => {
                if let (Some(before), Some(now)) = (before.speed, nic.speed)
                    && before != now
                {
                    let what = format!("network card {} ({mac})", nic.name);
                    said.push(format!("{what} has a link of {now} Mbit/s, and had one of {before}"));
                }
            }
        }
    }
}

fn neighbours(old: &Facts, new: &Facts, said: &mut Vec<String>) {
    let (Some(old), Some(new)) = (&old.neighbours, &new.neighbours) else { return };
    for now in new {
        let mut before = old.iter().filter(|before| before.nic == now.nic).peekable();
        let Some(first) = before.peek().copied() else { continue };
        if before.all(|before| (&before.chassis, &before.port) != (&now.chassis, &now.port)) {
            let name = |of: &pxe_contract::facts::Neighbour| {
                format!("{} of {}", of.port, of.system.as_ref().unwrap_or(&of.chassis))
            };
            said.push(format!("{} is plugged into {}, and was into {}", now.nic, name(now), name(first)));
        }
    }
}

fn firmware(old: &Facts, new: &Facts, said: &mut Vec<String>) {
    other("firmware", &old.firmware.version, &new.firmware.version, said);
    if let (Some(before), Some(now)) = (old.firmware.mode, new.firmware.mode)
        && before != now
    {
        let now = match now {
            BootMode::Bios => "BIOS, and did by UEFI",
            BootMode::Uefi => "UEFI, and did by BIOS",
        };
        said.push(format!("it boots by {now}"));
    }
    if let (Some(before), Some(now)) = (old.firmware.secure_boot, new.firmware.secure_boot)
        && before != now
    {
        said.push(format!("Secure Boot is {} now", if now { "on" } else { "off" }));
    }
    match (&old.tpm, &new.tpm) {
        (Some(version), None) => said.push(format!("its TPM {version} is gone")),
        (None, Some(version)) => said.push(format!("it has a TPM {version} now")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use pxe_contract::facts::{Module, Neighbour};

    use super::*;

    fn module(slot: &str, gib: u64) -> Module {
        Module { slot: Some(slot.into()), size: gib << 30, ..Module::default() }
    }

    fn disk(name: &str, serial: Option<&str>) -> Disk {
        Disk { name: name.into(), serial: serial.map(str::to_owned), size: 480 << 30, ..Disk::default() }
    }

    fn nic(name: &str, mac: &str, speed: u32) -> Nic {
        Nic { name: name.into(), mac: mac.into(), speed: Some(speed), ..Nic::default() }
    }

    fn facts() -> Facts {
        Facts {
            memory: Memory {
                installed: Some(16 << 30),
                usable: Some(15 << 30),
                modules: ["A1", "A2", "B1", "B2"].map(|slot| module(slot, 4)).into(),
            },
            disks: vec![disk("sda", Some("S1")), disk("sdb", Some("S2")), disk("vda", None)],
            nics: vec![nic("eno1", "52:54:00:77:00:01", 10_000)],
            ..Facts::default()
        }
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        assert_eq!(changes(&facts(), &facts()), [""; 0]);
        let mut renamed = facts();
        renamed.disks[0].name = "sdb".into();
        renamed.disks[1].name = "sda".into();
        renamed.memory.usable = Some((15 << 30) - (50 << 20));
        assert_eq!(changes(&facts(), &renamed), [""; 0], "another order, another kernel");
        let unknown = Facts { neighbours: None, memory: Memory::default(), ..facts() };
        assert_eq!(changes(&facts(), &unknown), [""; 0], "it does not say");
    }

    #[test]
    fn less_memory_and_a_disk_that_is_gone() {
        let mut less = facts();
        less.memory.modules.remove(2);
        less.memory.installed = Some(12 << 30);
        less.disks.remove(1);
        assert_eq!(
            changes(&facts(), &less),
            [
                "4.0 GiB less memory than last time: 12.0 GiB; the module in B1 is gone",
                "disk sdb (S2, 480.0 GiB) is gone",
            ]
        );
        assert_eq!(
            changes(&less, &facts()),
            ["4.0 GiB more memory than last time: 16.0 GiB", "disk sdb (S2, 480.0 GiB) is new"]
        );
    }

    #[test]
    fn links_neighbours_wear_and_firmware() {
        let neighbour = |port: &str| Neighbour {
            nic: "eno1".into(),
            chassis: "00:1c:73:00:00:01".into(),
            port: port.into(),
            system: Some("leaf-a1".into()),
            ..Neighbour::default()
        };
        let before =
            Facts { neighbours: Some(vec![neighbour("Ethernet7")]), tpm: Some("2.0".into()), ..facts() };
        let mut now = before.clone();
        now.neighbours = Some(vec![neighbour("Ethernet9")]);
        now.nics[0].speed = Some(1000);
        now.disks[0].wear = Some(91);
        now.tpm = None;
        now.firmware.mode = Some(BootMode::Uefi);
        assert_eq!(
            changes(&before, &now),
            [
                "disk sda (S1, 480.0 GiB) has used up 91 % of its life",
                "network card eno1 (52:54:00:77:00:01) has a link of 1000 Mbit/s, and had one of 10000",
                "eno1 is plugged into Ethernet9 of leaf-a1, and was into Ethernet7 of leaf-a1",
                "its TPM 2.0 is gone",
            ]
        );
    }

    #[test]
    fn another_machine_is_not_told_in_a_hundred_events() {
        let mut other = facts();
        other.disks = (0..100).map(|n| disk(&format!("sd{n}"), Some(&format!("X{n}")))).collect();
        let said = changes(&facts(), &other);
        assert_eq!(said.len(), TOLD_MAX + 1);
        assert!(said[TOLD_MAX].starts_with("95 more things are different"), "{said:?}");
    }
}
