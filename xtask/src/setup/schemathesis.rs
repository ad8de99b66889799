//! Schemathesis, which makes requests from the API's OpenAPI document and judges the answers, in a virtual environment of
//! its own below `target/tools`. It comes from PyPI; Debian has no package of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use ::lab::peers::{SCHEMATHESIS, schemathesis};

use crate::shell::check;

/// Installs it, if it is missing.
pub(super) fn ensure() -> anyhow::Result<()> {
    let program = schemathesis();
    let home = program.parent().and_then(Path::parent).context("it lies in its environment")?;
    // Written last, because pip makes the program before all that it needs is there.
    let whole = home.join("whole");
    if whole.is_file() && program.is_file() {
        return Ok(());
    }
    eprintln!("set-up: installing schemathesis {SCHEMATHESIS} from PyPI into {}", home.display());
    let _ = fs::remove_dir_all(home);
    check(Command::new("python3").args(["-m", "venv"]).arg(home))?;
    check(
        Command::new(home.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .arg(format!("schemathesis=={SCHEMATHESIS}"))
            .stdout(Stdio::null()),
    )?;
    Ok(fs::write(whole, SCHEMATHESIS)?)
}
