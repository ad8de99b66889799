//! Runs test programs in parallel.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::needs::Needs;

use super::choice::Chosen;
use super::output::{self, Took};
use crate::paths;

/// Concurrent tests of a program in which each waits for what it needs. More would only wait.
const AT_A_TIME: &str = "32";

/// The results of all tests.
#[derive(Default)]
pub(super) struct Results {
    pub(super) passed: usize,
    pub(super) failed: Vec<String>,
    pub(super) skipped: Vec<String>,
    /// What the lab tests report of themselves; the names have their programs before them.
    pub(super) took: Vec<Took>,
}

/// Runs all programs to their end. Tests that don't declare what they need have one processor per program.
pub(super) fn all(chosen: &[Chosen], rest: &[String]) -> Result<Results> {
    let directory = paths::target("test-output");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (n, chosen) in chosen.iter().enumerate() {
            // Taken here, so that the programs start in their order.
            let share = match chosen.program.says_needs {
                true => None,
                false => Some(Needs::of(&[]).processors(1).take()?),
            };
            // Two programs may have the same name: a package's library and its binary.
            let log = directory.join(format!("{n:02}-{}", chosen.program.name));
            running.push(scope.spawn(move || {
                let results = program(chosen, rest, &log, begun);
                drop(share);
                results.with_context(|| format!("running {}", chosen.program.path.display()))
            }));
        }
        let mut all = Results::default();
        for results in running {
            let Results { passed, failed, skipped, took } = results.join().expect("it does not panic")?;
            all.passed += passed;
            all.failed.extend(failed);
            all.skipped.extend(skipped);
            all.took.extend(took);
        }
        Ok(all)
    })
}

fn program(chosen: &Chosen, rest: &[String], log: &Path, begun: Instant) -> Result<Results> {
    let name = &chosen.program.name;
    let mut child = start(chosen, rest, log)?;
    let mut results = Results::default();
    let status = follow(&mut child, log, |line| {
        let Some((test, passed)) = output::end(line) else { return };
        let seconds = begun.elapsed().as_secs();
        match passed {
            true if chosen.program.says_needs => println!("{seconds:5} s  ok      {name}: {test}"),
            true => {}
            false => println!("{seconds:5} s  FAILED  {name}: {test}"),
        }
        match passed {
            true => results.passed += 1,
            false => results.failed.push(format!("{name}: {test}")),
        }
    })?;
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    if !status.success() {
        println!("\n{text}\n{name} ended with {status}\n");
        if results.failed.is_empty() {
            results.failed.push(format!("{name}: {status}"));
        }
    } else if !chosen.program.says_needs && results.passed > 0 {
        println!("{:5} s  ok      {name}: {} tests", begun.elapsed().as_secs(), results.passed);
    }
    let named = |took: Took| Took { test: format!("{name}: {}", took.test), ..took };
    results.took = output::took(&text).map(named).collect();
    results.skipped =
        output::skipped(&text).iter().map(|(test, why)| format!("{name}: {test}: {why}")).collect();
    Ok(results)
}

/// Starts a test program that ends with this process, however it ends: a world ends with its owner, which is the test
/// program.
fn start(chosen: &Chosen, rest: &[String], log: &Path) -> Result<Child> {
    let words = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(&chosen.program.path);
    command.args(&chosen.filters).args(&chosen.arguments).arg("--show-output").args(rest);
    if chosen.program.says_needs {
        command.env("RUST_TEST_THREADS", AT_A_TIME);
    }
    command.envs(chosen.variables.iter().map(|(name, value)| (name, value)));
    command.env("BRIDGEHEAD_BIN", paths::target("release/bridgehead"));
    command.env("BRIDGEHEAD_ASSETS", paths::target("assets"));
    command.current_dir(&chosen.program.directory).stdin(Stdio::null());
    command.stdout(words.try_clone()?).stderr(words);
    command.spawn().context("starting setpriv: is util-linux installed?")
}

/// Waits for a program's end, and reports each line of its results at once. Its output is a file, because a pipe ends
/// only with the last process that holds it.
fn follow(child: &mut Child, log: &Path, mut tell: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut words = BufReader::new(File::open(log)?);
    let (mut line, mut results) = (Vec::new(), true);
    loop {
        let ended = child.try_wait()?;
        while words.read_until(b'\n', &mut line)? > 0 {
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            results &= !output::is_end_of_results(&text);
            if results {
                tell(&text);
            }
            line.clear();
        }
        if let Some(status) = ended {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
