//! `cargo xtask test`: every test, the cheap ones first.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::setup::Need;
use crate::shell::{check, is_root};
use crate::{paths, prepare};

/// Run every test: host tests, then clients and servers in namespaces, then real firmware
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed to each `cargo test` (a test's name, then `-- --nocapture`, …)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn test(arguments: &Arguments) -> Result<ExitCode> {
    prepare(&[Need::Lab, Need::Test])?;
    let skipped = ::lab::target().join("skipped-tests");
    let _ = std::fs::remove_file(&skipped);

    // pxe-ebpf has no host target; what it shares with the host is tested in pxe-common.
    let machines =
        ["firmware", "two_stages", "systemd", "kernels", "storage", "docker_node", "trust", "rescue", "why"];
    let others = across_crates(&machines)?;
    let tests = |names: &[&'static str]| names.iter().flat_map(|name| ["--test", *name]).collect::<Vec<_>>();
    let lab = &["--package", "bridgehead-tests"];
    let steps: [Vec<&str>; 5] = [
        vec!["--package", "pxe-common"],
        vec![
            "--workspace",
            "--exclude",
            "pxe-common",
            "--exclude",
            "pxe-ebpf",
            "--exclude",
            "bridgehead-tests",
        ],
        [lab, &["--lib"][..], &tests(&["world"])].concat(),
        lab.iter().copied().chain(others.iter().flat_map(|name| ["--test", name])).collect(),
        [&lab[..], &tests(&machines)].concat(),
    ];
    for step in steps {
        let mut cargo = Command::new("cargo");
        if step.contains(&machines[0]) {
            // One at a time: emulated processors take all that this machine has.
            cargo.env("RUST_TEST_THREADS", "1");
        }
        check(
            cargo
                .arg("test")
                .args(&step)
                .args(&arguments.rest)
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
