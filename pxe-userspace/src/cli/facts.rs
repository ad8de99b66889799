//! What a machine is made of, as people read it.

use pxe_contract::facts::{BootMode, Cpu, Facts, Firmware, Memory, System};

use crate::api::documents::MachineFacts;
use crate::base::table::{or_dash, size, table};

/// In paragraphs: the machine, its processors, memory, disks, network cards, neighbours.
pub(super) fn facts(said: MachineFacts) -> String {
    let MachineFacts { node, mac, time, facts } = said;
    let Facts { system, board, firmware, cpu, memory, disks, nics, neighbours, tpm } = facts;
    let name = node.map_or_else(String::new, |name| format!("{name}, "));
    let mut out = format!("{name}{mac}, as it told at {time:.6}\n\n");
    let mut line = |head: &str, text: String| out.push_str(&format!("{head:<10}{text}\n"));
    let System { vendor, product, version, serial, uuid } = system;
    line("system", joined([vendor, product, version]));
    line("serial", or_dash(serial));
    line("UUID", or_dash(uuid));
    line("board", joined([board.vendor, board.product, board.serial]));
    line("firmware", self::firmware(firmware));
    line("TPM", or_dash(tpm));
    line("CPU", self::cpu(&cpu));
    line("memory", self::memory(&memory));

    let rows = memory.modules.into_iter().map(|module| {
        let speed = module.speed.map(|speed| format!("{speed} MT/s"));
        [
            or_dash(module.slot),
            size(module.size),
            or_dash(speed),
            or_dash(module.part),
            or_dash(module.serial),
        ]
    });
    let rows: Vec<_> = rows.collect();
    out.push_str(&paragraph(["SLOT", "SIZE", "SPEED", "PART", "SERIAL"], &rows, "no memory module is known"));
    let rows: Vec<_> = disks
        .into_iter()
        .map(|disk| {
            let turns = disk.rotational.map(|turns| if turns { "rotates" } else { "solid" });
            let wear = disk.wear.map(|wear| format!("{wear} %"));
            [
                disk.name,
                size(disk.size),
                or_dash(disk.model),
                or_dash(disk.serial),
                or_dash(disk.transport),
                or_dash(turns),
                or_dash(wear),
            ]
        })
        .collect();
    let heads = ["DISK", "SIZE", "MODEL", "SERIAL", "BUS", "KIND", "WORN"];
    out.push_str(&paragraph(heads, &rows, "no disk is known"));
    let rows: Vec<_> = nics
        .into_iter()
        .map(|nic| {
            let link = match (nic.carrier, nic.speed) {
                (Some(true), Some(speed)) => Some(format!("{speed} Mbit/s")),
                (Some(true), None) => Some("up".to_owned()),
                (Some(false), _) => Some("no carrier".to_owned()),
                (None, _) => None,
            };
            [nic.name, nic.mac, or_dash(link), or_dash(nic.driver), or_dash(nic.bus)]
        })
        .collect();
    out.push_str(&paragraph(["NIC", "MAC", "LINK", "DRIVER", "PLACE"], &rows, "no network card is known"));
    let Some(neighbours) = neighbours else {
        out.push_str("\nit has not listened for its neighbours yet\n");
        return out;
    };
    let rows: Vec<_> = neighbours
        .into_iter()
        .map(|heard| {
            [
                heard.nic,
                or_dash(heard.system),
                heard.chassis,
                heard.port,
                or_dash(heard.port_description),
                or_dash(heard.vlan),
            ]
        })
        .collect();
    let heads = ["NIC", "NEIGHBOUR", "CHASSIS", "PORT", "DESCRIPTION", "VLAN"];
    out.push_str(&paragraph(heads, &rows, "no neighbour was heard by LLDP"));
    out
}

fn paragraph<const N: usize>(heads: [&str; N], rows: &[[String; N]], none: &str) -> String {
    format!("\n{}", table(heads, rows, none))
}

fn joined<const N: usize>(words: [Option<String>; N]) -> String {
    let words: Vec<String> = words.into_iter().flatten().collect();
    or_dash(Some(words.join(", ")))
}

fn firmware(firmware: Firmware) -> String {
    let Firmware { vendor, version, date, mode, secure_boot } = firmware;
    let mode = mode.map(|mode| match mode {
        BootMode::Bios => "booted by BIOS".to_owned(),
        BootMode::Uefi => "booted by UEFI".to_owned(),
    });
    let secure = secure_boot.map(|on| format!("Secure Boot {}", if on { "on" } else { "off" }));
    joined([vendor, version, date, mode, secure])
}

fn cpu(cpu: &Cpu) -> String {
    let count =
        |n: Option<u32>, what: &str| n.map(|n| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let counts = [count(cpu.sockets, "socket"), count(cpu.cores, "core"), count(cpu.threads, "thread")];
    let [sockets, cores, threads] = counts;
    joined([cpu.model.clone(), sockets, cores, threads])
}

fn memory(memory: &Memory) -> String {
    let installed = memory.installed.map(|bytes| format!("{} installed", size(bytes)));
    let usable = memory.usable.map(|bytes| format!("{} usable", size(bytes)));
    joined([installed, usable])
}

#[cfg(test)]
mod tests {
    use pxe_contract::facts::{Disk, Neighbour};

    use super::*;

    #[test]
    fn what_is_known_and_what_is_not() {
        let said = MachineFacts {
            node: Some("n1".into()),
            mac: "52:54:00:77:00:01".parse().unwrap(),
            time: "2026-01-05T10:00:00Z".parse().unwrap(),
            facts: Facts {
                system: System { vendor: Some("Dell Inc.".into()), ..System::default() },
                disks: vec![Disk { name: "vda".into(), size: 64 << 20, wear: Some(3), ..Disk::default() }],
                neighbours: Some(vec![Neighbour {
                    nic: "eno1".into(),
                    vlan: Some(77),
                    ..Neighbour::default()
                }]),
                ..Facts::default()
            },
        };
        let shown = facts(said.clone());
        assert!(
            shown.starts_with("n1, 52:54:00:77:00:01, as it told at 2026-01-05T10:00:00.000000Z\n"),
            "{shown}"
        );
        assert!(shown.contains("\nsystem    Dell Inc.\nserial    -\n"), "{shown}");
        assert!(shown.contains("\nvda   64.0 MiB  -      -       -    -     3 %\n"), "{shown}");
        assert!(shown.contains("no network card is known") && shown.ends_with("77\n"), "{shown}");
        let unheard = MachineFacts { facts: Facts { neighbours: None, ..said.facts }, ..said };
        assert!(facts(unheard).ends_with("not listened for its neighbours yet\n"));
    }
}
