//! The kind of client, which follows from options 60, 77, 93 and 175 together, and what it needs.

use core::fmt;
use core::str::FromStr;

/// x86-64 UEFI in IANA's registry of processor architecture types.
pub(super) const X64: u16 = 7;
/// The same, booting by HTTP.
pub(super) const HTTP_X64: u16 = 16;

/// The beginning of option 60.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Anything else, or no option 60: an operating system.
    #[default]
    None,
    /// `PXEClient` (PXE 2.1 section 2.2).
    Pxe,
    /// `HTTPClient` (UEFI 2.10 section 24.7).
    Http,
}

/// The kind of client that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// No network boot: an operating system that requests an address.
    None,
    /// PXE of a legacy BIOS.
    Bios,
    /// PXE of x86-64 UEFI.
    UefiX64,
    /// iPXE in the ROM of a BIOS machine (QEMU's NICs), or loaded before by it.
    IpxeBios,
    /// iPXE under x86-64 UEFI.
    IpxeUefiX64,
    /// UEFI HTTP Boot, x86-64.
    HttpX64,
    /// A network boot of a platform for which there is no boot file; its number in the IANA registry of processor
    /// architecture types.
    Other(u16),
}

impl Firmware {
    /// The slot of clients that boot nothing.
    pub const NO_BOOT: usize = 5;
    /// The number of slots.
    pub const SLOTS: usize = 6;

    /// Combines the options. `arch`: the client's platform from option 93, else from the text of option 60, else from
    /// its UNDI (94). `by_93`: it is from option 93. `ipxe`: option 77 says iPXE, or option 175 is present.
    #[inline(always)]
    pub fn of(class: Class, arch: Option<u16>, by_93: bool, ipxe: bool) -> Self {
        // Only network boots send option 93 (RFC 4578 section 2.1), whatever their option 60 is.
        let class = match (class, arch) {
            (Class::None, Some(HTTP_X64)) if by_93 => Class::Http,
            (Class::None, Some(_)) if by_93 => Class::Pxe,
            _ => class,
        };
        match (class, arch) {
            (Class::None, _) => Self::None,
            // Option 93 came with PXE 2.1; all ROMs without it are BIOS.
            (Class::Pxe, None | Some(0)) if ipxe => Self::IpxeBios,
            (Class::Pxe, None | Some(0)) => Self::Bios,
            // IANA: 7 is x86-64, which EDK2 and iPXE send. RFC 4578 as printed has 9 for x86-64, and firmware that
            // follows its text sends that.
            (Class::Pxe, Some(X64 | 9)) if ipxe => Self::IpxeUefiX64,
            (Class::Pxe, Some(X64 | 9)) => Self::UefiX64,
            // EDK2 sends this number, and boots nothing else by HTTP. 17 is EBC, and a PXE number from an HTTP client
            // contradicts itself: no file is better than another machine's.
            (Class::Http, Some(HTTP_X64)) => Self::HttpX64,
            (Class::Pxe, Some(arch)) => Self::Other(arch),
            (Class::Http, arch) => Self::Other(arch.unwrap_or(u16::MAX)),
        }
    }

    /// The index of this kind's boot in [`Grant::boot`](super::Grant::boot).
    #[inline(always)]
    pub const fn slot(self) -> usize {
        match self {
            Self::Bios => 0,
            Self::UefiX64 => 1,
            Self::IpxeBios => 2,
            Self::IpxeUefiX64 => 3,
            Self::HttpX64 => 4,
            Self::None | Self::Other(_) => Self::NO_BOOT,
        }
    }

    /// Encodes it in three bytes for events: the slot, and the platform's number.
    #[inline(always)]
    pub const fn encode(self) -> [u8; 3] {
        match self {
            Self::Other(arch) => {
                let [a, b] = arch.to_be_bytes();
                [Self::SLOTS as u8, a, b]
            }
            known => [known.slot() as u8, 0, 0],
        }
    }

    /// Decodes what [`encode`](Self::encode) wrote.
    pub const fn decode([slot, a, b]: [u8; 3]) -> Self {
        match slot {
            0 => Self::Bios,
            1 => Self::UefiX64,
            2 => Self::IpxeBios,
            3 => Self::IpxeUefiX64,
            4 => Self::HttpX64,
            5 => Self::None,
            _ => Self::Other(u16::from_be_bytes([a, b])),
        }
    }

    /// Whether the client will boot from what the reply names.
    #[inline(always)]
    pub const fn boots(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Its name for people; `None` for those that only their number identifies.
    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::None => "no network boot",
            Self::Bios => "BIOS PXE",
            Self::UefiX64 => "UEFI x86-64 PXE",
            Self::IpxeBios => "iPXE (BIOS)",
            Self::IpxeUefiX64 => "iPXE (UEFI x86-64)",
            Self::HttpX64 => "UEFI x86-64 HTTP Boot",
            Self::Other(_) => return None,
        })
    }

    /// Whether it runs UEFI programs.
    pub const fn is_uefi(self) -> bool {
        match self {
            Self::UefiX64 | Self::IpxeUefiX64 | Self::HttpX64 => true,
            Self::None | Self::Bios | Self::IpxeBios | Self::Other(_) => false,
        }
    }

    /// Whether it is iPXE: the firmware's own, or loaded by it.
    pub const fn is_ipxe(self) -> bool {
        matches!(self, Self::IpxeBios | Self::IpxeUefiX64)
    }

    /// What the client needs in addition to a file's name.
    #[inline(always)]
    pub const fn quirks(self) -> Quirks {
        match self {
            Self::None | Self::Other(_) => Quirks { class: Class::None, discovery_control: false },
            // EDK2 that gets option 60 without 43 asks port 4011, and does not boot without an answer there. iPXE's ROM
            // waits for ProxyDHCP offers unless told not to: option 43 shortened BIOS boots from 12.4 s to 9 s. Seen
            // with OVMF 2022.11 and the iPXE ROMs of QEMU 7.2; what the real ones sent is in tests/corpus.
            Self::Bios | Self::UefiX64 | Self::IpxeBios | Self::IpxeUefiX64 => {
                Quirks { class: Class::Pxe, discovery_control: true }
            }
            // EDK2's HTTP Boot drops offers without this class (HttpBootDhcp4.c,
            // HttpBootParseDhcp4Packet).
            Self::HttpX64 => Quirks { class: Class::Http, discovery_control: false },
        }
    }
}

/// What one kind of client needs in a reply that names a boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// Sent back in option 60.
    pub class: Class,
    /// Option 43 `06 01 08`: PXE_DISCOVERY_CONTROL, "use the file name in this packet, discover
    /// no boot servers" (PXE 2.1 table 2-1).
    pub discovery_control: bool,
}

/// What [`Display`](fmt::Display) writes before the number.
const OTHER: &str = "network boot of architecture ";

/// Why a text is no firmware's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFirmware;

impl fmt::Display for UnknownFirmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no firmware is called so")
    }
}

impl core::error::Error for UnknownFirmware {}

/// Reads what [`Display`](fmt::Display) writes.
impl FromStr for Firmware {
    type Err = UnknownFirmware;

    fn from_str(name: &str) -> Result<Self, UnknownFirmware> {
        let known = [Self::None, Self::Bios, Self::UefiX64, Self::IpxeBios, Self::IpxeUefiX64, Self::HttpX64];
        if let Some(firmware) = known.into_iter().find(|firmware| firmware.name() == Some(name)) {
            return Ok(firmware);
        }
        let arch = name.strip_prefix(OTHER).and_then(|arch| arch.parse().ok());
        arch.map(Self::Other).ok_or(UnknownFirmware)
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(arch) => write!(f, "{OTHER}{arch}"),
            known => f.write_str(known.name().unwrap_or_default()),
        }
    }
}
