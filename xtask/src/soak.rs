//! `cargo xtask soak`: millions of exchanges with a daemon that is killed again and again.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ::lab::soak::{Plan, run};
use ::lab::world::World;
use anyhow::Result;

use crate::prepare;
use crate::run::enter_lab;
use crate::setup::Need;

/// Exchange millions of packets with an appliance whose daemon is killed again and again, and judge each answer
///
/// Thousands of DHCP clients and dozens of TFTP clients, in a lab. Ends with 0 when no lease was lost, no
/// address given twice, no byte wrong and no transfer lost. docs/lab.md says what is judged, and how.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Packets of clients that are answered
    #[arg(long, default_value_t = 10_000_000)]
    exchanges: u64,
    /// How often the daemon is killed, at random moments, and started again
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// What the clients do follows from it; the time of day when not given
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn soak(arguments: &Arguments) -> Result<ExitCode> {
    let Some(world) = World::enter()? else {
        prepare(&[Need::Lab])?;
        return enter_lab();
    };
    let Arguments { exchanges, kills, seed } = *arguments;
    let seed =
        seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs()));
    println!("{exchanges} exchanges, {kills} kills, --seed {seed}\n");
    let (mut shown, mut told) = (0.0, 0);
    let tally = run(&world, &Plan { exchanges, kills, seed }, |tally| {
        tally.told[told..].iter().for_each(|fault| println!("{fault}"));
        told = tally.told.len();
        if tally.seconds - shown > 5.0 {
            shown = tally.seconds;
            println!(
                "{:6.0} s  {:5.1} %  {} exchanges, {} kills, {} retries, {} faults",
                tally.seconds,
                tally.exchanges() as f64 * 100.0 / exchanges as f64,
                tally.exchanges(),
                tally.kills,
                tally.retries,
                tally.faults(),
            );
        }
    })?;
    println!("\n{tally}{:<28}{:>12.0}\n{:<28}{seed:>12}", "seconds", tally.seconds, "seed");
    Ok(if tally.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
