//! What the tests use of PyPI, in a virtual environment below `target/tools` and not installed: sushy-tools' emulator, a
//! Redfish service that is not ours.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::paths;
use crate::shell::check;

/// The version that tests were written against, which is in the directory's name, too.
const SUSHY_TOOLS: &str = "2.2.0";

/// Debian's: another one that stands first in `PATH` may be gone tomorrow.
const PYTHON: &str = "/usr/bin/python3";

/// Makes the environment if it is missing. Returns a line if that is not possible here.
pub(super) fn ensure() -> anyhow::Result<Option<String>> {
    let home = paths::target("tools").join(format!("sushy-tools-{SUSHY_TOOLS}"));
    // pip writes programs last.
    if home.join("bin/sushy-emulator").is_file() {
        return Ok(None);
    }
    if !Path::new(PYTHON).exists() {
        return Ok(Some(format!(
            "sushy-tools {SUSHY_TOOLS} from PyPI, a Redfish service for the tests: {PYTHON} is not here"
        )));
    }
    eprintln!("set-up: installing sushy-tools {SUSHY_TOOLS} from PyPI into {}", home.display());
    let _ = std::fs::remove_dir_all(&home);
    let quiet = |command: &mut Command| check(command.stdout(Stdio::null()));
    quiet(Command::new(PYTHON).args(["-m", "venv"]).arg(&home)).context("making a virtual environment")?;
    let mut pip = Command::new(home.join("bin/python3"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    quiet(pip.arg(format!("sushy-tools=={SUSHY_TOOLS}"))).context("pip")?;
    Ok(None)
}
