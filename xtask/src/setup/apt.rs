//! Debian's package manager.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::pieces::{Piece, program};

/// Runs apt so that no package starts a service: a policy that forbids it (invoke-rc.d(8)) is in
/// place while apt runs and removed by the shell's trap however it ends. An administrator's own
/// policy is left alone; one that an earlier run left behind when it was killed is ours to remove.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
mark='# put here by cargo xtask setup'
if ! [ -e $policy ] || grep -qsF "$mark" $policy; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >$policy && chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update || echo 'apt-get update failed; trying with the lists that are there' >&2
apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@"
"#;

/// Installs the missing pieces. Where that is not possible, returns a line for each.
pub(super) fn install(missing: &[&Piece]) -> anyhow::Result<Vec<String>> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    if !usable() {
        let command = |p: &Piece| format!("{} ({}): apt-get install {}", p.package, p.why, p.package);
        return Ok(missing.iter().map(|p| command(p)).collect());
    }
    for piece in missing {
        eprintln!("set-up: installing {} ({})", piece.package, piece.why);
    }
    let packages: Vec<&str> = missing.iter().map(|p| p.package).collect();
    install_packages(&packages)?;
    Ok(Vec::new())
}

/// Installs packages by name.
pub(super) fn install_packages(packages: &[&str]) -> anyhow::Result<()> {
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

/// Whether packages can be installed from here.
pub(super) fn usable() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    root && program("apt-get").is_some()
}
