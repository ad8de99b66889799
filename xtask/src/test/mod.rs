//! `cargo xtask test`: all tests or some of them, as many at a time as this machine has resources for.

mod choice;
mod output;
mod program;
mod run;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use choice::{Choice, Chosen};
use output::Took;
pub(crate) use program::PACKAGES;
use program::Program;

use crate::setup::{self, Need};
use crate::shell::is_root;
use crate::{assets, build};

/// Run every test, or those that are named
///
/// Host tests first, then clients and servers in namespaces and machines with real firmware. They run side by side: a
/// test says in its source how many emulated machines and processors it needs, and waits until this machine has
/// them. The whole output of a test program that fails is shown; everybody's is in target/test-output. What was
/// skipped, and why, is listed at the end.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test                          every test
  cargo xtask test storage clients          the files tests/tests/storage.rs and clients.rs
  cargo xtask test pxe-common               the tests inside a package
  cargo xtask test flipped_bit              tests with this in their name
  cargo xtask test flipped_bit -- --nocapture")]
pub(crate) struct Arguments {
    /// Packages, files of tests, or parts of tests' names; all tests when none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Also what takes long: the fast path on every kernel, card and mode, in virtual machines (three quarters of an hour)
    #[arg(long)]
    all: bool,
    /// Fail when a test was skipped
    #[arg(long)]
    no_skips: bool,
    /// Passed to each test program (--nocapture, --include-ignored, …)
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// The tests of the appliance in virtual machines.
const KERNELS: &str = "other_kernels";
/// How many of the longest tests are listed.
const LONGEST: usize = 12;
/// The source of the daemon's own tests, which also run on other kernels.
const DAEMON: &str = "pxe-userspace/src/lib.rs";

pub(crate) fn test(arguments: &Arguments) -> Result<ExitCode> {
    let begun = Instant::now();
    let choice = Choice::of(&arguments.names, arguments.all)?;
    setup::ensure(&[Need::Build, Need::Assets, Need::Lab, Need::Test])?;
    if arguments.all {
        setup::ensure(&[Need::Kernels])?;
    }
    let programs = build_everything(&choice)?;
    let daemons_own = programs.iter().find(|p| p.source.ends_with(DAEMON)).map(|p| p.path.clone());
    let mut chosen = choice.among(programs)?;
    if arguments.all {
        let daemons_own = daemons_own.with_context(|| format!("cargo made no program of {DAEMON}"))?;
        for Chosen { program, arguments, variables, .. } in &mut chosen {
            if program.name == KERNELS {
                arguments.push("--include-ignored".to_owned());
                variables.push(("BRIDGEHEAD_UNIT_TESTS", daemons_own.clone()));
            }
        }
    }
    println!("built in {} s", begun.elapsed().as_secs());
    let results = run::all(&chosen, &arguments.rest);
    ensure!(is_root() || !arguments.no_skips, "tests that need root were skipped");
    Ok(tell(&results?, arguments.no_skips, begun))
}

/// Reports what failed and what was skipped.
fn tell(results: &run::Results, no_skips: bool, begun: Instant) -> ExitCode {
    let run::Results { passed, failed, skipped, took } = results;
    let mut longest: Vec<_> = took.iter().collect();
    longest.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    if longest.len() > LONGEST {
        println!(
            "\nlongest, without the time that each waited for its share of this machine (of a processor):"
        );
        for Took { test, seconds, processor } in longest.into_iter().take(LONGEST) {
            let processor = processor.map_or_else(|| "?".to_owned(), |p| format!("{p:.0}"));
            println!("{seconds:5.0} s ({processor:>4} s)  {test}");
        }
        let processor: f64 = took.iter().filter_map(|took| took.processor).sum();
        println!("all lab tests: {processor:.0} s of a processor");
    }
    println!("\n{passed} tests passed in {} s, with what was built", begun.elapsed().as_secs());
    match skipped.is_empty() {
        true => println!("no test was skipped"),
        false => println!("skipped:\n  {}", skipped.join("\n  ")),
    }
    if !failed.is_empty() {
        println!("failed:\n  {}", failed.join("\n  "));
    }
    if failed.is_empty() && (skipped.is_empty() || !no_skips) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Builds everything that tests run, and the tests. Cargo works in two target directories at the same time, because
/// each build has a phase in which it uses one processor.
fn build_everything(choice: &Choice) -> Result<Vec<Program>> {
    build::kernel_programs()?;
    std::thread::scope(|scope| {
        let product = scope.spawn(|| assets::make().and_then(|()| build::bridgehead()));
        let tests = program::build(choice);
        product.join().expect("it does not panic")?;
        tests
    })
}
