//! The simulated firmwares: what each sends, how long it waits, when it gives up.
//!
//! [`edk2`] and [`ipxe`] send, byte for byte, the options captured in tests/corpus; [`pxe_rom`] follows
//! the PXE specification, for lack of a capture. [`grub`] and [`node`] run after them.

pub(super) mod edk2;
pub(super) mod grub;
mod hardware;
pub(super) mod ipxe;
pub(super) mod node;
pub(super) mod pxe_rom;
#[cfg(test)]
mod tests;

use clap::ValueEnum;

use super::link::Waits;
use super::{dhcp, tftp};

/// What a simulated machine has in its ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Firmware {
    /// PXE of EDK2, in most servers' UEFI.
    Uefi,
    /// A network card's PXE ROM in a legacy BIOS.
    Bios,
    /// iPXE in the ROM, in a legacy BIOS.
    Ipxe,
}

/// A firmware's behaviour on the network.
#[derive(Debug)]
pub(super) struct Rom {
    pub(super) dhcp: dhcp::Habits,
    pub(super) tftp: tftp::Habits,
    /// The waits after an ARP request without an answer.
    pub(super) arp: Waits,
    /// Announces its address by ARP.
    pub(super) announces: bool,
    /// GRUB's name for the platform it is started on.
    pub(super) platform: &'static str,
    /// Its message on the screen when a server stops answering, and when one refuses a file.
    pub(super) no_answer: &'static str,
    pub(super) refused: &'static str,
}

impl Firmware {
    pub(super) const ALL: [Self; 3] = [Self::Uefi, Self::Bios, Self::Ipxe];

    pub(super) fn rom(self) -> &'static Rom {
        match self {
            Self::Uefi => &edk2::ROM,
            Self::Bios => &pxe_rom::ROM,
            Self::Ipxe => &ipxe::ROM,
        }
    }
}

/// An option: its code, its length and its value.
fn option(into: &mut Vec<u8>, code: u8, value: &[u8]) {
    into.extend([code, value.len() as u8]);
    into.extend_from_slice(value);
}

/// Option 97: type 0 and the UUID (RFC 4578 section 2.3).
fn machine_id(into: &mut Vec<u8>, uuid: &[u8; 16]) {
    option(into, 97, &[&[0][..], uuid].concat());
}
