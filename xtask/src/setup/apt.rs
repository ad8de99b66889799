//! Debian's package manager.

use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::pieces::{Piece, program};
use crate::shell::is_root;

/// Runs apt so that no package starts a service: a policy that forbids it (invoke-rc.d(8)) is in place while apt runs,
/// and is removed by the shell's trap however apt ends. An administrator's own policy is left alone; one that a killed
/// run left behind is removed. A fresh machine's daily update may hold dpkg's lock, so apt waits for it.
const INSTALL: &str = r#"
set -e
policy=/usr/sbin/policy-rc.d
mark='# put here by cargo xtask setup'
if ! [ -e $policy ] || grep -qsF "$mark" $policy; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update || echo 'apt-get update failed; trying with the lists that are there' >&2
apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 install "$@"
"#;

/// Installs the missing pieces. If that is not possible, returns what to do instead, line by line.
pub(super) fn install(missing: &[&Piece]) -> anyhow::Result<Vec<String>> {
    let packages: Vec<&str> = missing.iter().map(|p| p.package).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(obstacle) = obstacle() {
        let mut lines: Vec<String> = missing.iter().map(|p| format!("{}: {}", p.package, p.why)).collect();
        lines
            .push(format!("{obstacle}; these are Debian's packages: apt-get install {}", packages.join(" ")));
        return Ok(lines);
    }
    for piece in missing {
        eprintln!("set-up: installing {} ({})", piece.package, piece.why);
    }
    install_packages(&packages)?;
    Ok(Vec::new())
}

/// Installs packages by name.
pub(super) fn install_packages(packages: &[&str]) -> anyhow::Result<()> {
    // For two concurrent set-ups: the first to end would remove the other's policy.
    let turn = File::open("/usr/sbin").context("opening /usr/sbin")?;
    turn.lock().context("waiting for another set-up")?;
    let status = Command::new("/bin/sh")
        .args(["-c", INSTALL, "sh"])
        .args(packages)
        .stdout(Stdio::null())
        .status()
        .context("running a shell")?;
    ensure!(
        status.success(),
        "apt-get could not install {} ({status}); its own message is above",
        packages.join(" ")
    );
    Ok(())
}

/// Why packages can't be installed here.
pub(super) fn obstacle() -> Option<&'static str> {
    if program("apt-get").is_none() {
        return Some("there is no apt-get here");
    }
    (!is_root()).then_some("apt-get needs root")
}
