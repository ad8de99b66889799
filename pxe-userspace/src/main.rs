//! `bridgehead`: see `bridgehead --help`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use bridgehead::base::text;
use bridgehead::cli::{self, Cli, Command};
use bridgehead::config::Problem;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

const FAILED: u8 = 1;
/// The exit code for wrong usage, which clap uses, too.
const MISCONFIGURED: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => match bridgehead::config::load(&serve.file.config) {
            Ok(config) => {
                log_to_stderr();
                let done = match serve.detach_fast_path {
                    true => bridgehead::app::detach_fast_path(&config),
                    false => bridgehead::app::serve(config, &serve.file.config),
                };
                exit(done.map_err(|e| text::chain(&*e)))
            }
            Err(problems) => misconfigured(&problems),
        },
        Command::Check(file) => match cli::check(&file.config) {
            Ok(_) => ExitCode::SUCCESS,
            Err(problems) => misconfigured(&problems),
        },
        Command::Storm(storm) => match bridgehead::storm::run(&storm, &mut io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(FAILED),
            Err(error) => {
                let _ = writeln!(io::stderr(), "bridgehead: {error}");
                ExitCode::from(if error.is_usage() { MISCONFIGURED } else { FAILED })
            }
        },
        Command::ImportChild => bridgehead::provision::image::import_child(),
        Command::Ask(what) => exit(cli::ask(what, &mut io::stdout().lock()).map_err(|e| e.to_string())),
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_env_var("BRIDGEHEAD_LOG")
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
}

fn misconfigured(problems: &[Problem]) -> ExitCode {
    let mut stderr = io::stderr().lock();
    for problem in problems {
        // Nobody reads it when stderr is closed.
        let _ = writeln!(stderr, "{problem}");
    }
    ExitCode::from(MISCONFIGURED)
}

fn exit(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "bridgehead: {error}");
            ExitCode::from(FAILED)
        }
    }
}
