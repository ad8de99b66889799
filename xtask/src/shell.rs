//! Runs other programs, whose output goes where ours goes.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, ensure};

/// Runs `command`, which must succeed.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    ensure!(status.success(), "{} failed ({status})", shown(command));
    Ok(())
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Translates another program's exit status into ours: its code, or 128 plus the signal, as in shells.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Starts this program again with `/usr/sbin` in its PATH, if that lacks it. Debian's `su` keeps the user's PATH, which
/// has no such directory, and dpkg, depmod, dockerd, dnsmasq and dhclient need it.
pub(crate) fn with_administrators_path() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    if directories.iter().any(|d| d == Path::new("/usr/sbin")) {
        return Ok(());
    }
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).env("PATH", env::join_paths(directories)?);
    Err(again.exec()).context("starting cargo xtask again")
}

pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n")
}
