//! The servers that benchmarks compare with and that tests use, unpacked into `target/peers` and not installed:
//! Debian's tftpd-hpa and atftpd conflict, and none of them should start as a service.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

pub(crate) use ::lab::peers::{command, program};

use super::apt;
use super::pieces::Need;
use crate::{paths, shell::check};

/// Packages that can be resolved together, a program of each, and what needs them.
const SETS: [(Need, &[&str], &[&str]); 4] = [
    (Need::Peers, &["tftpd-hpa", "kea-dhcp4-server", "kea-admin"], &["in.tftpd", "kea-dhcp4", "perfdhcp"]),
    (Need::Peers, &["atftpd"], &["atftpd"]),
    (Need::Test, &["nfs-ganesha", "nfs-ganesha-vfs", "tgt"], &["ganesha.nfsd", "tgtd", "tgtadm"]),
    (Need::Test, &["prometheus"], &["promtool"]),
];

/// Makes the peers available. Returns a line for each that is not.
pub(super) fn ensure(needs: &[Need]) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (_, packages, programs) in SETS.into_iter().filter(|(need, ..)| needs.contains(need)) {
        if programs.iter().all(|p| program(p).is_file()) {
            continue;
        }
        if let Some(obstacle) = apt::obstacle() {
            let packages = packages.join(", ");
            problems.push(format!(
                "{packages}: peers of the benchmarks and tests, from Debian's packages; {obstacle}"
            ));
            continue;
        }
        eprintln!("set-up: unpacking {} into target/peers", packages.join(", "));
        unpack(packages).with_context(|| packages.join(", "))?;
    }
    if needs.contains(&Need::Peers) && problems.is_empty() && !tftpd().is_file() {
        eprintln!("set-up: building crates.io's tftpd into target/tools");
        check(
            Command::new("cargo")
                .args(["install", "--quiet", "--locked", "--version", "1.0.0", "tftpd", "--root"])
                .arg(paths::target("tools")),
        )?;
    }
    Ok(problems)
}

/// The tftpd from crates.io.
pub(crate) fn tftpd() -> PathBuf {
    paths::target("tools/bin/tftpd")
}

/// Downloads packages with their dependencies that are not installed, and unpacks them.
fn unpack(packages: &[&str]) -> anyhow::Result<()> {
    let root = paths::target("peers");
    let archives = root.join("archives");
    std::fs::create_dir_all(archives.join("partial"))?;
    check(
        Command::new("apt-get")
            .args(["-qq", "-y", "--no-install-recommends", "--download-only", "-o"])
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            // Needed for installed packages, which apt would not fetch otherwise.
            .args(["-o", "APT::Sandbox::User=root", "--reinstall", "install"])
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
