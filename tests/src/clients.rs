//! Real clients on a host of the lab: three for DHCP, three for TFTP, one for HTTP.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::net::Host;
use crate::process::{PATIENCE, Process, output};
use crate::world::World;

/// A DHCP client.
#[derive(Clone, Copy, Debug)]
pub enum Dhcp {
    /// BusyBox's.
    Udhcpc,
    /// ISC's.
    Dhclient,
    Dhcpcd,
}

/// A way to fetch a file.
#[derive(Clone, Copy, Debug)]
pub enum Fetch {
    /// Block size 512, no options.
    Atftp,
    /// tftp-hpa: no options.
    TftpHpa,
    /// curl: options `tsize` and `blksize`, which is the number.
    CurlTftp(u16),
    CurlHttp,
}

impl Dhcp {
    pub const ALL: [Self; 3] = [Self::Udhcpc, Self::Dhclient, Self::Dhcpcd];
    pub const PROGRAMS: [&str; 3] = ["udhcpc", "dhclient", "dhcpcd"];

    /// Gets a lease for `host`, and configures the host with it, so that it counts as a machine with a lease.
    pub fn move_in(self, world: &World, host: &Host) -> Result<Ipv4Addr> {
        let address = self.lease(world, host)?;
        host.address(&format!("{address}/24"))?;
        Ok(address)
    }

    /// Gets a lease for `host`, which is not configured with it, and returns the address.
    pub fn lease(self, world: &World, host: &Host) -> Result<Ipv4Addr> {
        let name = format!("{}-{self:?}", host.port());
        let result = world.path(format!("{name}.address"));
        let _ = fs::remove_file(&result);
        let script = script(world, &name, &result)?;
        let (leases, pid) = (world.path(format!("{name}.leases")), world.path(format!("{name}.pid")));
        let mut client = match self {
            // In the foreground, quit with a lease or without one; broadcast flag set (-B).
            Self::Udhcpc => {
                let mut client = host.command("udhcpc");
                client.args(["-i", "eth0", "-f", "-q", "-n", "-B", "-t", "8", "-T", "2", "-s"]).arg(&script);
                client
            }
            // Goes into the background with a lease; quits without one.
            Self::Dhclient => {
                let mut client = host.command("dhclient");
                client.args(["-1", "-v", "-cf", "/dev/null", "-sf"]).arg(&script);
                client.arg("-lf").arg(&leases).arg("-pf").arg(&pid).arg("eth0");
                client
            }
            Self::Dhcpcd => {
                let mut client = host.command("dhcpcd");
                client.args(["--oneshot", "--ipv4only", "--noarp", "--nobackground", "--timeout=20"]);
                client.arg("--script").arg(&script).args(["--config=/dev/null", "eth0"]);
                client
            }
        };
        let log = world.path(format!("{name}.log"));
        let mut client = Process::start(&mut client, &log)?;
        let status = client.wait(PATIENCE)?;
        let lines = client.last_lines(15);
        let text = fs::read_to_string(&result).with_context(|| format!("{self:?} got no lease:\n{lines}"))?;
        ensure!(status.success(), "{self:?} ended with {status}:\n{lines}");
        if let Self::Dhclient = self {
            // -x: stops without a RELEASE.
            let mut stop = host.command("dhclient");
            stop.args(["-x", "-cf", "/dev/null", "-sf", "/bin/true", "-lf"]).arg(&leases);
            output(stop.arg("-pf").arg(&pid).arg("eth0"))?;
        }
        text.trim().parse().with_context(|| format!("{self:?}'s address {text:?}"))
    }
}

/// The script that a client calls when it has a lease. It records the address and configures nothing.
fn script(world: &World, name: &str, result: &Path) -> Result<PathBuf> {
    let script = world.path(format!("{name}.script"));
    let text = format!(
        "#!/bin/sh\n# udhcpc says ip, dhclient and dhcpcd new_ip_address.\n\
         address=${{ip:-$new_ip_address}}\n\
         [ -z \"$address\" ] || echo \"$address\" > '{}'\nexit 0\n",
        result.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

impl Fetch {
    pub const TFTP: [Self; 5] =
        [Self::Atftp, Self::TftpHpa, Self::CurlTftp(512), Self::CurlTftp(1024), Self::CurlTftp(1468)];
    pub const PROGRAMS: [&str; 3] = ["atftp", "tftp", "curl"];

    /// Fetches `path` from `server` as `host` and returns its bytes.
    pub fn fetch(self, world: &World, host: &Host, server: &str, path: &str) -> Result<Vec<u8>> {
        let local = world.path(format!("{}-fetched", host.port()));
        let _ = fs::remove_file(&local);
        let mut client = match self {
            Self::Atftp => {
                let mut client = host.command("atftp");
                client.args(["--get", "--remote-file", path, "--local-file"]).arg(&local).arg(server);
                client
            }
            Self::TftpHpa => {
                let mut client = host.command("tftp");
                client.args(["-m", "binary", server, "-c", "get", path]).arg(&local);
                client
            }
            Self::CurlTftp(block) => {
                let mut client = curl(host, &local);
                client.args(["--tftp-blksize", &block.to_string(), &format!("tftp://{server}/{path}")]);
                client
            }
            Self::CurlHttp => {
                let mut client = curl(host, &local);
                client.args(["--fail", &format!("http://{server}/files/{path}")]);
                client
            }
        };
        output(&mut client).with_context(|| format!("{self:?} of {path}"))?;
        // tftp-hpa's exit code is 0 for errors, too; then there is no file.
        fs::read(&local).with_context(|| format!("{self:?} of {path} left no file"))
    }

    /// curl 7.88 ends with "getpeername() failed" when the first DATA by TFTP is the last, empty one, from
    /// any server.
    pub fn takes_empty_files(self) -> bool {
        !matches!(self, Self::CurlTftp(_))
    }
}

fn curl(host: &Host, local: &Path) -> Command {
    let mut curl = host.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--output"]).arg(local);
    curl
}
