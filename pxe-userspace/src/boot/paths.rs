//! The names under which the daemon serves what it makes itself.

use std::fmt;

use pxe_common::Mac;

/// GRUB for BIOS machines.
pub const GRUB_BIOS: &str = "grub/i386-pc.0";
/// GRUB for UEFI x86-64 machines.
pub const GRUB_EFI_X64: &str = "grub/x86_64-efi.efi";

/// What a path that the daemon answers itself stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Generated {
    /// A loader image: its name below the assets.
    Loader(&'static str),
    /// grub.cfg for this machine. GRUB asks for `grub.cfg-01-MAC` first (01 is Ethernet's ARP
    /// hardware type), so answering that saves it twelve further requests.
    GrubConfig(Mac),
    /// The plain `grub.cfg`: whoever asks, known by address.
    GrubConfigByAddress,
    /// An iPXE script for this machine.
    IpxeScript(Mac),
    /// The tools and drivers for storage plans.
    StorageTools,
    /// What this machine alone is told, for one boot.
    Node(Mac),
    /// dropbear, for shells over SSH.
    RescueTools,
    /// Part of an image, by the digest that names it.
    Image { digest: String, part: ImagePart },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePart {
    Kernel,
    Stage1,
    Rootfs,
    Stage2,
}

impl ImagePart {
    const ALL: [Self; 4] = [Self::Kernel, Self::Stage1, Self::Rootfs, Self::Stage2];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Stage1 => "stage1",
            Self::Rootfs => "image",
            Self::Stage2 => "stage2",
        }
    }
}

impl Generated {
    /// Reads a path without a leading slash; `None` means that it is not one of ours.
    pub fn parse(path: &str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("grub/") {
            return match name {
                "grub.cfg" => Some(Self::GrubConfigByAddress),
                _ if path == GRUB_BIOS => Some(Self::Loader(GRUB_BIOS)),
                _ if path == GRUB_EFI_X64 => Some(Self::Loader(GRUB_EFI_X64)),
                _ => name.strip_prefix("grub.cfg-01-")?.parse().ok().map(Self::GrubConfig),
            };
        }
        let rest = path.strip_prefix("boot/")?;
        if let Some(name) = rest.strip_prefix("ipxe/") {
            return name.strip_suffix(".ipxe")?.parse().ok().map(Self::IpxeScript);
        }
        if rest == "storage/tools" {
            return Some(Self::StorageTools);
        }
        if let Some(mac) = rest.strip_prefix("node/") {
            return mac.parse().ok().map(Self::Node);
        }
        if rest == "rescue/tools" {
            return Some(Self::RescueTools);
        }
        let (digest, name) = rest.split_once('/')?;
        let part = ImagePart::ALL.into_iter().find(|p| p.name() == name)?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then(|| Self::Image { digest: digest.to_ascii_lowercase(), part })
    }
}

impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(path) => f.write_str(path),
            Self::GrubConfig(mac) => write!(f, "grub/grub.cfg-01-{}", mac.to_string().replace(':', "-")),
            Self::GrubConfigByAddress => f.write_str("grub/grub.cfg"),
            Self::IpxeScript(mac) => write!(f, "boot/ipxe/{mac}.ipxe"),
            Self::StorageTools => f.write_str("boot/storage/tools"),
            Self::Node(mac) => write!(f, "boot/node/{mac}"),
            Self::RescueTools => f.write_str("boot/rescue/tools"),
            Self::Image { digest, part } => write!(f, "boot/{digest}/{}", part.name()),
        }
    }
}
