//! Test programs, built by Cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::choice::Choice;
use crate::paths;

/// The packages with tests. pxe-ebpf has no host target; what it shares with the host is tested in pxe-common. All are
/// in one build, so that each shared dependency is built once, with the features of all.
pub(crate) const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "pxe-ebpf"];

/// The lab's package, whose tests reserve this machine's resources themselves.
const LAB: &str = "tests";

/// A test program.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The package's name for its own tests, the file's for those in its `tests/`.
    pub(super) name: String,
    /// The program's root source file.
    pub(super) source: PathBuf,
    /// The package's directory, in which Cargo runs its tests.
    pub(super) directory: PathBuf,
    pub(super) path: PathBuf,
    /// Its tests declare what they need.
    pub(super) says_needs: bool,
}

/// Builds the programs that may contain a chosen test.
pub(super) fn build(choice: &Choice) -> Result<Vec<Program>> {
    let mut cargo = Command::new("cargo");
    cargo.arg("test").args(PACKAGES).args(choice.targets()).args(["--no-run", "--message-format=json"]);
    // Two concurrent builds would draw their progress bars over each other.
    cargo.env("CARGO_TERM_PROGRESS_WHEN", "never").current_dir(paths::root()).stderr(Stdio::inherit());
    let output = cargo.output().context("starting cargo")?;
    ensure!(output.status.success(), "the tests could not be built ({})", output.status);
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let messages = messages.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut programs: Vec<Program> = messages.filter_map(|message| program(&message)).collect();
    programs.sort_by(|a, b| (order(a), &a.name).cmp(&(order(b), &b.name)));
    Ok(programs)
}

/// Reads Cargo's message about a build artifact, if that is a test program.
fn program(message: &Value) -> Option<Program> {
    let path = PathBuf::from(message["executable"].as_str()?);
    if message["profile"]["test"] != true {
        return None;
    }
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    let of_package = directory.file_name()?.to_str()?;
    let target = &message["target"];
    let name = if target["kind"][0] == "test" { target["name"].as_str()? } else { of_package };
    let source = PathBuf::from(target["src_path"].as_str()?);
    let says_needs = of_package == LAB && target["kind"][0] == "test";
    Some(Program { name: name.to_owned(), source, directory: directory.to_owned(), path, says_needs })
}

/// A program's place in the order: first those that fail soonest, then those that take longest, so that no long one is
/// left at the end with nothing to run beside it.
fn order(program: &Program) -> usize {
    const LONGEST: [&str; 3] = ["storage", "docker_node", "two_stages"];
    match LONGEST.iter().position(|name| *name == program.name) {
        _ if !program.says_needs => 0,
        Some(place) => 1 + place,
        None => 1 + LONGEST.len(),
    }
}
