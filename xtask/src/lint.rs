//! `cargo xtask lint`: what a reader would otherwise have to check.

mod edges;

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::shell::check;

pub(crate) fn lint() -> Result<ExitCode> {
    let broken = edges::check()?;
    for violation in &broken {
        eprintln!("{violation}");
    }
    ensure!(broken.is_empty(), "the rules of dependency (xtask/src/lint/edges.rs) are broken");

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
