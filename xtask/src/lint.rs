//! `cargo xtask lint`: rules that a reviewer would otherwise have to check.

mod cycles;
mod edges;
mod examples;
mod length;
mod links;
mod metadata;
mod source;
mod unused;
mod wildcards;

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::shell::check;
use metadata::Metadata;

/// Check formatting, clippy, the documentation and the house's own rules, with warnings as errors
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also the licences, versions and sources of all crates, with cargo-deny, which is built if it is not there
    #[arg(long)]
    all: bool,
}

/// The version that deny.toml was written for.
const CARGO_DENY: &str = "0.18.9";

pub(crate) fn lint(arguments: &Arguments) -> Result<ExitCode> {
    let root = ::lab::workspace();
    let sources = source::read(root, &edges::source_dirs())?;
    let metadata = Metadata::read()?;
    let rules = [
        ("dependency (xtask/src/lint/edges.rs)", edges::check(&sources, &metadata)),
        ("rooms (xtask/src/lint/cycles.rs)", cycles::check(&sources)),
        ("length (xtask/src/lint/length.rs)", length::check(&sources)),
        ("examples (xtask/src/lint/examples.rs)", examples::check(&sources)),
        ("wildcards (xtask/src/lint/wildcards.rs)", wildcards::check(&sources)),
        ("links (xtask/src/lint/links.rs)", links::check(root)?),
        ("unused crates (xtask/src/lint/unused.rs)", unused::check(root, &metadata)?),
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
    // The kernel programs have no std, and so no unwinding. Clippy checks them for the host's target, because there is
    // no clippy for the compiler that targets BPF (docs/decisions/001-toolchain.md).
    check(
        Command::new("cargo")
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            .args(["clippy", "--package", "pxe-ebpf", "--no-deps", "--target-dir"])
            .arg(::lab::target().join("clippy-ebpf"))
            .args(["--", "-D", "warnings"]),
    )?;
    check(Command::new("cargo").env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--no-deps"]).args(host))?;
    if arguments.all {
        check(&mut deny()?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo deny` on everything that is compiled in. The list of advisories is on another site, and is only needed for
/// `advisories`.
fn deny() -> Result<Command> {
    let tools = crate::paths::target("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        eprintln!("lint: building cargo-deny {CARGO_DENY} into target/tools");
        let mut install = Command::new("cargo");
        check(
            install
                .args(["install", "--locked", "cargo-deny", "--version", CARGO_DENY, "--root"])
                .arg(&tools),
        )?;
    }
    let mut deny = Command::new(program);
    deny.args(["--all-features", "check", "licenses", "bans", "sources"]);
    Ok(deny)
}
