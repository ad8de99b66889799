//! Bridgehead's own commands: `cargo xtask --help`.

mod assets;
mod bench;
mod build;
mod display;
mod fuzz;
mod guest;
mod lab;
mod lint;
mod paths;
mod run;
mod setup;
mod shell;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use setup::Need;

/// Build, run, test and measure Bridgehead.
///
/// Two commands do everything on a fresh Debian 12 as root, set-up included: `cargo xtask run` boots two
/// virtual machines with real firmware from a Docker image, in a private network that leaves nothing behind;
/// `cargo xtask test` runs every test.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Soak(soak::Arguments),
    Lab(lab::Arguments),
    Guest(guest::Arguments),
    Fuzz(fuzz::Arguments),
    /// Install what building, the lab, the tests and the benchmarks need; say what, and nothing when it is there
    Setup,
    /// Build the kernel programs, pxe-init, the boot assets and `bridgehead`
    Build,
    Lint(lint::Arguments),
}

fn main() -> ExitCode {
    if let Err(error) = shell::with_administrators_path() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Soak(arguments) => soak::soak(&arguments),
        Command::Lab(arguments) => lab::lab(&arguments),
        Command::Guest(arguments) => guest::guest(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Setup => {
            use Need::{Assets, Bench, Build, Kernels, Lab, Peers, Test};
            setup::ensure(&[Build, Assets, Lab, Test, Bench, Peers, Kernels]).map(|()| ExitCode::SUCCESS)
        }
        Command::Build => prepare(&[]).map(|()| ExitCode::SUCCESS),
        Command::Lint(arguments) => lint::lint(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Sets up for building and for `needs`, then builds everything: the first step of commands that run what was built.
fn prepare(needs: &[Need]) -> anyhow::Result<()> {
    setup::ensure(&[&[Need::Build, Need::Assets], needs].concat())?;
    build::all()
}
