//! The DHCP servers that are compared, each on a wire of its own with a relay and a host without an address.

use std::any::Any;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::lab::appliance::Appliance;
use ::lab::load::cpu::Cpus;
use ::lab::load::dhcp::{self as load, End, Given, Plan, Way};
use ::lab::net::{Host, ip};
use ::lab::process::{Process, wait_for};
use ::lab::world::World;
use anyhow::{Context as _, Result};
use serde_json::json;

use super::samples::{Contender, OURS};
use crate::setup::peers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Bridgehead,
    /// With leases in memory and a file (memfile), its fastest.
    Kea,
    Dnsmasq,
}

/// A running server, and its clients.
pub(super) struct Site {
    pub(super) server: Server,
    pub(super) address: Ipv4Addr,
    pub(super) direct: Host,
    pub(super) relay: Host,
    pub(super) relay_address: Ipv4Addr,
    /// The addresses that it gave so far.
    pub(super) given: Given,
    /// Ends the server when dropped.
    pub(super) process: Box<dyn Any>,
}

impl Contender for Site {
    fn name(&self) -> &'static str {
        self.server.name()
    }
}

impl Server {
    pub(super) const ALL: [Self; 3] = [Self::Bridgehead, Self::Kea, Self::Dnsmasq];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bridgehead => OURS,
            Self::Kea => "Kea, memfile",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    /// With room for 32,512 machines.
    pub(super) fn start(self, world: &World, fast_path: &str) -> Result<Site> {
        let net = Net { second: 77 + self as u8, prefix: 16, range: [(0, 1), (0, 127)] };
        self.start_on(world, fast_path, &net)
    }

    /// With room for 458,752 machines.
    pub(super) fn start_wide(self, world: &World, fast_path: &str) -> Result<Site> {
        let net = Net { second: 16 * (1 + self as u8), prefix: 12, range: [(1, 0), (7, 255)] };
        self.start_on(world, fast_path, &net)
    }

    fn start_on(self, world: &World, fast_path: &str, net: &Net) -> Result<Site> {
        let number = self as u8;
        let direct = Host::new(&format!("direct{number}"), number)?;
        let relay = Host::new(&format!("relay{number}"), 100 + number)?;
        let bridge = format!("dhcp{number}");
        let process: Box<dyn Any> = if self == Self::Bridgehead {
            let ports = [direct.port(), relay.port()];
            Box::new(Appliance::start(world, &bridgehead(world, net, &bridge, &ports, fast_path))?)
        } else {
            // The appliance holds port 67 of every address outside.
            let room = format!("room{number}");
            lay_wire(&room, &bridge, &net.with_prefix(net.server()), &[direct.port(), relay.port()])?;
            let dir = world.path(format!("{self:?}"));
            fs::create_dir_all(&dir)?;
            let command =
                if self == Self::Kea { kea(net, &bridge, &dir)? } else { dnsmasq(net, &bridge, &dir) };
            let mut command = inside(&room, &command);
            Box::new(Process::start(&mut command, &dir.join("log"))?)
        };
        relay.address(&net.with_prefix(net.relay()))?;
        let (address, relay_address) = (net.server(), net.relay());
        Ok(Site { server: self, address, direct, relay, relay_address, given: Given::new(), process })
    }
}

impl Site {
    /// Waits until a machine gets its address.
    pub(super) fn await_ready(&mut self, cpus: &Cpus) -> Result<()> {
        let way = Way::Relayed(self.relay_address);
        let end = End::Round;
        let plan = Plan { server: self.address, way, first: u32::MAX, machines: 1, outstanding: 1, end };
        let name = self.server.name();
        wait_for(Duration::from_secs(20), || {
            if let Some(process) = self.process.downcast_mut::<Process>() {
                process.ensure_running()?;
            }
            let outcome = self.relay.inside(|| load::run(&plan, &mut self.given, cpus))?;
            Ok((outcome.exchanges == 1).then_some(()))
        })
        .with_context(|| format!("waiting for {name} to give an address"))
    }
}

/// A network in 10.0.0.0/8.
struct Net {
    second: u8,
    prefix: u8,
    /// The server's range: from the first address of the first part to the last of the last one, each given by what is
    /// added to `second`, and the third byte.
    range: [(u8, u8); 2],
}

impl Net {
    fn at(&self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.second, third, fourth)
    }

    fn server(&self) -> Ipv4Addr {
        self.at(0, 1)
    }

    fn relay(&self) -> Ipv4Addr {
        self.at(0, 50)
    }

    fn range(&self) -> [Ipv4Addr; 2] {
        let [first, last] = self.range.map(|(more, third)| (self.second + more, third));
        [Ipv4Addr::new(10, first.0, first.1, 0), Ipv4Addr::new(10, last.0, last.1, 255)]
    }

    fn with_prefix(&self, address: Ipv4Addr) -> String {
        format!("{address}/{}", self.prefix)
    }
}

/// A network namespace with a bridge, and `ports` moved to it.
pub(super) fn lay_wire(room: &str, bridge: &str, address: &str, ports: &[String]) -> Result<()> {
    ip(["netns", "add", room])?;
    ip(["-n", room, "link", "add", bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"])?;
    ip(["-n", room, "address", "add", address, "dev", bridge])?;
    ip(["-n", room, "link", "set", bridge, "up"])?;
    for port in ports {
        ip(["link", "set", port, "netns", room])?;
        ip(["-n", room, "link", "set", port, "master", bridge, "up"])?;
    }
    Ok(())
}

/// The same command, in a network namespace.
pub(super) fn inside(room: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", room]).arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside
}

fn bridgehead(world: &World, net: &Net, bridge: &str, ports: &[String], fast_path: &str) -> String {
    let [first, last] = net.range();
    format!(
        r#"state-dir = {state:?}
[network]
bridge    = "{bridge}"
address   = "{address}"
ports     = {ports:?}
fast-path = "{fast_path}"
[dhcp]
mode       = "authoritative"
range      = ["{first}", "{last}"]
lease-time = "1h"
unknown    = "address-only"
[files]
root = {files:?}
"#,
        state = world.path("state"),
        address = net.with_prefix(net.server()),
        files = world.path("files"),
    )
}

fn kea(net: &Net, bridge: &str, dir: &Path) -> Result<Command> {
    let [first, last] = net.range();
    let configuration = json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": [bridge], "dhcp-socket-type": "raw" },
        "lease-database": { "type": "memfile", "name": dir.join("leases.csv"), "lfc-interval": 0 },
        "valid-lifetime": 3600,
        "subnet4": [{
            "subnet": net.with_prefix(net.at(0, 0)),
            "pools": [{ "pool": format!("{first}-{last}") }],
        }],
        "loggers": [{
            "name": "kea-dhcp4", "severity": "ERROR", "output_options": [{ "output": "stderr" }],
        }],
    }});
    let file = dir.join("kea.json");
    fs::write(&file, configuration.to_string())?;
    let mut command = peers::command("kea-dhcp4");
    command.env("KEA_PIDFILE_DIR", dir).env("KEA_LOCKFILE_DIR", dir).arg("-c").arg(file);
    Ok(command)
}

/// Without its ping before every offer, which the others don't send either.
fn dnsmasq(net: &Net, bridge: &str, dir: &Path) -> Command {
    let [first, last] = net.range();
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--user=root", "--log-facility=-", "--quiet-dhcp", "--no-ping"]);
    command.args(["--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--no-hosts", "--no-resolv"]);
    command.args(["--dhcp-authoritative", "--dhcp-lease-max=400000"]);
    command.args([format!("--interface={bridge}"), format!("--dhcp-range={first},{last},1h")]);
    command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
    command
}
