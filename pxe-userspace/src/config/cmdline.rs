//! Whether a kernel's command line reaches the kernel whole and unchanged. Pure.

use std::net::SocketAddrV4;

use pxe_common::Mac;
use pxe_contract::cmdline::{self, OpenQuote};
use pxe_contract::paths::{Generated, ImagePart};
use pxe_contract::settings::Identity;

use super::file::File;
use super::findings::Findings;
use super::{Config, Profile, Source};

/// Bytes of a command line that every loader passes on. x86 kernels announce 2,047 (COMMAND_LINE_SIZE in
/// arch/x86/include/asm/setup.h, less the terminating zero). GRUB's buffer also holds that zero and a space after the
/// last word, and is one byte shorter on UEFI (grub-core/lib/cmdline.c, loader/i386/linux.c, Debian's
/// loader/i386/efi/linux.c). iPXE's holds no such space. Loaders leave out whole words that do not fit, without an
/// error.
pub const MAX: usize = 2045;

/// A kernel command line that would not reach the kernel as written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CmdlineError {
    #[error("cmdline has a double quote without its partner")]
    OpenQuote,
    #[error("cmdline can't pass {word:?} on: {why}")]
    Word { word: String, why: &'static str },
    #[error(
        "cmdline is {0} bytes long with what Bridgehead and the loader add to it, and loaders pass {MAX} on: shorten it \
         by {over} bytes", over = .0 - MAX
    )]
    TooLong(usize),
}

/// The bytes of a line of these words, with what a loader adds. GRUB puts `BOOT_IMAGE=/PATH` before them; our iPXE
/// scripts add one `initrd=` for each initrd. The longer one counts, because a machine may boot by either.
pub fn length<'a>(kernel: &str, initrds: usize, words: impl Iterator<Item = &'a str>) -> usize {
    let grub = "BOOT_IMAGE=/".len() + kernel.len();
    let ipxe = initrds * "initrd=initrd0 ".len();
    grub.max(ipxe) + words.map(|word| 1 + cmdline::quoted(word).len()).sum::<usize>()
}

/// The kernel's consoles if an image's profile names none: the first serial port and the screen, so that the output
/// appears on whichever is watched. The last one becomes `/dev/console`. The kernel ignores a port that is not there.
pub const CONSOLES: [&str; 2] = ["console=ttyS0,115200", "console=tty0"];

/// The words of an image's profile for the kernel, with [`CONSOLES`] before them if they name no console.
pub fn with_consoles(own: Vec<String>) -> Vec<String> {
    if own.iter().any(|word| word.starts_with("console=")) {
        return own;
    }
    CONSOLES.into_iter().map(str::to_owned).chain(own).collect()
}

/// The words of a command line, if every loader can pass them on.
pub fn words(cmdline: &str) -> Result<Vec<String>, CmdlineError> {
    let words = cmdline::written(cmdline).map_err(|OpenQuote| CmdlineError::OpenQuote)?;
    match words.iter().find_map(|word| Some((word.clone(), unspeakable(word)?))) {
        Some((word, why)) => Err(CmdlineError::Word { word, why }),
        None => Ok(words),
    }
}

/// Why some loader can't pass a word on unchanged. GRUB puts a backslash before quotes and backslashes, and the kernel
/// does not remove it (grub-core/lib/cmdline.c). iPXE expands `${…}`, and ends a command at `||`, `&&`, `;` and at
/// words that begin with `#`; it has no quoting (src/core/exec.c).
fn unspeakable(word: &str) -> Option<&'static str> {
    let ends_command = |w: &str| w.starts_with('#') || matches!(w, "||" | "&&" | ";");
    if word.contains(|c: char| !matches!(c, ' '..='~')) {
        Some("loaders take printable ASCII only")
    } else if word.contains(['\'', '\\']) {
        Some("GRUB would put a backslash before a single quote or a backslash")
    } else if word.contains("${") {
        Some("iPXE would expand ${…}")
    } else if word.split(' ').any(ends_command) {
        Some("iPXE would end its command there")
    } else {
        None
    }
}

/// The least length of a profile's command line in bytes, if it is too long on every machine. The exact length depends
/// on a machine's address and is checked at its boot.
pub fn overlong(profile: &Profile, appliance: SocketAddrV4) -> Option<usize> {
    let own = cmdline::written(&profile.cmdline).ok()?;
    let len = match &profile.source {
        Source::Kernel { kernel, initrd } => {
            length(kernel.trim_start_matches('/'), initrd.len(), own.iter().map(String::as_str))
        }
        Source::Image(_) => {
            let part = Generated::<Mac>::Image { digest: "0".repeat(64), part: ImagePart::Kernel };
            let identity = Identity { appliance, mac: Mac([0; 6]), address: None }.words();
            let own = with_consoles(own);
            length(&part.to_string(), 0, identity.iter().chain(&own).map(String::as_str))
        }
    };
    (len > MAX).then_some(len)
}

/// Reports command lines that loaders can't pass on, for `bridgehead check`. The file is still valid: other profiles
/// boot.
pub(super) fn survey(raw: &File, config: &Config, findings: &mut Findings<'_>) {
    let appliance = SocketAddrV4::new(config.network.address.addr(), config.http.port);
    // The profiles are in the order of their entries.
    for (table, profile) in raw.profiles.iter().zip(&config.profiles) {
        if let (Some(cmdline), Err(error)) = (&table.get_ref().cmdline, words(&profile.cmdline)) {
            findings.add(
                cmdline.span(),
                error.to_string(),
                "write it without, or serve a kernel that needs none",
            );
        }
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
