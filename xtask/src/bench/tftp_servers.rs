//! The TFTP servers that are compared, each alone with a host on a wire of its own. All run all the time, because an
//! idle one costs nothing.

use std::any::Any;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use ::lab::appliance::{ADDRESS, Appliance, address_only};
use ::lab::net::{self, Host};
use ::lab::process::Process;
use ::lab::world::World;
use anyhow::Result;

use super::samples::{Contender, OURS};
use crate::setup::peers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Bridgehead,
    Dnsmasq,
    TftpdHpa,
    Atftpd,
    /// crates.io's.
    Tftpd,
}

/// A server of the comparison.
pub(super) struct Site {
    pub(super) server: Server,
    pub(super) wire: Wire,
}

/// A running server and the host that loads it.
pub(super) struct Wire {
    pub(super) address: Ipv4Addr,
    pub(super) host: Host,
    /// Ends the server when dropped.
    pub(super) running: Box<dyn Any>,
}

impl Contender for Site {
    fn name(&self) -> &'static str {
        self.server.name()
    }
}

impl Server {
    pub(super) const ALL: [Self; 5] =
        [Self::Bridgehead, Self::Dnsmasq, Self::TftpdHpa, Self::Atftpd, Self::Tftpd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bridgehead => OURS,
            Self::Dnsmasq => "dnsmasq",
            Self::TftpdHpa => "tftpd-hpa",
            Self::Atftpd => "atftpd",
            Self::Tftpd => "tftpd (Rust)",
        }
    }

    /// Whether it grants windows (RFC 7440).
    pub(super) fn has_windows(self) -> bool {
        !matches!(self, Self::Dnsmasq | Self::TftpdHpa)
    }

    /// Starts it on the files in `root`.
    pub(super) fn start(self, world: &World, root: &Path, fast_path: &str) -> Result<Wire> {
        let number = self as u8;
        let host = Host::new(&format!("host{number}"), number)?;
        if self == Self::Bridgehead {
            let appliance = Appliance::start(world, &address_only(world, &[host.port()], fast_path))?;
            host.address("10.77.0.50/24")?;
            return Ok(Wire { address: ADDRESS.parse()?, host, running: Box::new(appliance) });
        }
        let bridge = format!("peer{number}");
        let address = Ipv4Addr::new(10, 78, number, 1);
        net::bridge(&bridge, &format!("{address}/24"))?;
        net::plug(&host.port(), &bridge)?;
        host.address(&format!("10.78.{number}.50/24"))?;
        let mut command = self.command(&bridge, address, root);
        let process = Process::start(&mut command, &world.path(format!("{self:?}.log")))?;
        Ok(Wire { address, host, running: Box::new(process) })
    }

    /// With as little logging as possible, for as many clients as there are.
    fn command(self, bridge: &str, address: Ipv4Addr, root: &Path) -> Command {
        match self {
            Self::Bridgehead => unreachable!("started as an appliance"),
            Self::Dnsmasq => {
                let mut command = Command::new("dnsmasq");
                command.args(["--keep-in-foreground", "--user=root", "--log-facility=-", "--quiet-tftp"]);
                command.args(["--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--enable-tftp"]);
                command.args(["--tftp-max=2000".into(), format!("--interface={bridge}")]);
                command.arg(format!("--tftp-root={}", root.display()));
                command
            }
            Self::TftpdHpa => {
                let mut command = peers::command("in.tftpd");
                command.args(["--foreground", "--user", "root", "--address", &format!("{address}:69")]);
                command.arg("--secure").arg(root);
                command
            }
            Self::Atftpd => {
                let mut command = peers::command("atftpd");
                command.args(["--daemon", "--no-fork", "--user", "root", "--group", "root"]);
                command.args(["--maxthread", "2000", "--verbose=1", "--bind-address", &address.to_string()]);
                command.arg(root);
                command
            }
            Self::Tftpd => {
                let mut command = Command::new(peers::tftpd());
                command.args(["--read-only", "--ip-address", &address.to_string(), "--port", "69"]);
                command.arg("--directory").arg(root);
                command
            }
        }
    }
}
