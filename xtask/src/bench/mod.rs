//! `cargo xtask bench`: the appliance and its peers, side by side on the same machine.

mod boot;
mod dhcp;
mod dhcp_servers;
mod measure;
mod tftp;
mod tftp_servers;

use std::process::ExitCode;
use std::time::Duration;

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
    /// How often each side is measured: once for `boot`, five times otherwise
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Only what the goals are about; for `tftp` and `dhcp`
    #[arg(long)]
    quick: bool,
    /// Every combination of clients, block size, window and loss; for `tftp`, hours
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// How long each measurement takes; for `tftp` and `dhcp`
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The appliance's fast path: auto, xdp, tc or off; for `tftp` and `dhcp`
    #[arg(long, default_value = "auto")]
    fast_path: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Power-on to workload, stage by stage: the same files from dnsmasq and from the appliance
    Boot,
    /// Files to 1 to 1,000 clients, beside dnsmasq, tftpd-hpa, atftpd and crates.io's tftpd
    Tftp,
    /// Addresses, beside Kea and dnsmasq
    Dhcp,
}

/// How the benchmarks of one server beside others are run.
struct Effort<'a> {
    pairs: u32,
    duration: Duration,
    fast_path: &'a str,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<ExitCode> {
    let Some(world) = World::enter()? else {
        match arguments.name {
            Name::Boot => prepare(&[Need::Lab, Need::Test, Need::Bench])?,
            Name::Tftp | Name::Dhcp => prepare(&[Need::Lab, Need::Bench, Need::Peers])?,
        }
        return run::enter_lab();
    };
    let effort = Effort {
        pairs: arguments.pairs.unwrap_or(if arguments.name == Name::Boot { 1 } else { 5 }),
        duration: Duration::try_from_secs_f64(arguments.seconds)?,
        fast_path: &arguments.fast_path,
    };
    match arguments.name {
        Name::Boot => boot::boot(&world, effort.pairs)?,
        Name::Tftp => {
            let cells = match (arguments.quick, arguments.full) {
                (true, _) => tftp::goals(),
                (_, true) => tftp::full(),
                _ => tftp::axes(),
            };
            tftp::tftp(&world, &cells, &effort)?;
        }
        Name::Dhcp => dhcp::dhcp(&world, &effort, arguments.quick)?,
    }
    Ok(ExitCode::SUCCESS)
}
