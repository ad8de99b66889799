//! `cargo xtask run`: machines from power-on to workload, in a lab or on real interfaces.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use ::lab::boot::{Boot, Outcome};
use ::lab::machine::Spec;
use ::lab::world::{Lab, OnSignal, World};
use anyhow::{Context as _, Result, bail};

use crate::display::Display;
use crate::setup::Need;
use crate::shell::exit_code;
use crate::{paths, prepare};

/// Boot virtual machines with real firmware from a Docker image, and show each boot's timeline live
///
/// Without a configuration everything happens in a lab: namespaces of its own with a bridge, the appliance, a
/// Docker engine and QEMU machines, BIOS and UEFI by turns. When this command ends, however it ends, nothing
/// of it is left. `cargo xtask lab -- bridgehead nodes` looks into a lab that runs.
///
/// With `-- --config FILE` the appliance runs on real interfaces instead: `bridgehead serve --config FILE`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Machines to boot: BIOS and UEFI by turns. Two cores carry four
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// End when every node's workload answered (exit 0) or one failed (exit 1), instead of at Ctrl-C
    #[arg(long)]
    once: bool,
    /// The appliance's fast path: auto, xdp, tc or off
    #[arg(long, default_value = "auto")]
    fast_path: String,
    /// Seconds that a machine may take from power-on to its workload's answer
    #[arg(long, default_value_t = 180)]
    patience: u64,
    /// Arguments of `bridgehead serve`, to run on real interfaces
    #[arg(last = true, value_name = "--config FILE")]
    serve: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(world) = World::enter()? {
        return inside(&world, arguments);
    }
    if !arguments.serve.is_empty() {
        prepare(&[])?;
        let program = paths::target("release/bridgehead");
        let mut serve = Command::new(&program);
        serve.arg("serve").args(&arguments.serve).env("BRIDGEHEAD_ASSETS", paths::target("assets"));
        return Err(serve.exec()).with_context(|| format!("starting {}", program.display()));
    }
    prepare(&[Need::Lab])?;
    enter_lab()
}

/// Starts this command again, inside a lab.
pub(crate) fn enter_lab() -> Result<ExitCode> {
    let lab = Lab::create()?;
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1));
    again.env("BRIDGEHEAD_BIN", paths::target("release/bridgehead"));
    again.env("BRIDGEHEAD_ASSETS", paths::target("assets"));
    Ok(exit_code(lab.run(&mut again, OnSignal::EndWorld)?))
}

fn inside(world: &World, arguments: &Arguments) -> Result<ExitCode> {
    let specs: Vec<Spec> = (1..=arguments.nodes).map(Spec::numbered).collect();
    let mut display = Display::new(&specs);
    let mut boot = Boot::start(world, specs, &arguments.fast_path, |step| display.step(step))?;
    boot.watch(Duration::from_secs(arguments.patience), |machines, news| display.news(machines, &news))?;
    display.summary(&boot.machines);
    boot.failures()?;
    if !boot.machines.iter().all(|m| matches!(m.outcome, Some(Outcome::Answers(_)))) {
        bail!("not every machine has an outcome");
    }
    if arguments.once {
        return Ok(ExitCode::SUCCESS);
    }
    let page = boot.appliance.run(&["login"])?;
    println!(
        "\nThe lab runs until Ctrl-C. From another terminal:\n  \
         cargo xtask lab -- bridgehead nodes       the command line\n  \
         cargo xtask lab -- curl -L -b '' '{}'\n                                            \
         its page, by an address that lets in once\n  \
         cargo xtask lab                           a shell on the appliance\n  \
         tail -f {}/n1.console",
        page.trim(),
        world.dir().display()
    );
    loop {
        boot.appliance.ensure_running()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}
