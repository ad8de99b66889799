//! SMBIOS: what the firmware says of the machine (DMTF DSP0134, version 3.7; section numbers are its). Pure. The table is
//! the firmware's, and firmware has faults: nothing in it is relied on.

use pxe_contract::facts::{Board, Facts, Module};

/// Structures that are looked at. The largest machines have some thousands.
const STRUCTURES_MAX: usize = 16_384;

/// The version that an entry point names (sections 5.2.1 and 5.2.2).
pub fn version(entry_point: &[u8]) -> Option<(u8, u8)> {
    let at = match entry_point {
        [b'_', b'S', b'M', b'3', b'_', ..] => 7,
        [b'_', b'S', b'M', b'_', ..] => 6,
        _ => return None,
    };
    Some((*entry_point.get(at)?, *entry_point.get(at + 1)?))
}

/// Fills in what a table says; what it does not say stays.
pub fn read(table: &[u8], version: (u8, u8), facts: &mut Facts) {
    let mut seen = Seen::default();
    for structure in (Structures { table }).take(STRUCTURES_MAX) {
        match structure.kind {
            0 if !seen.firmware => {
                seen.firmware = true;
                facts.firmware.vendor = structure.text(0x04);
                facts.firmware.version = structure.text(0x05);
                facts.firmware.date = structure.text(0x08);
            }
            1 if !seen.system => {
                seen.system = true;
                let system = &mut facts.system;
                system.vendor = structure.text(0x04);
                system.product = structure.text(0x05);
                system.version = structure.text(0x06);
                system.serial = structure.text(0x07);
                system.uuid = structure.bytes(0x08).and_then(|uuid| self::uuid(uuid, version));
            }
            // A blade's chassis may list others behind its own.
            2 if !seen.board => {
                seen.board = true;
                let [vendor, product, serial] = [0x04, 0x05, 0x07].map(|at| structure.text(at));
                facts.board = Board { vendor, product, serial };
            }
            17 => facts.memory.modules.extend(module(&structure)),
            _ => {}
        }
    }
    let modules = &facts.memory.modules;
    let installed = modules.iter().fold(0u64, |sum, module| sum.saturating_add(module.size));
    facts.memory.installed = (installed > 0).then_some(installed);
}

#[derive(Default)]
struct Seen {
    firmware: bool,
    system: bool,
    board: bool,
}

/// Section 7.18. `None` for an empty slot, and for what is no RAM.
fn module(structure: &Structure<'_>) -> Option<Module> {
    const MIB: u64 = 1 << 20;
    // ROM and its kinds, by which some firmware lists its own flash (table 76).
    if matches!(structure.byte(0x12), Some(0x08..=0x0c)) {
        return None;
    }
    let size = match structure.word(0x0c)? {
        0 | 0xffff => return None,
        0x7fff => u64::from(structure.double(0x1c)? & 0x7fff_ffff) * MIB,
        kib if kib & 0x8000 != 0 => u64::from(kib & 0x7fff) << 10,
        mib => u64::from(mib) * MIB,
    };
    // 0xffff: it is in the field that came later, for those too fast for this one.
    let speed = |at, extended| match structure.word(at)? {
        0 => None,
        0xffff => structure.double(extended).map(|speed| speed & 0x7fff_ffff).filter(|speed| *speed != 0),
        speed => Some(u32::from(speed)),
    };
    Some(Module {
        slot: structure.text(0x10),
        size,
        speed: speed(0x20, 0x58).or_else(|| speed(0x15, 0x54)),
        part: structure.text(0x1a),
        serial: structure.text(0x18),
    })
    .filter(|module| module.size > 0)
}

/// Section 7.2.1: until version 2.6 in the order of the network, from then on with the first three fields turned round.
/// All alike says that there is none.
fn uuid(bytes: [u8; 16], version: (u8, u8)) -> Option<String> {
    let [first, rest @ ..] = bytes;
    if rest.iter().all(|byte| *byte == first) && matches!(first, 0 | 0xff) {
        return None;
    }
    let mut bytes = bytes;
    if version >= (2, 6) {
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
    }
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// A structure (section 6.1.2).
struct Structure<'a> {
    kind: u8,
    /// With its header.
    formatted: &'a [u8],
    /// Behind it: texts with a zero after each.
    strings: &'a [u8],
}

impl Structure<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.formatted.get(at).copied()
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.formatted.get(at..at + N)?.try_into().ok()
    }

    fn word(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn double(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    /// The text whose number is there; they are counted from 1.
    fn text(&self, at: usize) -> Option<String> {
        let number = usize::from(self.byte(at)?).checked_sub(1)?;
        let text = self.strings.split(|byte| *byte == 0).nth(number)?;
        let text = String::from_utf8_lossy(text);
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

struct Structures<'a> {
    table: &'a [u8],
}

impl<'a> Iterator for Structures<'a> {
    type Item = Structure<'a>;

    fn next(&mut self) -> Option<Structure<'a>> {
        const HEADER: usize = 4;
        const END_OF_TABLE: u8 = 127;
        let [kind, len, ..] = *self.table else { return None };
        let (formatted, behind) = self.table.split_at_checked(usize::from(len))?;
        if formatted.len() < HEADER || kind == END_OF_TABLE {
            return None;
        }
        // Two zeros end the texts, also where there is none. A table that is cut off ends with it.
        let end = behind.windows(2).position(|two| two == [0, 0]);
        let (strings, next) = match end {
            Some(end) => (&behind[..end], &behind[end + 2..]),
            None => (behind, &behind[behind.len()..]),
        };
        self.table = next;
        Some(Structure { kind, formatted, strings })
    }
}

#[cfg(test)]
#[path = "smbios_tests.rs"]
mod tests;
