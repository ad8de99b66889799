//! `cargo xtask lint`: what a reader would otherwise have to check.

mod cycles;
mod edges;
mod length;
mod source;

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::shell::check;

pub(crate) fn lint() -> Result<ExitCode> {
    let sources = source::read(::lab::workspace(), &edges::source_dirs())?;
    let rules = [
        ("dependency (xtask/src/lint/edges.rs)", edges::check(&sources)?),
        ("rooms (xtask/src/lint/cycles.rs)", cycles::check(&sources)),
        ("length (xtask/src/lint/length.rs)", length::check(&sources)),
    ];
    for violation in rules.iter().flat_map(|(_, broken)| broken) {
        eprintln!("{violation}");
    }
    let broken: Vec<_> =
        rules.iter().filter(|(_, broken)| !broken.is_empty()).map(|(rule, _)| *rule).collect();
    ensure!(broken.is_empty(), "the rules of {} are broken", broken.join(" and of "));

    check(Command::new("cargo").args(["fmt", "--all", "--check"]))?;
    let host = ["--workspace", "--exclude", "pxe-ebpf"];
    check(Command::new("cargo").arg("clippy").args(host).args(["--all-targets", "--", "-D", "warnings"]))?;
    // The kernel programs have no std, so no unwinding either. Clippy sees them on the host's target: there is
    // no clippy for the compiler that targets BPF (docs/decisions/001-toolchain.md).
    check(
        Command::new("cargo")
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            .args(["clippy", "--package", "pxe-ebpf", "--no-deps", "--target-dir"])
            .arg(::lab::target().join("clippy-ebpf"))
            .args(["--", "-D", "warnings"]),
    )?;
    check(Command::new("cargo").env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--no-deps"]).args(host))?;
    Ok(ExitCode::SUCCESS)
}
