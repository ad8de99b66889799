//! `cargo xtask test`: every test, the cheap ones first.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::setup::Need;
use crate::shell::{check, is_root};
use crate::{paths, prepare};

/// Run every test: host tests, then clients and servers in namespaces, then real firmware
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also what takes long: the fast path on every kernel, card and mode, in virtual machines (three quarters of an hour)
    #[arg(long)]
    all: bool,
    /// Passed to each `cargo test` (a test's name, then `-- --nocapture`, …)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// What has tests of its own. pxe-ebpf has no host target; what it shares with the host is tested in pxe-common.
const CRATES: &[&str] =
    &["--workspace", "--exclude", "pxe-common", "--exclude", "pxe-ebpf", "--exclude", "bridgehead-tests"];

/// The tests of the appliance in virtual machines.
const KERNELS: &str = "other_kernels";

/// What the daemon's own tests are compiled from.
const DAEMON: &str = "pxe-userspace/src/lib.rs";

pub(crate) fn test(arguments: &Arguments) -> Result<ExitCode> {
    prepare(if arguments.all { &[Need::Lab, Need::Test, Need::Kernels] } else { &[Need::Lab, Need::Test] })?;
    let skipped = ::lab::target().join("skipped-tests");
    let _ = std::fs::remove_file(&skipped);

    let machines =
        ["firmware", "two_stages", "systemd", "kernels", "storage", "docker_node", "trust", "rescue", "why"];
    let others = across_crates(&[&machines[..], &[KERNELS]].concat())?;
    let tests = |names: &[&'static str]| names.iter().flat_map(|name| ["--test", *name]).collect::<Vec<_>>();
    let lab = &["--package", "bridgehead-tests"];
    let steps: [Vec<&str>; 6] = [
        vec!["--package", "pxe-common"],
        CRATES.to_vec(),
        [lab, &["--lib"][..], &tests(&["world"])].concat(),
        lab.iter().copied().chain(others.iter().flat_map(|name| ["--test", name])).collect(),
        [&lab[..], &tests(&machines)].concat(),
        [&lab[..], &tests(&[KERNELS])].concat(),
    ];
    let daemons_own = if arguments.all { daemons_own_tests()? } else { PathBuf::new() };
    for step in steps {
        let mut cargo = Command::new("cargo");
        let kernels = step.contains(&KERNELS);
        if kernels || step.contains(&machines[0]) {
            // One at a time: emulated processors take all that this machine has.
            cargo.env("RUST_TEST_THREADS", "1");
        }
        let mut rest = arguments.rest.clone();
        if kernels && arguments.all {
            if !rest.iter().any(|argument| argument == "--") {
                rest.push("--".into());
            }
            rest.push("--include-ignored".into());
            cargo.env("BRIDGEHEAD_UNIT_TESTS", &daemons_own);
        }
        check(
            cargo
                .arg("test")
                .args(&step)
                .args(&rest)
                .env("BRIDGEHEAD_BIN", paths::target("release/bridgehead"))
                .env("BRIDGEHEAD_ASSETS", paths::target("assets"))
                .env("BRIDGEHEAD_SKIPPED", &skipped),
        )?;
    }
    match std::fs::read_to_string(&skipped) {
        Ok(list) => println!("\nskipped:\n{list}"),
        // All programs are here now. Tests outside the lab that need root skip themselves untold.
        Err(_) if !is_root() => println!("\nwithout root: tests that need it were skipped"),
        Err(_) => println!("\nno test was skipped"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the daemon's own tests are built: they run on other kernels, too.
fn daemons_own_tests() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    // With the very features of the step that runs them here.
    cargo.arg("test").args(CRATES).args(["--no-run", "--message-format=json"]).stderr(Stdio::inherit());
    let output = cargo.output().context("starting cargo")?;
    ensure!(output.status.success(), "the daemon's own tests could not be built ({})", output.status);
    let messages =
        output.stdout.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Value>(l).ok());
    let built = messages.filter(|m| m["target"]["src_path"].as_str().is_some_and(|p| p.ends_with(DAEMON)));
    let mut programs = built.filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    programs.next().with_context(|| format!("cargo names no program that it made of {DAEMON}"))
}

/// The tests across crates, but for the lab's own and those of virtual machines.
fn across_crates(machines: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(paths::root().join("tests/tests"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.retain(|name| name != "world" && !machines.contains(&name.as_str()));
    Ok(names)
}
