//! The rescue initrd, which stage 1 loads only if a profile says `rescue = "ssh"`: Debian's dropbear with its
//! libraries. BusyBox is in stage 1 already.

use std::path::Path;

use super::programs::Packages;

const PROGRAMS: &[&str] = &["dropbear", "dropbearkey"];

const PACKAGES: &[&str] =
    &["dropbear-bin", "libc6", "libcrypt1", "libtomcrypt1", "libtommath1", "libgmp10", "zlib1g"];

pub(super) fn recipe() -> String {
    format!("{} / {}", PROGRAMS.join(" "), PACKAGES.join(" "))
}

/// Makes `initrd`, and `unpacked`: the bytes that it takes in a node's memory.
pub(super) fn make(into: &Path) -> anyhow::Result<()> {
    let packages = Packages::fetch(PACKAGES, "rescue-packages")?;
    packages.install(PROGRAMS)?;
    packages.pack(into)
}
