//! How much of a kernel's command line arrives. Pure.

use std::net::SocketAddrV4;

use pxe_common::Mac;
use pxe_contract::cmdline;
use pxe_contract::paths::{Generated, ImagePart};
use pxe_contract::settings::Identity;

use super::file::File;
use super::findings::Findings;
use super::{Config, Profile, Source};

/// Bytes that GRUB passes on. x86 kernels announce 2,047 (COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h, less the
/// zero at its end). GRUB's room includes the zero and a space behind the last word, and on UEFI one byte less
/// (grub-core/lib/cmdline.c, loader/i386/linux.c, Debian's loader/i386/efi/linux.c); iPXE's does not include the space.
/// Whole words that find no room are left out, and nobody says so.
pub const MAX: usize = 2045;

/// The bytes of a line with these words, with what the loader adds to it: GRUB puts `BOOT_IMAGE=/PATH` before them; our
/// iPXE scripts put one `initrd=` for each initrd. The longer one counts, as a machine may come by either.
pub fn length<'a>(kernel: &str, initrds: usize, words: impl Iterator<Item = &'a str>) -> usize {
    let grub = "BOOT_IMAGE=/".len() + kernel.len();
    let ipxe = initrds * "initrd=initrd0 ".len();
    grub.max(ipxe) + words.map(|word| 1 + cmdline::quoted(word).len()).sum::<usize>()
}

/// Of a profile whose command line no machine gets whole: how long it would be at least. Which line exactly does depends
/// on a machine's address, and is found when it boots.
pub fn overlong(profile: &Profile, appliance: SocketAddrV4) -> Option<usize> {
    let own = cmdline::written(&profile.cmdline).ok()?;
    let len = match &profile.source {
        Source::Kernel { kernel, initrd } => {
            length(kernel.trim_start_matches('/'), initrd.len(), own.iter().map(String::as_str))
        }
        Source::Image(_) => {
            let part = Generated::<Mac>::Image { digest: "0".repeat(64), part: ImagePart::Kernel };
            let identity = Identity { appliance, mac: Mac([0; 6]), address: None }.words();
            length(&part.to_string(), 0, identity.iter().chain(&own).map(String::as_str))
        }
    };
    (len > MAX).then_some(len)
}

/// Finds such lines, for `bridgehead check`. They are no fault of the whole file: the other profiles boot.
pub(super) fn survey(raw: &File, config: &Config, findings: &mut Findings<'_>) {
    let appliance = SocketAddrV4::new(config.network.address.addr(), config.http.port);
    // Each entry became a profile.
    for (table, profile) in raw.profiles.iter().zip(&config.profiles) {
        if let (Some(cmdline), Some(len)) = (&table.get_ref().cmdline, overlong(profile, appliance)) {
            findings.add(
                cmdline.span(),
                format!(
                    "the command line would be {len} bytes long with what Bridgehead and the loader add to it, and \
                     loaders pass {MAX} on"
                ),
                format!("shorten it by {} bytes", len - MAX),
            );
        }
    }
}
