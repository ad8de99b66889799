//! Kernels by Debian release, as `cargo xtask setup` unpacks them into `target/kernels`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::output;

/// A Debian release with a kernel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12: 6.1.
    Bookworm,
    /// Debian 13: 6.12.
    Trixie,
    /// The backported kernel for Debian 12.
    Backports,
}

impl Suite {
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Backports];

    /// Its name for apt.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Backports => "bookworm-backports",
        }
    }

    pub const fn words(self) -> &'static str {
        match self {
            Self::Bookworm => "Debian 12",
            Self::Trixie => "Debian 13",
            Self::Backports => "Debian 12's backports",
        }
    }

    pub fn dir(self) -> PathBuf {
        crate::target().join("kernels").join(self.name())
    }

    /// The kernel image. If it exists, the whole package is unpacked.
    pub fn image(self) -> PathBuf {
        self.dir().join("vmlinuz")
    }

    /// As `uname -r` prints it.
    pub fn version(self) -> Result<String> {
        let modules = self.dir().join("lib/modules");
        let why = || format!("{}: `cargo xtask setup` fetches this kernel", modules.display());
        let entry = fs::read_dir(&modules).with_context(why)?.next().with_context(why)??;
        Ok(entry.file_name().to_string_lossy().into_owned())
    }

    /// The files of `modules` and their dependencies, each after those that it needs. A module that is built into the
    /// kernel has none.
    pub fn modules(self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let version = self.version()?;
        let mut files = Vec::new();
        for module in modules {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("-d").arg(self.dir()).args(["-C", "/dev/null", "-S", &version, "--show-depends"]);
            let shown = output(modprobe.arg(module))
                .with_context(|| format!("the kernel of {} has no module {module}", self.words()))?;
            for file in shown.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = PathBuf::from(file.split(' ').next().unwrap_or_default());
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// Unpacks a module into a directory, because BusyBox's insmod can't, and returns its name there.
pub(super) fn unpacked(module: &Path, into: &Path) -> Result<String> {
    let name = module.file_name().and_then(|n| n.to_str()).context("a module's name")?;
    match name.strip_suffix(".xz") {
        None => {
            fs::copy(module, into.join(name))?;
            Ok(name.to_owned())
        }
        Some(plain) => {
            let out = fs::File::create(into.join(plain))?;
            let status =
                Command::new("xz").args(["--decompress", "--stdout"]).arg(module).stdout(out).status()?;
            ensure!(status.success(), "xz of {}: {status}", module.display());
            Ok(plain.to_owned())
        }
    }
}
