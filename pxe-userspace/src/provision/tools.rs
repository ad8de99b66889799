//! Initrds with tools that a boot gets in addition to its image's: set-up builds them, below the assets.

use std::io;
use std::path::{Path, PathBuf};

use super::boot::ImageFacts;

/// Each is a directory with `initrd`, and `unpacked`, the initrd's size in a machine's memory.
pub(super) const STORAGE: &str = "storage";
pub(super) const RESCUE: &str = "rescue";

/// What a boot with these tools needs in addition.
pub(super) struct Tools {
    len: u64,
    unpacked: u64,
}

impl Tools {
    pub(super) fn below(assets: &Path, name: &str) -> io::Result<Self> {
        let directory = assets.join(name);
        let unpacked = std::fs::read_to_string(directory.join("unpacked"))?;
        let unpacked = unpacked.trim().parse().map_err(io::Error::other)?;
        Ok(Self { len: directory.join("initrd").metadata()?.len(), unpacked })
    }

    pub(super) fn add_to(&self, facts: &mut ImageFacts) {
        facts.stage1.len += self.len;
        facts.stage1.unpacked += self.unpacked;
    }
}

/// The initrd with the tools that `[profile.storage]` needs.
pub(crate) fn storage_initrd(assets: &Path) -> PathBuf {
    assets.join(STORAGE).join("initrd")
}

/// The initrd with an SSH server.
pub(crate) fn rescue_initrd(assets: &Path) -> PathBuf {
    assets.join(RESCUE).join("initrd")
}
