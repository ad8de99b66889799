//! dmidecode is the judge: it prints what a table says, from a dump of it.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A table that is being written.
#[derive(Default)]
struct Table(Vec<u8>);

impl Table {
    /// A structure of a type with this formatted area behind its header, and texts.
    fn with(mut self, kind: u8, formatted: &[u8], texts: &[&str]) -> Self {
        let handle = self.0.len() as u16;
        self.0.extend([kind, 4 + formatted.len() as u8]);
        self.0.extend(handle.to_le_bytes());
        self.0.extend(formatted);
        for text in texts {
            self.0.extend(text.bytes().chain([0]));
        }
        self.0.extend(if texts.is_empty() { &[0, 0][..] } else { &[0] });
        self
    }

    fn end(self) -> Vec<u8> {
        self.with(127, &[], &[]).0
    }
}

const UUID: [u8; 16] =
    [0x44, 0x45, 0x4c, 0x4c, 0x42, 0, 0x10, 0x43, 0x80, 0x31, 0xc1, 0xc0, 0x4f, 0x32, 0x33, 0x34];

/// Type 17 from its size on, in version 3.3's length.
fn memory(size: u16, extended: u32, kind: u8, speed: u16, configured: u16, speeds: [u32; 2]) -> Vec<u8> {
    let mut formatted = vec![0; 0x5c - 4];
    let mut put = |at: usize, bytes: &[u8]| formatted[at - 4..][..bytes.len()].copy_from_slice(bytes);
    put(0x0c, &size.to_le_bytes());
    put(0x0e, &[9, 0, 1, 0, kind]);
    put(0x15, &speed.to_le_bytes());
    put(0x17, &[2, 3, 0, 4]);
    put(0x1c, &extended.to_le_bytes());
    put(0x20, &configured.to_le_bytes());
    put(0x54, &speeds[0].to_le_bytes());
    put(0x58, &speeds[1].to_le_bytes());
    formatted
}

fn table() -> Vec<u8> {
    let module = ["A1", "Samsung", "35C7A4A1", "M393A8G40AB2-CWE"];
    Table::default()
        .with(0, &[1, 2, 0, 0xe0, 3, 0xff, 0, 0, 0, 0, 0, 0, 0, 0], &["Dell Inc.", "1.9.2", "11/17/2022"])
        .with(1, &[&[1, 2, 0, 3][..], &UUID, &[6]].concat(), &["Dell Inc.", "PowerEdge R650", "ABC1234"])
        .with(2, &[1, 2, 3, 4], &["Dell Inc.", "0PJ80M", "A05", ".ABC1234.CN0."])
        .with(2, &[1, 2, 3, 4], &["Another", "Riser", "A00", "1"])
        .with(17, &memory(0x7fff, 65536, 26, 3200, 2933, [0; 2]), &module)
        .with(17, &memory(16384, 0, 34, 0xffff, 0xffff, [70_000, 68_000]), &["B1", "Hynix", "S2", "P2"])
        .with(17, &memory(0, 0, 2, 0, 0, [0; 2]), &["C1"])
        .with(17, &memory(0xffff, 0, 2, 0, 0, [0; 2]), &["D1"])
        .with(17, &memory(0x8000 | 512, 0, 9, 0, 0, [0; 2]), &["System ROM"])
        .end()
}

fn facts(table: &[u8], version: (u8, u8)) -> Facts {
    let mut facts = Facts::default();
    read(table, version, &mut facts);
    facts
}

/// A structure's title, and its lines: a key and a value each.
type Printed = (String, Vec<(String, String)>);

/// What dmidecode prints of a table, by structure: its title, and pairs of key and value.
fn dmidecode(table: &[u8], version: (u8, u8)) -> Option<Vec<Printed>> {
    // As `dmidecode --dump-bin` writes one: an entry point of 24 bytes, and the table at 32.
    let mut entry = [0u8; 32];
    entry[..7].copy_from_slice(&[b'_', b'S', b'M', b'3', b'_', 0, 24]);
    (entry[7], entry[8]) = version;
    entry[10] = 1;
    entry[12..16].copy_from_slice(&(table.len() as u32).to_le_bytes());
    entry[16] = 32;
    entry[5] = entry[..24].iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump");
    std::fs::write(&dump, [&entry[..], table].concat()).unwrap();
    printed(&dump)
}

fn printed(dump: &Path) -> Option<Vec<Printed>> {
    let output = Command::new("dmidecode").arg("--from-dump").arg(dump).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let structures =
        text.split("\n\n").filter_map(|part| part.trim_start_matches('\n').strip_prefix("Handle "));
    let structure = |part: &str| {
        let mut lines = part.lines().skip(1);
        let title = lines.next().unwrap_or_default().to_owned();
        let pair = |line: &str| {
            let (key, value) = line.trim().split_once(": ")?;
            Some((key.to_owned(), value.trim().to_owned()))
        };
        (title, lines.filter_map(pair).collect())
    };
    Some(structures.map(structure).collect())
}

/// What dmidecode says of the first structure with this title; what it calls nothing is none.
fn said(all: &[(String, Vec<(String, String)>)], title: &str, key: &str) -> Option<String> {
    let (_, pairs) = all.iter().find(|(its, _)| its == title)?;
    value(pairs, key)
}

fn value(pairs: &[(String, String)], key: &str) -> Option<String> {
    let (_, value) = pairs.iter().find(|(its, _)| its == key)?;
    let nothing = ["Not Specified", "Not Present", "Not Settable", "Unknown", "<BAD INDEX>", ""];
    (!nothing.contains(&value.as_str())).then(|| value.clone())
}

fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_once(' ')?;
    let unit = match unit {
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? << unit)
}

/// Compares everything that is read with what dmidecode prints. False where there is no dmidecode.
fn judged(table: &[u8], version: (u8, u8)) -> bool {
    let Some(all) = dmidecode(table, version) else { return false };
    let facts = facts(table, version);
    let of = |title: &str, key: &str| said(&all, title, key);
    let (bios, system, board) = ("BIOS Information", "System Information", "Base Board Information");
    let ours = [
        (&facts.firmware.vendor, of(bios, "Vendor")),
        (&facts.firmware.version, of(bios, "Version")),
        (&facts.firmware.date, of(bios, "Release Date")),
        (&facts.system.vendor, of(system, "Manufacturer")),
        (&facts.system.product, of(system, "Product Name")),
        (&facts.system.version, of(system, "Version")),
        (&facts.system.serial, of(system, "Serial Number")),
        (&facts.system.uuid, of(system, "UUID")),
        (&facts.board.vendor, of(board, "Manufacturer")),
        (&facts.board.product, of(board, "Product Name")),
        (&facts.board.serial, of(board, "Serial Number")),
    ];
    for (ours, judged) in ours {
        assert_eq!(*ours, judged);
    }
    let modules = all.iter().filter(|(title, _)| title == "Memory Device").filter_map(|(_, pairs)| {
        let value = |key: &str| value(pairs, key);
        let speed = |key: &str| value(key)?.strip_suffix(" MT/s")?.parse().ok();
        Some(Module {
            slot: value("Locator"),
            size: bytes(&value("Size")?)?,
            speed: speed("Configured Memory Speed").or_else(|| speed("Speed")),
            part: value("Part Number"),
            serial: value("Serial Number"),
        })
        .filter(|_| value("Type").as_deref() != Some("Flash"))
    });
    assert_eq!(facts.memory.modules, modules.collect::<Vec<_>>());
    true
}

#[test]
fn a_server_describes_itself() {
    let facts = facts(&table(), (3, 3));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(facts.system.serial, text("ABC1234"));
    assert_eq!(facts.system.version, None, "text number 0 is none");
    assert_eq!(facts.system.uuid, text("4c4c4544-0042-4310-8031-c1c04f323334"));
    assert_eq!(facts.board.serial, text(".ABC1234.CN0."), "the first board's");
    let modules = &facts.memory.modules;
    assert_eq!(modules.iter().map(|module| module.size >> 30).collect::<Vec<_>>(), [64, 16]);
    assert_eq!(modules.iter().map(|module| module.speed).collect::<Vec<_>>(), [Some(2933), Some(68_000)]);
    assert_eq!(facts.memory.installed, Some(80 << 30));
}

#[test]
fn dmidecode_reads_the_same() {
    for version in [(2, 4), (2, 6), (3, 3)] {
        if !judged(&table(), version) {
            eprintln!("skipped: dmidecode is not installed");
        }
    }
}

/// The table that QEMU 7.2 gives to a machine with `-smbios` options and 640 MiB: tests/smbios/README.md.
#[test]
fn dmidecode_reads_the_same_of_a_virtual_machine() {
    let dump = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/smbios/qemu.bin")).unwrap();
    let version = version(&dump).unwrap();
    judged(&dump[32..], version);
    let facts = facts(&dump[32..], version);
    assert_eq!(facts.system.serial.as_deref(), Some("BH-0001"));
    assert_eq!(facts.memory.installed, Some(640 << 20));
}

#[test]
fn entry_points_name_their_version() {
    assert_eq!(version(b"_SM3_\0\x18\x03\x05"), Some((3, 5)));
    assert_eq!(version(b"_SM_\0\x1f\x02\x08"), Some((2, 8)));
    assert_eq!(version(b"_SM_\0"), None);
    assert_eq!(version(b""), None);
}

#[test]
fn a_table_that_ends_early_says_what_it_has() {
    let whole = table();
    for len in 0..whole.len() {
        facts(&whole[..len], (3, 3));
    }
    let half = facts(&whole[..80], (3, 3));
    assert_eq!(half.firmware.version.as_deref(), Some("1.9.2"));
    assert_eq!(uuid([0xff; 16], (3, 0)), None);
    assert_eq!(uuid([0; 16], (2, 0)), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_table_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..1000, byte: u8) {
        facts(&bytes, (3, 3));
        let mut table = table();
        let at = at % table.len();
        table[at] = byte;
        facts(&table, (3, 3));
    }
}
