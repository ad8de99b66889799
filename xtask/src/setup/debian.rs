//! The tree that the tests' systemd image is made from: a minimal Debian of this machine's release with systemd, by
//! debootstrap. It is packed as `target/debian.tar`, without what differs between runs, so that the same packages give
//! the same bytes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::apt;
use crate::paths;
use crate::shell::check;

/// In addition to debootstrap's minimal set: an init, and an HTTP server.
const PACKAGES: &str = "systemd,systemd-sysv,udev,busybox-static";

/// Files that depend on this machine or the date, or that no image needs.
const LEFT_OUT: [&str; 10] = [
    "./dev/*",
    "./etc/hostname",
    "./etc/machine-id",
    "./etc/resolv.conf",
    "./run/*",
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./var/cache/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
];

/// Builds the tree if it is missing. Returns a line if that is not possible here.
pub(super) fn ensure() -> anyhow::Result<Option<String>> {
    let tar = paths::target("debian.tar");
    if tar.is_file() {
        return Ok(None);
    }
    if let Some(obstacle) = apt::obstacle() {
        return Ok(Some(format!("a Debian tree with systemd for the tests, by debootstrap; {obstacle}")));
    }
    let suite = suite()?;
    eprintln!("set-up: making {} by debootstrap (a minute or two)", tar.display());
    let scratch = paths::target(&format!("debian-{}", std::process::id()));
    let made = make(&suite, &scratch, &tar);
    let _ = fs::remove_dir_all(&scratch);
    made.with_context(|| format!("making {}", tar.display()))?;
    Ok(None)
}

fn make(suite: &str, scratch: &Path, tar: &Path) -> anyhow::Result<()> {
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree)?;
    // debootstrap mounts /proc in the tree. The mount namespace removes it, however debootstrap ends.
    check(
        Command::new("unshare")
            .args(["--mount", "--", "debootstrap", "--variant=minbase"])
            .arg(format!("--include={PACKAGES}"))
            .arg(suite)
            .arg(&tree)
            .env("SOURCE_DATE_EPOCH", "0")
            .stdout(Stdio::null()),
    )?;
    let part = scratch.join("tar");
    let mut pack = Command::new("tar");
    pack.args(["--sort=name", "--mtime=@0", "--numeric-owner", "--anchored"]);
    pack.args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}")));
    check(pack.arg("-C").arg(&tree).arg("-cf").arg(&part).arg("."))?;
    Ok(fs::rename(&part, tar)?)
}

/// This machine's own release, by its code name (os-release(5)).
fn suite() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME: is this Debian?")?.trim_matches('"').to_owned())
}
