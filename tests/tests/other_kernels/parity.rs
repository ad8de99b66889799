//! The daemon's own tests of its programs, one frame at a time, on the kernel of another release.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::guest::{Card, Guest, Options, Suite};
use lab::world::World;

/// The path of the test program, set by `cargo xtask test`.
const PROGRAM: &str = "BRIDGEHEAD_UNIT_TESTS";
/// The tests that run frames through the programs.
const TESTS: &str = "dataplane:: parity::";
/// What they need in addition to BusyBox.
const TOOLS: [&str; 2] = ["ip", "tc"];
/// One reads the object with the programs, which is the same everywhere; one needs 6 GiB of memory.
const NOT_THESE: [&str; 2] = ["dataplane::stack_tests", "a_blob_of_more_than_four_gibibytes"];

pub(crate) fn programs_and_daemon_say_the_same(world: &World, suite: Suite) -> Result<()> {
    let program = std::env::var_os(PROGRAM).map(PathBuf::from);
    let program =
        program.with_context(|| format!("{PROGRAM} is not set: `cargo xtask test --all` sets it"))?;
    let mut options = Options::new(suite, Card::VIRTIO)?;
    options.memory_mib = 2048;
    options.programs = vec![(program, "unit-tests".into())];
    for tool in TOOLS {
        options.programs.push((in_path(tool)?, tool.into()));
    }
    let corpus = lab::workspace().join("tests/corpus");
    // They look for it at the path of the sources.
    let package = lab::workspace().join("pxe-userspace");
    options.files = vec![(corpus.clone(), corpus.display().to_string())];
    let guest = Guest::boot(world, &options)?;
    guest.text(&format!("mkdir -p {}", package.display()))?;
    let skip: String = NOT_THESE.iter().map(|name| format!("--skip {name} ")).collect();
    let ran = guest.run_for(
        Duration::from_secs(1800),
        &format!("cd {} && unit-tests --test-threads 1 --nocapture {skip} {TESTS} 2>&1", package.display()),
    )?;
    let said = String::from_utf8_lossy(&ran.stdout);
    let tail: Vec<&str> = said.lines().rev().take(60).collect();
    let tail: String = tail.iter().rev().map(|line| format!("{line}\n")).collect();
    ensure!(ran.success(), "{tail}");
    let skipped: Vec<&str> = said.lines().filter(|line| line.contains("skipped")).collect();
    ensure!(skipped.is_empty(), "{skipped:?}");
    let summary = said.lines().find(|line| line.starts_with("test result:")).context("no result")?;
    ensure!(!summary.contains(" 0 passed"), "{summary}");
    println!("Linux {}: {summary}", guest.kernel());
    Ok(())
}

fn in_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("there is a PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("{program} is not installed"))
}
