//! Builds the daemon with everything it embeds and serves.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell::check;

/// What was built.
pub(crate) struct Built {
    pub(crate) bridgehead: PathBuf,
    pub(crate) assets: PathBuf,
}

/// Builds all of it; cargo decides what is out of date.
pub(crate) fn build() -> Result<Built> {
    check(Command::new("cargo").args(["build", "--package", "pxe-userspace"]))?;
    Ok(Built { bridgehead: ::lab::target().join("debug/bridgehead"), assets: ::lab::assets() })
}
