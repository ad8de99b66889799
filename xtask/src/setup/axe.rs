//! axe-core, which finds what of a page is not accessible: one file, from npm into `target/axe-core`. The tests give it to
//! the browser; no program of ours contains it.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::pieces::program;
use crate::{paths, shell::check};

const VERSION: &str = "4.14.1";

/// Fetches it if it is missing. Returns a line if that is not possible here.
pub(super) fn ensure() -> anyhow::Result<Option<String>> {
    let home = paths::target("axe-core");
    let (script, version) = (home.join("axe.min.js"), home.join("version"));
    if script.is_file() && fs::read_to_string(&version).is_ok_and(|its| its == VERSION) {
        return Ok(None);
    }
    if program("npm").is_none() {
        return Ok(Some(format!(
            "axe-core {VERSION}, for the page's tests: npm fetches it, and is not here"
        )));
    }
    eprintln!("set-up: fetching axe-core {VERSION} into target/axe-core");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home)?;
    check(
        Command::new("npm")
            .args(["pack", "--silent", "--pack-destination"])
            .arg(&home)
            .arg(format!("axe-core@{VERSION}"))
            .stdout(Stdio::null()),
    )?;
    let archive = home.join(format!("axe-core-{VERSION}.tgz"));
    let part = "package/axe.min.js";
    check(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&home)
            .args(["--strip-components=1", part]),
    )?;
    fs::remove_file(&archive).context("the archive that npm fetched")?;
    ensure!(script.is_file(), "{} has no {part}", archive.display());
    Ok(fs::write(version, VERSION).map(|()| None)?)
}
