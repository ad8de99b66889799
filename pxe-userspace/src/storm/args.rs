//! `bridgehead storm`'s command line.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::expect::{self, Expectations};
use super::firmware::Firmware;
use crate::api::client::Reading;

#[derive(Debug, Args)]
pub struct Storm {
    /// How many machines are powered on.
    #[arg(long, short, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: u32,
    /// Only when this is the profile that unknown machines boot; it is checked before.
    #[arg(long)]
    pub profile: Option<String>,
    /// What the machines have in their ROM; `mix` is one of each in turn.
    #[arg(long, value_enum, default_value_t = Client::Mix)]
    pub client: Client,
    /// How many frames are lost, in each direction.
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = loss)]
    pub loss: f64,
    /// Over how long the machines are powered on.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    pub spread: Duration,
    /// A machine that has not booted after this long has failed.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    pub patience: Duration,
    /// Where the machines are plugged in. Without it: into the bridge of the appliance on this host, by a
    /// cable that vanishes with the storm.
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// What must hold for exit code 0: 'p99<60s,failed=0'. Of p50 p90 p99 max booted failed retries
    /// server-retries restarts.
    #[arg(long, value_name = "CONDITIONS", default_value = "failed=0")]
    pub expect: Expectations,
    /// The machines tell what they are made of, each something else, as far as a network can see it: rules can go by it.
    #[arg(long)]
    pub facts: bool,
    /// Don't give the addresses back at the end.
    #[arg(long)]
    pub keep_leases: bool,
    /// Don't ask, and go on where the appliance's pool seems too small.
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    Uefi,
    Bios,
    Ipxe,
    Mix,
}

impl Client {
    /// The kinds of machine that take turns.
    pub(super) fn firmwares(self) -> &'static [Firmware] {
        match self {
            Self::Uefi => &[Firmware::Uefi],
            Self::Bios => &[Firmware::Bios],
            Self::Ipxe => &[Firmware::Ipxe],
            Self::Mix => &Firmware::ALL,
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let seconds = expect::seconds(text).and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "write a time as 500ms, 30s or 10m".to_owned())
}

/// A share from `1%`, or `0.5`, which is in percent, too.
fn loss(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().ok().filter(|p| (0.0..100.0).contains(p));
    percent.map(|p| p / 100.0).ok_or_else(|| "write a share under 100% as 1% or 0.5%".to_owned())
}
