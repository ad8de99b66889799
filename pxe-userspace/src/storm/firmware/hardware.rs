//! What a simulated machine is made of: a rack of servers of three makers, each with serial numbers of its own. Pure.

use pxe_common::Mac;
use pxe_contract::facts::{
    Board, BootMode, Cpu, Disk, Facts, Firmware, Memory, Module, Neighbour, Nic, System,
};

const GIB: u64 = 1 << 30;

/// Machines of one rack's switch.
const PER_SWITCH: u32 = 48;

/// By the machine's number, which its MAC address ends with: always the same of the same machine.
pub(super) fn of(mac: Mac, uuid: [u8; 16], uefi: bool) -> Facts {
    let [.., b, c, d] = mac.0;
    let number = u32::from_be_bytes([0, b, c, d]);
    let text = |text: &str| Some(text.to_owned());
    let (vendor, product, cpu, sockets, cores, modules) = match number % 3 {
        0 => ("Dell Inc.", "PowerEdge R650", "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", 2, 64, 16),
        1 => ("Supermicro", "AS -1114S-WN10RT", "AMD EPYC 7543P 32-Core Processor", 1, 32, 8),
        _ => ("HPE", "ProLiant DL360 Gen10", "Intel(R) Xeon(R) Silver 4214 CPU @ 2.20GHz", 2, 24, 4),
    };
    let module = |n: u32| Module {
        slot: Some(format!("DIMM_{}{}", char::from(b'A' + (n / 4) as u8), n % 4 + 1)),
        size: 16 * GIB,
        speed: Some(3200),
        part: text("M393A2K40DB3-CWE"),
        serial: Some(format!("{:08X}", number.wrapping_mul(64) + n)),
    };
    let disk = |n: u32| Disk {
        name: format!("nvme{n}n1"),
        model: text("SAMSUNG MZQL23T8HCLS-00A07"),
        serial: Some(format!("S64HNE0R{number:06}{n}")),
        size: 3_840_755_982_336,
        rotational: Some(false),
        transport: text("nvme"),
        wear: Some((number % 30) as u8),
    };
    let port = number % PER_SWITCH + 1;
    let neighbour = Neighbour {
        nic: "eno1".to_owned(),
        chassis: format!(
            "00:1c:73:00:{:02x}:{:02x}",
            number / PER_SWITCH / 256 % 256,
            number / PER_SWITCH % 256
        ),
        port: format!("Ethernet{port}"),
        port_description: Some(format!("slot {port}")),
        system: Some(format!("leaf-{}", number / PER_SWITCH + 1)),
        vlan: Some(77),
    };
    Facts {
        system: System {
            vendor: text(vendor),
            product: text(product),
            version: None,
            serial: Some(format!("ST{number:07}")),
            uuid: Some(uuid::Uuid::from_bytes(uuid).to_string()),
        },
        board: Board { vendor: text(vendor), product: None, serial: Some(format!("B{number:09}")) },
        firmware: Firmware {
            vendor: text(vendor),
            version: text("2.4.1"),
            date: text("03/18/2025"),
            mode: Some(if uefi { BootMode::Uefi } else { BootMode::Bios }),
            secure_boot: uefi.then_some(false),
        },
        cpu: Cpu { model: text(cpu), sockets: Some(sockets), cores: Some(cores), threads: Some(2 * cores) },
        memory: Memory {
            installed: Some(u64::from(modules) * 16 * GIB),
            usable: Some(u64::from(modules) * 16 * GIB / 64 * 63),
            modules: (0..modules).map(module).collect(),
        },
        disks: (0..2).map(disk).collect(),
        nics: vec![Nic {
            name: "eno1".to_owned(),
            mac: mac.to_string(),
            driver: text("ice"),
            carrier: Some(true),
            speed: Some(25_000),
            bus: text("0000:01:00.0"),
        }],
        neighbours: Some(vec![neighbour]),
        tpm: text("2.0"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pxe_contract::facts::BODY_MAX;

    use super::*;

    #[test]
    fn each_machine_is_another_and_stays_the_same() {
        let mac = |n: u32| {
            let [_, b, c, d] = n.to_be_bytes();
            Mac([2, 0x73, 0x74, b, c, d])
        };
        let made = |n: u32| of(mac(n), [n as u8; 16], n.is_multiple_of(2));
        let serials: BTreeSet<String> =
            (0..3000).flat_map(|n| made(n).disks.into_iter().filter_map(|disk| disk.serial)).collect();
        assert_eq!(serials.len(), 6000);
        for n in [0, 1, 2, 47, 48, 99_999] {
            let mut bounded = made(n);
            bounded.bound();
            assert_eq!(bounded, made(n), "it is what a node would send");
            assert!(serde_json::to_vec(&bounded).unwrap().len() < BODY_MAX);
        }
    }
}
