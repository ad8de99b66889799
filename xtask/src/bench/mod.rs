//! `cargo xtask bench`: the appliance and its peers, side by side on the same machine.

mod boot;

use std::process::ExitCode;

use ::lab::world::World;
use anyhow::Result;

use crate::setup::Need;
use crate::{prepare, run};

/// Measure the appliance beside its peers, interleaved; raw samples go to target/bench
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which benchmark
    #[arg(default_value = "boot")]
    name: Name,
    /// How often each side is measured
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Power-on to workload, stage by stage: the same files from dnsmasq and from the appliance
    Boot,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<ExitCode> {
    let Some(world) = World::enter()? else {
        prepare(&[Need::Lab, Need::Test, Need::Bench])?;
        return run::enter_lab();
    };
    match arguments.name {
        Name::Boot => boot::boot(&world, arguments.pairs)?,
    }
    Ok(ExitCode::SUCCESS)
}
