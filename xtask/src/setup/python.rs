//! What the tests use of PyPI, each in a virtual environment of its own below `target/tools`: Debian has no package of
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::lab::peers::{SCHEMATHESIS, schemathesis};
use anyhow::Context as _;

use crate::paths;
use crate::shell::check;

/// The version that tests were written against, which is in the directory's name, too.
const SUSHY_TOOLS: &str = "2.2.0";

/// Debian's: another one that stands first in `PATH` may be gone tomorrow.
const PYTHON: &str = "/usr/bin/python3";

/// Makes the environments that are missing: sushy-tools' emulator, a Redfish service that is not ours, and Schemathesis,
/// which makes requests from the API's OpenAPI document and judges the answers. Returns a line if that is not possible
/// here.
pub(super) fn ensure() -> anyhow::Result<Option<String>> {
    let sushy_tools = paths::target("tools").join(format!("sushy-tools-{SUSHY_TOOLS}"));
    let schemathesis = home(&schemathesis())?;
    for (name, version, home) in
        [("sushy-tools", SUSHY_TOOLS, sushy_tools), ("schemathesis", SCHEMATHESIS, schemathesis)]
    {
        // Written last, because pip makes programs before all that they need is there.
        let whole = home.join("whole");
        if whole.is_file() {
            continue;
        }
        if !Path::new(PYTHON).exists() {
            return Ok(Some(format!("{name} {version} from PyPI, for the tests: {PYTHON} is not here")));
        }
        install(name, version, &home)?;
        fs::write(whole, version)?;
    }
    Ok(None)
}

fn install(name: &str, version: &str, home: &Path) -> anyhow::Result<()> {
    eprintln!("set-up: installing {name} {version} from PyPI into {}", home.display());
    let _ = fs::remove_dir_all(home);
    let quiet = |command: &mut Command| check(command.stdout(Stdio::null()));
    quiet(Command::new(PYTHON).args(["-m", "venv"]).arg(home)).context("making a virtual environment")?;
    let mut pip = Command::new(home.join("bin/python3"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    quiet(pip.arg(format!("{name}=={version}"))).context("pip")
}

/// The environment of a program in it.
fn home(program: &Path) -> anyhow::Result<PathBuf> {
    Ok(program.parent().and_then(Path::parent).context("it lies in its environment")?.to_owned())
}
