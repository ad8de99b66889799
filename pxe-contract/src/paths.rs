//! Paths: of the files that the appliance generates for loaders and nodes, of a node's requests, and of the files in a
//! node's initrds.
//!
//! A machine's MAC is text in a path. Its type on either side is that side's `M`.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use core::fmt;
use core::str::FromStr;

/// GRUB for BIOS machines.
pub const GRUB_BIOS: &str = "grub/i386-pc.0";
/// GRUB for UEFI x86-64 machines.
pub const GRUB_EFI_X64: &str = "grub/x86_64-efi.efi";

/// A node's requests to the appliance, by POST. Over TLS, except in a boot without a session.
pub mod node {
    /// A token for a certificate ([`crate::ticket::SessionRequest`]).
    pub const SESSION: &str = "/node/session";
    /// A report about the boot ([`crate::report::Report`]).
    pub const REPORT: &str = "/node/report";
    /// What the machine is made of ([`crate::facts::Told`]).
    pub const FACTS: &str = "/node/facts";
    /// A machine that told its facts, and has nothing else to do, polls: 200 while it is to wait, 204 when it is to boot
    /// again, because it has become something ([`crate::rescue::Standing`]).
    pub const ENROLLED: &str = "/node/enrolled";
    /// A held boot polls: 200 while it is to wait, 204 when it is to go on ([`crate::rescue::Standing`]).
    pub const HELD: &str = "/node/held";
    /// A failed boot polls: 200 while it is to wait, 204 when it is to boot again ([`crate::rescue::Standing`]).
    pub const FAILED: &str = "/node/failed";
    /// Lines of the console ([`crate::console::Batch`]).
    pub const CONSOLE: &str = "/node/console";
    /// Lines of the workload's output ([`crate::console::Batch`]).
    pub const LOGS: &str = "/node/logs";
    /// A certificate for a Docker engine ([`crate::engine::PapersRequest`]).
    pub const ENGINE: &str = "/node/engine";
    /// Keys of encrypted volumes ([`crate::storage::KeysRequest`]).
    pub const STORAGE_KEYS: &str = "/node/storage-keys";
}

/// What a node finds in the root of its initrds.
pub mod file {
    /// The image's description and what runs in it ([`crate::image::Description`]); in a boot of two stages it is in the
    /// SquashFS.
    pub const IMAGE_DESCRIPTION: &str = "/image.json";
    /// The image's root file system.
    pub const IMAGE: &str = "/image";
    /// This boot's own ([`crate::ticket::Ticket`]).
    pub const TICKET: &str = "/bridgehead.json";
    /// The storage plan, if there is one ([`crate::storage::Storage`]).
    pub const STORAGE: &str = "/storage.json";
    /// The login to a boot that has stopped, if there is one ([`crate::rescue::Login`]).
    pub const RESCUE: &str = "/rescue.json";

    /// Its name in an archive that is unpacked into the root.
    pub fn name(path: &'static str) -> &'static str {
        path.trim_start_matches('/')
    }
}

/// Where a node asks for a multicast round of an image's second stage ([`crate::round::Reception`]).
pub fn round(sha256: &str) -> String {
    format!("/carousel/{sha256}")
}

/// The meaning of a path that the appliance answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Generated<M> {
    /// A loader image: its name below the assets.
    Loader(&'static str),
    /// grub.cfg for this machine. GRUB asks for `grub.cfg-01-MAC` first (01 is Ethernet's ARP
    /// hardware type), so answering that saves it twelve further requests.
    GrubConfig(M),
    /// The same, asked for again by a loader that could not do what it was told before.
    GrubConfigAgain(LoadFailure, M),
    /// The plain `grub.cfg`: whoever asks, known by address.
    GrubConfigByAddress,
    /// An iPXE script for this machine.
    IpxeScript(M),
    /// The same, asked for again.
    IpxeScriptAgain(LoadFailure, M),
    /// The tools and drivers for storage plans.
    StorageTools,
    /// The machine's own initrd, for one boot.
    Node(M),
    /// dropbear, for shells over SSH.
    RescueTools,
    /// Part of an image.
    Image {
        /// The SHA-256 of the part, in hexadecimal.
        digest: String,
        /// Which part.
        part: ImagePart,
    },
}

/// What a loader could not do. It has no other words for it than the path that it asks for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// How far it came.
    pub step: LoadStep,
    /// Secure Boot has it take signed kernels only.
    pub locked: bool,
}

/// A step of a loader's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStep {
    /// Loading the kernel.
    Kernel,
    /// Loading the initrds.
    Initrd,
    /// Starting what was loaded.
    Boot,
}

impl LoadStep {
    const ALL: [Self; 3] = [Self::Kernel, Self::Initrd, Self::Boot];

    /// As loaders write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Boot => "boot",
        }
    }
}

/// Behind a step's name, in a path.
pub const LOCKED: &str = "-locked";

impl LoadFailure {
    fn parse(name: &str) -> Option<Self> {
        let (name, locked) = match name.strip_suffix(LOCKED) {
            Some(name) => (name, true),
            None => (name, false),
        };
        let step = LoadStep::ALL.into_iter().find(|step| step.name() == name)?;
        Some(Self { step, locked })
    }
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.step.name(), if self.locked { LOCKED } else { "" })
    }
}

/// The path of [`Generated::GrubConfigAgain`]; `failure` is one, or what a loader replaces by one.
pub fn grub_config_again(failure: impl fmt::Display, mac: impl fmt::Display) -> String {
    format!("grub/failed/{failure}/grub.cfg-01-{}", mac.to_string().replace(':', "-"))
}

/// The path of [`Generated::IpxeScriptAgain`].
pub fn ipxe_script_again(failure: impl fmt::Display, mac: impl fmt::Display) -> String {
    format!("boot/ipxe/failed/{failure}/{mac}.ipxe")
}

/// A file that is made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePart {
    /// The kernel.
    Kernel,
    /// pxe-init with BusyBox and modules: an initrd.
    Stage1,
    /// The root file system as an initrd.
    Rootfs,
    /// The root file system as a SquashFS.
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

impl<M: FromStr> Generated<M> {
    /// Reads a path without a leading slash; `None` means that it is not one of ours.
    pub fn parse(path: &str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("grub/") {
            return match name {
                "grub.cfg" => Some(Self::GrubConfigByAddress),
                _ if path == GRUB_BIOS => Some(Self::Loader(GRUB_BIOS)),
                _ if path == GRUB_EFI_X64 => Some(Self::Loader(GRUB_EFI_X64)),
                _ if name.starts_with("failed/") => {
                    let (failure, name) = name.strip_prefix("failed/")?.split_once('/')?;
                    let mac = name.strip_prefix("grub.cfg-01-")?.parse().ok()?;
                    Some(Self::GrubConfigAgain(LoadFailure::parse(failure)?, mac))
                }
                _ => name.strip_prefix("grub.cfg-01-")?.parse().ok().map(Self::GrubConfig),
            };
        }
        let rest = path.strip_prefix("boot/")?;
        if let Some(name) = rest.strip_prefix("ipxe/") {
            let name = name.strip_suffix(".ipxe")?;
            return match name.strip_prefix("failed/") {
                Some(again) => {
                    let (failure, mac) = again.split_once('/')?;
                    Some(Self::IpxeScriptAgain(LoadFailure::parse(failure)?, mac.parse().ok()?))
                }
                None => name.parse().ok().map(Self::IpxeScript),
            };
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

/// Without a leading slash.
impl<M: fmt::Display> fmt::Display for Generated<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(path) => f.write_str(path),
            Self::GrubConfig(mac) => write!(f, "grub/grub.cfg-01-{}", mac.to_string().replace(':', "-")),
            Self::GrubConfigAgain(failure, mac) => f.write_str(&grub_config_again(failure, mac)),
            Self::GrubConfigByAddress => f.write_str("grub/grub.cfg"),
            Self::IpxeScript(mac) => write!(f, "boot/ipxe/{mac}.ipxe"),
            Self::IpxeScriptAgain(failure, mac) => f.write_str(&ipxe_script_again(failure, mac)),
            Self::StorageTools => f.write_str("boot/storage/tools"),
            Self::Node(mac) => write!(f, "boot/node/{mac}"),
            Self::RescueTools => f.write_str("boot/rescue/tools"),
            Self::Image { digest, part } => write!(f, "boot/{digest}/{}", part.name()),
        }
    }
}

/// Where a node fetches the second stage with this SHA-256.
pub fn stage2(sha256: &str) -> String {
    let image = Generated::<&str>::Image { digest: sha256.to_owned(), part: ImagePart::Stage2 };
    format!("/{image}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "52:54:00:77:00:01";
    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn paths_read_back_and_nothing_else_does() {
        for path in [
            Generated::Loader(GRUB_BIOS),
            Generated::GrubConfigByAddress,
            Generated::IpxeScript(MAC.to_owned()),
            Generated::IpxeScriptAgain(LoadFailure { step: LoadStep::Initrd, locked: false }, MAC.to_owned()),
            Generated::StorageTools,
            Generated::Node(MAC.to_owned()),
            Generated::RescueTools,
            Generated::Image { digest: DIGEST.into(), part: ImagePart::Rootfs },
        ] {
            assert_eq!(Generated::parse(&path.to_string()), Some(path));
        }
        for step in LoadStep::ALL {
            // GRUB writes a MAC with dashes.
            let failure = LoadFailure { step, locked: step == LoadStep::Kernel };
            let path = Generated::GrubConfigAgain(failure, MAC.replace(':', "-"));
            assert_eq!(Generated::parse(&path.to_string()), Some(path));
        }
        for other in [
            "grub/failed/disk/grub.cfg-01-x",
            "boot/ipxe/failed/x.ipxe",
            "grub/grub.cfg-0A4D000B",
            "grub/x",
            "boot/abc/kernel",
            "boot/storage/x",
            "boot",
            "",
        ] {
            assert_eq!(Generated::<String>::parse(other), None, "{other}");
        }
        let long = format!("boot/{DIGEST}/kernel/x");
        assert_eq!(Generated::<String>::parse(&long), None);
    }

    #[test]
    fn stage_2_is_a_part_of_an_image() {
        let image = Generated::Image { digest: DIGEST.into(), part: ImagePart::Stage2 };
        assert_eq!(Generated::<String>::parse(&stage2(DIGEST)[1..]), Some(image));
    }
}
