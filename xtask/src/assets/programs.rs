//! Debian's programs with their libraries, fetched and unpacked, never installed. They go into initrds that stage 1
//! loads if a profile asks for them, and into the Docker nodes' image.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use super::kernel::{self, Scratch};
use super::run;

/// Debian's packages, unpacked into one tree.
pub(super) struct Packages {
    scratch: Scratch,
}

impl Packages {
    pub(super) fn fetch(names: &[&str], scratch: &str) -> anyhow::Result<Self> {
        let packages = Self { scratch: Scratch::new(scratch)? };
        let debs = packages.scratch.0.join("debs");
        fs::create_dir_all(&debs)?;
        eprintln!("set-up: fetching {}", names.join(" "));
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(names)
            .current_dir(&debs))?;
        for deb in fs::read_dir(&debs)? {
            run(Command::new("dpkg-deb").arg("-x").args([&deb?.path(), &packages.tree()]))?;
        }
        Ok(packages)
    }

    /// Where the packages are unpacked.
    pub(super) fn tree(&self) -> PathBuf {
        self.scratch.0.join("tree")
    }

    /// Where an initrd's contents are put together.
    pub(super) fn root(&self) -> PathBuf {
        self.scratch.0.join("root")
    }

    /// Puts programs into `usr/sbin` of the root, and their libraries where the dynamic loader looks for them.
    pub(super) fn install(&self, programs: &[&str]) -> anyhow::Result<()> {
        let (tree, root) = (self.tree(), self.root());
        let mut libraries = BTreeSet::new();
        for program in programs {
            let from = find(&tree, &["sbin", "bin", "usr/sbin", "usr/bin"], program)?;
            libraries.extend(loaded_by(&tree, &from)?);
            copy(&from, &root.join("usr/sbin").join(program))?;
        }
        for library in libraries {
            let name = library.file_name().context("a library has a name")?;
            copy(&library, &root.join("usr/lib").join(triplet()).join(name))?;
        }
        copy(&loader(&tree)?, &root.join("lib64/ld-linux-x86-64.so.2"))
    }

    /// Packs the root into `initrd`, and writes `unpacked`: the bytes that it takes in a node's memory.
    pub(super) fn pack(&self, into: &Path) -> anyhow::Result<()> {
        let unpacked = pack(&self.root(), &into.join("initrd"))?;
        Ok(fs::write(into.join("unpacked"), unpacked.to_string())?)
    }
}

pub(super) fn triplet() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

fn find(packages: &Path, directories: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let found = directories.iter().map(|d| packages.join(d).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is in none of the packages"))
}

fn loader(packages: &Path) -> anyhow::Result<PathBuf> {
    let directory = format!("lib/{}", triplet());
    find(packages, &[&directory, "lib64"], "ld-linux-x86-64.so.2")
}

/// A program's libraries, as the packages' own dynamic loader finds them, in the packages only.
fn loaded_by(packages: &Path, program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directories = ["usr/lib", "lib"].map(|d| packages.join(d).join(triplet()).display().to_string());
    let output = Command::new(loader(packages)?)
        .args(["--inhibit-cache", "--library-path", &directories.join(":"), "--list"])
        .arg(program)
        .output()
        .context("running Debian's dynamic loader")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let mut libraries = Vec::new();
    for (name, path) in text.lines().filter_map(|line| line.trim().split_once(" => ")) {
        let path = PathBuf::from(path.split(" (0x").next().unwrap_or_default());
        if path.starts_with(packages) {
            libraries.push(path);
        } else if !name.starts_with("ld-linux") && !name.contains("/ld-linux") {
            bail!("{} loads {name}, whose package is not on the list", program.display());
        }
    }
    Ok(libraries)
}

/// A cpio archive in a zstd frame, which Linux unpacks over stage 1. The same files give the same bytes. Returns the
/// contents' size in bytes.
fn pack(root: &Path, initrd: &Path) -> anyhow::Result<u64> {
    const PACK: &str = "set -eo pipefail; cd \"$1\"; find . -exec touch -hd @0 {} +; \
        find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet | zstd -q -19 -T1 --check -o \"$2\"";
    run(Command::new("bash").args(["-c", PACK, "bash"]).args([root, initrd]))?;
    let sizes = Command::new("du")
        .args(["-s", "--apparent-size", "-B1"])
        .arg(root)
        .stderr(Stdio::inherit())
        .output()?;
    let size = String::from_utf8_lossy(&sizes.stdout);
    size.split_whitespace().next().and_then(|s| s.parse().ok()).context("du told no size")
}

/// Copies the file that a path leads to: a library's name is a link to its version.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    kernel::copy(from, to)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}
