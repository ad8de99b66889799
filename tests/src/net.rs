//! Links of a world: a bridge, taps for virtual machines, and hosts (network namespaces) on veth pairs.

use std::ffi::OsStr;
use std::fs::File;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::process::output;

/// Runs `ip` and returns its output.
pub fn ip<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// A bridge with an address, for servers that don't make their own. It forwards at once, without spanning tree.
pub fn bridge(name: &str, address: &str) -> Result<()> {
    ip(["link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0"])?;
    ip(["address", "add", address, "dev", name])?;
    ip(["link", "set", name, "up"])?;
    Ok(())
}

/// A tap for a virtual machine to open.
pub fn tap(name: &str) -> Result<()> {
    ip(["tuntap", "add", name, "mode", "tap"])?;
    ip(["link", "set", name, "up"])?;
    Ok(())
}

/// A link's number.
pub fn index(link: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(link).with_context(|| link.to_owned())
}

/// Plugs a link into a bridge.
pub fn plug(link: &str, bridge: &str) -> Result<()> {
    ip(["link", "set", link, "master", bridge])?;
    Ok(())
}

/// A host on the wire: a network namespace whose `eth0` is the other end of a port.
pub struct Host {
    name: String,
    mac: String,
}

impl Host {
    /// A host named `name` (a short word) with a MAC that ends in `number`. Its port is [`Host::port`].
    pub fn new(name: &str, number: u8) -> Result<Self> {
        let host = Self { name: name.to_owned(), mac: format!("02:00:00:77:00:{number:02x}") };
        ip(["netns", "add", name])?;
        let port = host.port();
        ip([
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &host.mac, "netns", name,
        ])?;
        ip(["link", "set", &port, "up"])?;
        for link in ["lo", "eth0"] {
            ip(["-n", name, "link", "set", link, "up"])?;
        }
        Ok(host)
    }

    /// The end of its cable, to be plugged into a bridge.
    pub fn port(&self) -> String {
        format!("p-{}", self.name)
    }

    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// Lets host and port send frames with this many bytes after their Ethernet header.
    pub fn mtu(&self, mtu: u16) -> Result<()> {
        let mtu = mtu.to_string();
        ip(["link", "set", &self.port(), "mtu", &mtu])?;
        ip(["-n", &self.name, "link", "set", "eth0", "mtu", &mtu])?;
        Ok(())
    }

    /// Gives the host an address by hand.
    pub fn address(&self, address: &str) -> Result<()> {
        ip(["-n", &self.name, "address", "add", address, "dev", "eth0"])?;
        Ok(())
    }

    /// A command that runs on the host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `body` on a thread in the host's namespace, so that the sockets it opens are the host's.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.name)).context("the host's namespace")?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The veth pair would vanish with the namespace, but some time after `ip` has returned, and a host of
        // the same name may be wanted before. If the world is gone already, an error doesn't matter.
        let _ = ip(["link", "del", &self.port()]);
        let _ = ip(["netns", "del", &self.name]);
    }
}
