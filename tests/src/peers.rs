//! Other projects' programs, which `cargo xtask setup` unpacked into `target/peers` and did not install.

use std::path::PathBuf;
use std::process::Command;

/// Where `name` is, or would be.
pub fn program(name: &str) -> PathBuf {
    let in_directory = |directory: &str| crate::target().join("peers/usr").join(directory).join(name);
    let user = in_directory("bin");
    if user.is_file() { user } else { in_directory("sbin") }
}

/// The version of schemathesis that set-up installs.
pub const SCHEMATHESIS: &str = "4.32.5";

/// Schemathesis' program, in a virtual environment of its own (Python's venv).
pub fn schemathesis() -> PathBuf {
    crate::target().join(format!("tools/schemathesis-{SCHEMATHESIS}/bin/st"))
}

/// A command for one of them, without arguments yet.
pub fn command(name: &str) -> Command {
    let libraries = crate::target().join("peers/usr/lib");
    let triplet = libraries.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    // NFS-Ganesha's own library is not with the others.
    let path = format!("{}:{}", triplet.display(), libraries.join("ganesha").display());
    let mut command = Command::new(program(name));
    command.env("LD_LIBRARY_PATH", path);
    command
}
