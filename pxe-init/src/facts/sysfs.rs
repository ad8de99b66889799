//! Facts from the kernel's own files: sysfs and procfs below a root, which is another one in tests.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use pxe_contract::facts::{BootMode, Cpu, Disk, Facts, LIST_MAX, NICS_MAX, Nic};

use super::smbios;
use crate::storage;
use crate::system;

/// Bytes that are read of an attribute, and of the firmware's table.
const ATTRIBUTE_MAX: u64 = 64 << 10;
const TABLE_MAX: u64 = 1 << 20;

/// Everything but the neighbours.
pub(crate) fn collect(root: &Path) -> Facts {
    let mut facts = Facts::default();
    let tables = root.join("sys/firmware/dmi/tables");
    if let Some(table) = bytes(&tables.join("DMI"), TABLE_MAX) {
        let entry_point = bytes(&tables.join("smbios_entry_point"), ATTRIBUTE_MAX).unwrap_or_default();
        // Every machine with a table that Linux shows is newer than that.
        smbios::read(&table, smbios::version(&entry_point).unwrap_or((3, 0)), &mut facts);
    }
    facts.cpu = cpu(root);
    facts.memory.usable = usable_memory(root);
    facts.disks = disks(root);
    facts.nics = nics(root);
    facts.tpm = tpm(root).map(str::to_owned);
    (facts.firmware.mode, facts.firmware.secure_boot) = boot_mode(root);
    facts.bound();
    facts
}

fn cpu(root: &Path) -> Cpu {
    let info = bytes(&root.join("proc/cpuinfo"), ATTRIBUTE_MAX).unwrap_or_default();
    let info = String::from_utf8_lossy(&info);
    let pairs = info.lines().filter_map(|line| line.split_once(':'));
    let model = pairs.into_iter().find(|(key, _)| key.trim() == "model name").map(|(_, name)| spaced(name));
    let (mut packages, mut cores, mut threads) = (BTreeSet::new(), BTreeSet::new(), 0);
    for cpu in entries(&root.join("sys/devices/system/cpu")) {
        let topology = cpu.join("topology");
        // One that is off has none.
        let (Some(package), Some(core)) =
            (text(&topology.join("physical_package_id")), text(&topology.join("core_id")))
        else {
            continue;
        };
        threads += 1;
        packages.insert(package.clone());
        // AMD counts from 0 in each die.
        let die = text(&topology.join("die_id"));
        cores.insert((package, die, core));
    }
    let count = |n: usize| u32::try_from(n).ok().filter(|n| *n > 0);
    Cpu { model, sockets: count(packages.len()), cores: count(cores.len()), threads: count(threads) }
}

/// Makers fill names up with blanks.
fn spaced(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn usable_memory(root: &Path) -> Option<u64> {
    let info = bytes(&root.join("proc/meminfo"), ATTRIBUTE_MAX)?;
    let info = String::from_utf8_lossy(&info);
    let kib = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

fn disks(root: &Path) -> Vec<Disk> {
    let disks = entries(&root.join("sys/block")).into_iter().filter_map(|block| disk(root, &block));
    disks.take(LIST_MAX).collect()
}

fn disk(root: &Path, block: &Path) -> Option<Disk> {
    let name = block.file_name()?.to_str()?.to_owned();
    let of = |attribute: &str| text(&block.join(attribute));
    // In sectors of 512 bytes, whatever the disk's own sector size is.
    let size = of("size")?.parse::<u64>().ok().filter(|sectors| *sectors > 0)?.checked_mul(512)?;
    // A path of several to one disk.
    let is_hidden = of("hidden").as_deref() == Some("1");
    if is_hidden || !storage::is_disk(&name) {
        return None;
    }
    let path = fs::canonicalize(block).unwrap_or_default();
    Some(Disk {
        model: of("device/model").or_else(|| of("device/name")).map(|model| spaced(&model)),
        serial: storage::serial(block),
        size,
        rotational: of("queue/rotational").map(|rotates| rotates == "1"),
        transport: transport(&name, &path.to_string_lossy()).map(str::to_owned),
        wear: match of("device/life_time") {
            Some(life) => emmc_wear(&life),
            None if name.starts_with("nvme") => nvme_wear(&root.join("dev").join(&name)),
            None => None,
        },
        name,
    })
}

/// By the way that its path below /sys takes.
fn transport(name: &str, path: &str) -> Option<&'static str> {
    let by_part = |part: &str| {
        let starts = |prefix: &str| part.strip_prefix(prefix);
        let is_number = |rest: Option<&str>| {
            rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        };
        Some(match part {
            _ if is_number(starts("session")) => "iscsi",
            _ if is_number(starts("usb")) => "usb",
            _ if is_number(starts("ata")) => "sata",
            _ if starts("end_device-").is_some() => "sas",
            _ if starts("rport-").is_some() => "fc",
            _ if is_number(starts("mmc")) => "mmc",
            _ => return None,
        })
    };
    let last = |part: &str| part.starts_with("virtio").then_some("virtio");
    let host = |part: &str| part.strip_prefix("host").map(|_| "scsi");
    match name {
        _ if name.starts_with("nvme") => Some("nvme"),
        _ => {
            let parts = || path.split('/');
            parts().find_map(by_part).or_else(|| parts().find_map(last)).or_else(|| parts().find_map(host))
        }
    }
}

/// The log page of an NVMe controller's health, at its sixth byte (NVM Express Base 2.0, figure 207).
fn nvme_wear(device: &Path) -> Option<u8> {
    const PERCENTAGE_USED: usize = 5;
    let log = system::nvme_health(&File::open(device).ok()?).ok()?;
    log.get(PERCENTAGE_USED).copied()
}

/// `0x01 0x02`: the parts that it has two kinds of, in tenths of their lives (JESD84-B51, EXT_CSD 268 and 269).
fn emmc_wear(life: &str) -> Option<u8> {
    let tenths = life.split_whitespace().filter_map(|part| {
        let tenths = u8::from_str_radix(part.strip_prefix("0x")?, 16).ok()?;
        // 0 is not known, 11 is beyond its life.
        (1..=11).contains(&tenths).then_some(tenths)
    });
    tenths.max().map(|tenths| tenths * 10)
}

/// Network cards: what has a device behind it.
fn nics(root: &Path) -> Vec<Nic> {
    let nics = entries(&root.join("sys/class/net")).into_iter().filter_map(|link| nic(&link));
    nics.take(NICS_MAX).collect()
}

fn nic(link: &Path) -> Option<Nic> {
    let device = fs::canonicalize(link.join("device")).ok()?;
    let of = |attribute: &str| text(&link.join(attribute));
    let carrier = match of("carrier").as_deref() {
        Some("1") => Some(true),
        Some("0") => Some(false),
        // A link that is down has none to tell of.
        _ => None,
    };
    let speed = of("speed").and_then(|speed| speed.parse::<u32>().ok()).filter(|speed| *speed != u32::MAX);
    let driver = fs::read_link(link.join("device/driver")).ok();
    Some(Nic {
        name: link.file_name()?.to_str()?.to_owned(),
        mac: of("address")?.to_ascii_lowercase(),
        driver: driver.and_then(|driver| Some(driver.file_name()?.to_str()?.to_owned())),
        carrier,
        speed: speed.filter(|speed| *speed > 0),
        bus: place(&device),
    })
}

/// A device's place: the last PCI function on the way to it, else its own name.
fn place(device: &Path) -> Option<String> {
    let parts: Vec<&str> = device.iter().filter_map(|part| part.to_str()).collect();
    let is_function = |part: &&&str| {
        let mut fields = part.split([':', '.']);
        let hex = |field: Option<&str>, len| {
            field.is_some_and(|field| field.len() == len && field.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        hex(fields.next(), 4) && hex(fields.next(), 2) && hex(fields.next(), 2) && hex(fields.next(), 1)
    };
    let function = parts.iter().rev().find(is_function).or(parts.last())?;
    Some((*function).to_owned())
}

/// From its driver, or from the firmware's table of it: stage 1 may have no driver for it.
fn tpm(root: &Path) -> Option<&'static str> {
    let by_driver = match text(&root.join("sys/class/tpm/tpm0/tpm_version_major")).as_deref() {
        Some("2") => Some("2.0"),
        Some("1") => Some("1.2"),
        _ => None,
    };
    let has = |table: &str| root.join("sys/firmware/acpi/tables").join(table).exists();
    by_driver.or_else(|| has("TPM2").then_some("2.0")).or_else(|| has("TCPA").then_some("1.2"))
}

/// Secure Boot is known where the kernel's own EFI stub ran, which leaves it in its boot parameters
/// (`secure_boot`, Documentation/arch/x86/zero-page.rst).
fn boot_mode(root: &Path) -> (Option<BootMode>, Option<bool>) {
    const SECURE_BOOT: usize = 0x1ec;
    if !root.join("sys/firmware").is_dir() {
        return (None, None);
    }
    if !root.join("sys/firmware/efi").is_dir() {
        return (Some(BootMode::Bios), None);
    }
    let parameters = bytes(&root.join("sys/kernel/boot_params/data"), ATTRIBUTE_MAX).unwrap_or_default();
    let secure = match parameters.get(SECURE_BOOT) {
        Some(2) => Some(false),
        Some(3) => Some(true),
        _ => None,
    };
    (Some(BootMode::Uefi), secure)
}

/// What is in a directory, in order.
fn entries(directory: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn bytes(path: &Path, at_most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(at_most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// An attribute's text; none where it is empty.
fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path, ATTRIBUTE_MAX)?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
#[path = "sysfs_tests.rs"]
mod tests;
