//! `cargo xtask fuzz`: the targets of `fuzz/`, one after the other.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::paths;
use crate::shell::check;

/// Fuzz every parser and the TFTP session, from the seeds in fuzz/seeds
///
/// What is found on the way stays in target/fuzz-corpus and begins the next run; an input that breaks a target
/// lands in target/fuzz-artifacts. Needs a nightly toolchain (for the address sanitizer) and cargo-fuzz, which
/// is built into target/tools when it is not installed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Minutes for each target
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// The targets, all of them unless named
    target: Vec<String>,
}

pub(crate) fn fuzz(arguments: &Arguments) -> Result<ExitCode> {
    let path = tools()?;
    // The daemon embeds the kernel programs, also in a fuzz target.
    if !paths::target("bpf/pxe-ebpf").is_file() {
        crate::build::kernel_programs()?;
    }
    let all = targets()?;
    for name in &arguments.target {
        ensure!(all.contains(name), "no target {name}; there are {}", all.join(", "));
    }
    check(&mut cargo_fuzz(&path, "build", &[]))?;
    let chosen = if arguments.target.is_empty() { &all } else { &arguments.target };
    let mut broken = Vec::new();
    for name in chosen {
        println!("\n{name}, for {} min", arguments.minutes);
        if !run(&path, name, arguments.minutes)? {
            broken.push(name.as_str());
        }
    }
    if broken.is_empty() {
        println!("\nnothing found in {}", chosen.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    bail!("broken: {}; the inputs are in target/fuzz-artifacts", broken.join(", "))
}

/// Whether the target held.
fn run(path: &Path, name: &str, minutes: u32) -> Result<bool> {
    let corpus = paths::target("fuzz-corpus").join(name);
    let artifacts = paths::target("fuzz-artifacts").join(name);
    for dir in [&corpus, &artifacts] {
        std::fs::create_dir_all(dir)?;
    }
    let mut command = cargo_fuzz(path, "run", &[name]);
    command.arg(&corpus);
    let seeds = paths::root().join("fuzz/seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    // Nothing that is parsed here may take seconds.
    command.args(["--", "-timeout=5", "-print_final_stats=1"]);
    command.arg(format!("-max_total_time={}", u64::from(minutes) * 60));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    Ok(command.status().context("starting cargo fuzz")?.success())
}

fn cargo_fuzz(path: &Path, command: &str, arguments: &[&str]) -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "fuzz", command, "--fuzz-dir", "fuzz", "--target-dir"]);
    cargo.arg(paths::target("fuzz")).args(arguments).current_dir(paths::root());
    cargo.env("PATH", path).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    cargo
}

/// A PATH on which there is cargo-fuzz.
fn tools() -> Result<PathBuf> {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    ensure!(
        nightly.is_ok_and(|output| output.status.success()),
        "fuzzing needs a nightly compiler: rustup toolchain install nightly --profile minimal"
    );
    let bin = paths::target("tools/bin");
    if crate::setup::program("cargo-fuzz").is_none() && !bin.join("cargo-fuzz").is_file() {
        eprintln!("set-up: building cargo-fuzz into target/tools");
        let mut install = Command::new("cargo");
        install.args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]);
        check(install.arg(paths::target("tools")))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(dirs)?.into())
}

/// The targets, by the files that hold them.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(paths::root().join("fuzz/targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}
