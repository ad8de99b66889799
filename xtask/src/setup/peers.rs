//! The servers that benchmarks measure against, unpacked into `target/peers` and not installed: Debian's
//! tftpd-hpa and atftpd exclude each other, and none of them should start as a service.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::apt;
use crate::{paths, shell::check};

/// Packages that can be resolved together, and a program of each.
const SETS: [(&[&str], &[&str]); 2] = [
    (&["tftpd-hpa", "kea-dhcp4-server", "kea-admin"], &["in.tftpd", "kea-dhcp4", "perfdhcp"]),
    (&["atftpd"], &["atftpd"]),
];

/// Makes the peers available. Returns a line for each that can't be.
pub(super) fn ensure() -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (packages, programs) in SETS {
        if programs.iter().all(|p| program(p).is_file()) {
            continue;
        }
        if let Some(obstacle) = apt::obstacle() {
            let packages = packages.join(", ");
            problems.push(format!("{packages}: peers of the benchmarks, from Debian's packages; {obstacle}"));
            continue;
        }
        eprintln!("set-up: unpacking {} into target/peers", packages.join(", "));
        unpack(packages).with_context(|| packages.join(", "))?;
    }
    if problems.is_empty() && !tftpd().is_file() {
        eprintln!("set-up: building crates.io's tftpd into target/tools");
        check(
            Command::new("cargo")
                .args(["install", "--quiet", "--locked", "--version", "1.0.0", "tftpd", "--root"])
                .arg(paths::target("tools")),
        )?;
    }
    Ok(problems)
}

/// A peer, ready to be given arguments.
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    let libraries =
        paths::target("peers").join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

/// crates.io's tftpd.
pub(crate) fn tftpd() -> PathBuf {
    paths::target("tools/bin/tftpd")
}

fn program(name: &str) -> PathBuf {
    paths::target("peers/usr/sbin").join(name)
}

/// Downloads packages with what they need beyond the installed ones, and unpacks them.
fn unpack(packages: &[&str]) -> anyhow::Result<()> {
    let root = paths::target("peers");
    let archives = root.join("archives");
    std::fs::create_dir_all(archives.join("partial"))?;
    check(
        Command::new("apt-get")
            .args(["-qq", "-y", "--no-install-recommends", "--download-only", "-o"])
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(["-o", "APT::Sandbox::User=root", "install"])
            .args(packages)
            .stdout(Stdio::null()),
    )?;
    for entry in std::fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            check(Command::new("dpkg-deb").arg("--extract").args([&path, &root]))?;
        }
    }
    Ok(())
}
