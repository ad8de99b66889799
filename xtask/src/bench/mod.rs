//! `cargo xtask bench`: the appliance and its peers, side by side on the same machine.

mod boot;
mod dhcp;
mod dhcp_servers;
mod growth;
mod limit;
mod live;
mod native;
mod perfdhcp;
mod picture;
mod report;
mod samples;
mod storm;
mod tftp;
mod tftp_servers;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ::lab::load::cpu::Cpus;
use ::lab::world::World;
use anyhow::Result;

use crate::setup::Need;
use crate::{prepare, run};

/// Measure the appliance beside its peers, interleaved; samples and a picture go to target/bench
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which benchmark
    #[arg(default_value = "boot")]
    name: Name,
    /// How often each side is measured: once for `boot` and `storm`, five times otherwise
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Only what the goals are about, for `tftp` and `dhcp`; a small storm, for `storm`
    #[arg(long)]
    quick: bool,
    /// Every combination of clients, block size, window and loss; for `tftp`, hours
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// How long each measurement takes; not for `boot` and `storm`
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The appliance's fast path: auto, xdp, tc or off; not for `boot`
    #[arg(long, default_value = "auto")]
    fast_path: String,
    /// Write tables and picture to docs/performance, with this machine and today's date
    #[arg(long)]
    update_docs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Power-on to workload, stage by stage: the same files from dnsmasq and from the appliance
    Boot,
    /// Files to 1 to 1,000 clients, beside dnsmasq, tftpd-hpa, atftpd and crates.io's tftpd
    Tftp,
    /// Addresses, beside Kea and dnsmasq
    Dhcp,
    /// What one more machine costs with 1,000, 10,000 and 100,000 leases, beside Kea
    Growth,
    /// A block's time, beside programs that only grow a frame and send it back
    Limit,
    /// XDP in a driver, tc and the daemon beside one another, in a virtual machine with another kernel
    Native,
    /// A thousand simulated machines powered on at once, beside dnsmasq
    Storm,
}

/// How benchmarks that compare servers are run.
struct Effort<'a> {
    pairs: u32,
    duration: Duration,
    fast_path: &'a str,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<ExitCode> {
    let Some(world) = World::enter()? else {
        match arguments.name {
            Name::Boot => prepare(&[Need::Lab, Need::Test, Need::Bench])?,
            Name::Tftp | Name::Dhcp | Name::Growth => prepare(&[Need::Lab, Need::Bench, Need::Peers])?,
            Name::Limit => prepare(&[Need::Lab])?,
            Name::Native => prepare(&[Need::Lab, Need::Test])?,
            Name::Storm => prepare(&[Need::Lab, Need::Test, Need::Bench])?,
        }
        return run::enter_lab();
    };
    let effort = Effort {
        pairs: arguments.pairs.unwrap_or(if matches!(arguments.name, Name::Boot | Name::Storm) {
            1
        } else {
            5
        }),
        duration: Duration::try_from_secs_f64(arguments.seconds)?,
        fast_path: &arguments.fast_path,
    };
    let report = match arguments.name {
        Name::Boot => boot::boot(&world, effort.pairs)?,
        Name::Tftp => {
            let cells = match (arguments.quick, arguments.full) {
                (true, _) => tftp::goals(),
                (_, true) => tftp::full(),
                _ => tftp::axes(),
            };
            tftp::tftp(&world, &cells, &effort)?
        }
        Name::Dhcp => dhcp::dhcp(&world, &effort, arguments.quick)?,
        Name::Growth => growth::growth(&world, &effort)?,
        Name::Limit => limit::limit(&world, &effort)?,
        Name::Native => native::native(&world, &effort)?,
        Name::Storm => storm::storm(&world, &effort, arguments.quick)?,
    };
    report.publish(arguments.update_docs)?;
    Ok(ExitCode::SUCCESS)
}

/// A CPU for the client, the others for this process and the servers that it starts; with a note if the
/// machine is not idle enough for reliable results.
fn cpus() -> Result<(Cpus, Option<String>)> {
    let cpus = Cpus::divide()?;
    cpus.leave_to_client()?;
    let meter = cpus.meter()?;
    thread::sleep(Duration::from_secs(1));
    let busy = meter.seconds()?;
    let note = (busy > 0.05).then(|| {
        format!("this machine was busy ({busy:.2} CPU seconds a second before any load): expect noise")
    });
    Ok((cpus, note))
}
