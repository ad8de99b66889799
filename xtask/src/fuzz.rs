//! `cargo xtask fuzz`: the targets of `fuzz/`, one per processor at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, bail, ensure};

use crate::paths;
use crate::shell::check;
use crate::test::PACKAGES;

/// Fuzz every parser, the DHCP server and the TFTP session, from the seeds in fuzz/seeds
///
/// What is found on the way stays in target/fuzz-corpus and begins the next run; an input that breaks a target lands in
/// target/fuzz-artifacts, and the target's output in target/fuzz-output.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                            each target for half a minute, as CI does
  cargo xtask fuzz --optimized --runs 10000000 dhcp_request
  cargo xtask fuzz dhcp_reply --input target/fuzz-artifacts/dhcp_reply/crash-…")]
pub(crate) struct Arguments {
    /// Seconds for each target, unless --runs is given
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Inputs for each target
    #[arg(long, value_name = "COUNT")]
    runs: Option<u64>,
    /// Compile as for a release, which takes minutes and makes each run up to ten times as fast
    #[arg(long)]
    optimized: bool,
    /// Run this input only, to see how it breaks the target
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The targets, all of them unless named
    target: Vec<String>,
}

/// The target that the program runs (fuzz/src/main.rs).
const VARIABLE: &str = "BRIDGEHEAD_FUZZ";

pub(crate) fn fuzz(arguments: &Arguments) -> Result<ExitCode> {
    let all = targets()?;
    for name in &arguments.target {
        ensure!(all.contains(name), "no target {name}; there are {}", all.join(", "));
    }
    // The daemon embeds the kernel programs, also in a fuzz target.
    if !paths::target("bpf/pxe-ebpf").is_file() {
        crate::build::kernel_programs()?;
    }
    let program = build(arguments.optimized)?;
    let chosen = if arguments.target.is_empty() { all } else { arguments.target.clone() };
    if let Some(input) = &arguments.input {
        ensure!(chosen.len() == 1, "--input needs one target");
        return Ok(match target(&program, &chosen[0]).arg(input).status()?.success() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        });
    }
    let (waiting, broken) = (Mutex::new(chosen.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            loop {
                let next = waiting.lock().expect("nobody panics with it").next();
                let Some(name) = next else { return Ok(()) };
                if !run(&program, name, arguments)? {
                    broken.lock().expect("nobody panics with it").push(name.as_str());
                }
            }
        };
        let workers: Vec<_> = (0..available_parallelism()?.get()).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    let broken = broken.into_inner().expect("nobody panicked with it");
    if broken.is_empty() {
        println!("nothing found in {}", chosen.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    bail!("broken: {}; the inputs are in target/fuzz-artifacts", broken.join(", "))
}

/// Builds the program with all targets, with the workspace's own crates instrumented.
fn build(optimized: bool) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    // With the features of the whole workspace, as for the tests, so that dependencies are built only once.
    cargo.arg("build").args(PACKAGES).args(["--bin", "bridgehead-fuzz"]).current_dir(paths::root());
    if optimized {
        cargo.arg("--release");
    }
    check(cargo.env("RUSTC_WORKSPACE_WRAPPER", paths::root().join("scripts/rustc-sancov")))?;
    Ok(paths::target(if optimized { "release" } else { "debug" }).join("bridgehead-fuzz"))
}

/// Returns whether the target found no fault.
fn run(program: &Path, name: &str, arguments: &Arguments) -> Result<bool> {
    let [corpus, artifacts, output] =
        ["fuzz-corpus", "fuzz-artifacts", "fuzz-output"].map(|dir| paths::target(dir).join(name));
    for dir in [Some(&*corpus), Some(&*artifacts), output.parent()].into_iter().flatten() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let words = File::create(&output).with_context(|| output.display().to_string())?;
    let mut command = target(program, name);
    command.arg(&corpus).stdout(Stdio::null()).stderr(words);
    let seeds = paths::root().join("fuzz/seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    // Nothing that is parsed here may take seconds.
    command.args(["-timeout=10", "-print_final_stats=1", "-rss_limit_mb=1024"]);
    match arguments.runs {
        Some(runs) => command.arg(format!("-runs={runs}")),
        None => command.arg(format!("-max_total_time={}", arguments.seconds)),
    };
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let held = command.status().with_context(|| format!("starting {}", program.display()))?.success();
    let said = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
    if held {
        let stat = |key: &str| said.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
        let runs = stat("stat::number_of_executed_units:").context("libFuzzer gives no number of runs")?;
        println!("{name}: held in {runs} runs");
    } else {
        println!("{name}: BROKEN\n{said}");
    }
    Ok(held)
}

fn target(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.env(VARIABLE, name);
    command
}

/// The targets, by the names of their files.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(paths::root().join("fuzz/src/targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.retain(|name| name != "mod");
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_and_every_seed_has_its_place() {
        let targets = targets().unwrap();
        let table = std::fs::read_to_string(paths::root().join("fuzz/src/targets/mod.rs")).unwrap();
        for name in &targets {
            assert!(table.contains(&format!("(\"{name}\", {name}::run)")), "{name} is not in the table");
        }
        for seeds in std::fs::read_dir(paths::root().join("fuzz/seeds")).unwrap() {
            let name = seeds.unwrap().file_name().into_string().unwrap();
            assert!(targets.contains(&name), "seeds of {name}, which is no target");
        }
    }
}
