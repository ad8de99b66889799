//! `cargo xtask guest`: the appliance in a virtual machine with another kernel, for inspection.

use std::process::ExitCode;

use ::lab::appliance::{Places, base};
use ::lab::guest::appliance::{FILES, PORT, STATE};
use ::lab::guest::{Card, Guest, Inside, LAN, Options, Suite};
use ::lab::net::{self, Host};
use ::lab::world::World;
use anyhow::Result;

use crate::prepare;
use crate::run::enter_lab;
use crate::setup::Need;

/// Run the appliance in a virtual machine with another Debian release's kernel, and look into it
///
/// In a lab of its own: the machine's card is plugged into a bridge `lan`, and so is a host `a`. It runs until Ctrl-C.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Whose kernel: bookworm, trixie or bookworm-backports
    #[arg(default_value = "bookworm", value_parser = suite)]
    kernel: Suite,
    /// The card: virtio-net with any of ,queues=N ,mrg_rxbuf=off ,guest_csum=off ,guest_tso=off ,csum=off; e1000e; vmxnet3; igb
    #[arg(long, default_value = "virtio-net")]
    card: Card,
    /// The appliance's fast path: auto, xdp, tc or off
    #[arg(long, default_value = "auto")]
    fast_path: String,
}

pub(crate) fn guest(arguments: &Arguments) -> Result<ExitCode> {
    let Some(world) = World::enter()? else {
        prepare(&[Need::Lab, Need::Test, Need::Kernels])?;
        return enter_lab();
    };
    let guest = Guest::boot(&world, &Options::new(arguments.kernel, arguments.card)?)?;
    println!("Linux {} with {}", guest.kernel(), arguments.card);
    let host = Host::new("a", 1)?;
    net::plug(&host.port(), LAN)?;
    host.address("10.77.0.50/24")?;
    guest.write(&format!("{FILES}/zeros"), &[0; 1 << 20])?;
    let places = Places { state: STATE.into(), files: FILES.into() };
    let config = base(&places, &[PORT.to_owned()], &arguments.fast_path, "address-only");
    let inside = Inside::start(&guest, &config)?;
    let (dir, id) = (world.dir().display(), world.dir().file_name().unwrap_or_default().display());
    println!(
        "{}\nIt runs until Ctrl-C. From another terminal:\n  \
         cargo xtask lab --id {id} --guest      a shell in the machine: dmesg, bridgehead status\n  \
         cargo xtask lab --id {id} -- ip netns exec a curl -o /dev/null tftp://10.77.0.1/zeros\n  \
         cargo xtask lab --id {id} -- tcpdump -ni guest0\n  \
         tail -f {dir}/guest.console",
        inside.command("status")?
    );
    loop {
        std::thread::park();
    }
}

fn suite(name: &str) -> Result<Suite, String> {
    let known = Suite::ALL.into_iter().find(|suite| suite.name() == name);
    known.ok_or_else(|| format!("there are {}", Suite::ALL.map(Suite::name).join(", ")))
}
