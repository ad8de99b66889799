//! A bridge with other traffic keeps carrying it, frame for frame, while the appliance on it answers a boot storm.

mod crafted;
mod streams;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use crafted::Lookalike;
use lab::appliance::{ADDRESS, Appliance, BRIDGE, address_only};
use lab::clients::Dhcp;
use lab::load::Numbers;
use lab::needs::Needs;
use lab::net::{self, Host};
use lab::process::{PATIENCE, output, wait_for};
use lab::soak::{self, Clients, Tally};
use lab::world::{self, World};

const PROGRAMS: [&str; 6] = ["ip", "ping", "tcpdump", "dnsmasq", "curl", "udhcpc"];
/// A storm uses both cores: beside another one, answers come later than ping waits for them.
const STORM: usize = 2;

/// Jumbo frames.
const MTU: u16 = 9000;

#[test]
fn a_bridge_of_our_own_carries_everything_beside_tc() {
    world::test(Needs::of(&PROGRAMS).processors(STORM), |world| {
        let wire = Wire::new(world)?;
        // Nothing is attached: this shows what the wire itself does to frames.
        let appliance = Appliance::start(world, &wire.config(world, "off"))?;
        wire.carries_everything(world, &Lookalike::default())?;
        appliance.stop()?;
        let appliance = Appliance::start(world, &wire.config(world, "auto"))?;
        wire.carries_everything_in_a_storm(world, &appliance, "tc")
    });
}

#[test]
fn an_adopted_bridge_carries_everything_beside_tc() {
    world::test(Needs::of(&PROGRAMS).processors(STORM), |world| {
        let wire = Wire::new(world)?;
        wire.plug()?;
        wire.carries_everything(world, &Lookalike::default())?;
        let appliance = Appliance::start(world, &wire.config(world, "auto"))?;
        wire.carries_everything_in_a_storm(world, &appliance, "tc")?;
        appliance.stop()?;
        wire.carries_everything(world, &Lookalike::default())
    });
}

#[test]
fn an_adopted_bridge_carries_everything_beside_xdp() {
    world::test(Needs::of(&PROGRAMS).processors(STORM), |world| {
        let wire = Wire::new(world)?;
        wire.plug()?;
        let appliance = Appliance::start(world, &wire.config(world, "xdp"))?;
        wire.carries_everything_in_a_storm(world, &appliance, "xdp")
    });
}

/// Somebody else adds ports to the bridge while the appliance runs: Docker, a hypervisor.
#[test]
fn ports_that_join_later_get_what_the_first_ones_have() {
    world::test(&["ip", "bpftool"], |world| {
        // On virtual ports xdp must be requested; it tests the two hooks one after the other.
        for (wanted, hook) in [("auto", "tc"), ("xdp", "xdp")] {
            let first = Host::new("first", 1)?;
            let appliance = Appliance::start(world, &address_only(world, &[first.port()], wanted))?;
            let late = Host::new("late", 2)?;
            net::plug(&late.port(), BRIDGE)?;
            for host in [&first, &late] {
                let tier = || Ok(tier_of(&appliance, host)?.filter(|tier| tier == hook));
                wait_for(PATIENCE, tier).with_context(|| format!("{hook} on {}", host.port()))?;
                ensure!(kernel_has(hook, host)?, "the kernel has no link of {hook} on {}", host.port());
            }
            net::ip(["link", "set", &late.port(), "nomaster"])?;
            wait_for(PATIENCE, || Ok(tier_of(&appliance, &late)?.is_none().then_some(())))
                .context("a port that left")?;
            ensure!(!kernel_has(hook, &late)?, "{hook} is left on a port that left");
            appliance.stop()?;
        }
        Ok(())
    });
}

/// A bridge with its hosts. Only the tests send on `crafter`, which has no address.
struct Wire {
    crafter: Host,
    a: Host,
    b: Host,
    c: Host,
    /// The sources of the storm: machines without addresses, and readers.
    storm: [Host; 2],
}

impl Wire {
    fn new(world: &World) -> Result<Self> {
        let crafter = Host::new("crafter", 0x10)?;
        crafter.inside(|| Ok(fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")?))?;
        let wire = Self {
            crafter,
            a: Host::new("a", 0x11)?,
            b: Host::new("b", 0x12)?,
            c: Host::new("c", 0x13)?,
            storm: [Host::new("booting", 0x14)?, Host::new("loading", 0x15)?],
        };
        for host in [&wire.crafter, &wire.a, &wire.b, &wire.c] {
            host.mtu(MTU)?;
        }
        for (host, address) in [(&wire.a, streams::A), (&wire.b, streams::B), (&wire.c, streams::C)] {
            host.address(&format!("{address}/16"))?;
        }
        wire.storm[1].address("10.77.0.15/16")?;
        fs::create_dir_all(world.path("files"))?;
        fs::write(world.path("files/mine"), Numbers::new(7).bytes(200_001))?;
        Ok(wire)
    }

    fn hosts(&self) -> [&Host; 6] {
        [&self.crafter, &self.a, &self.b, &self.c, &self.storm[0], &self.storm[1]]
    }

    /// A bridge that somebody else created, with all hosts on it.
    fn plug(&self) -> Result<()> {
        net::bridge(BRIDGE, "192.0.2.1/24")?;
        self.hosts().iter().try_for_each(|host| net::plug(&host.port(), BRIDGE))
    }

    fn config(&self, world: &World, fast_path: &str) -> String {
        soak::config(world, fast_path, &self.hosts().map(Host::port))
    }

    /// Sends frames of every kind between the hosts, and requires each of them to arrive unchanged.
    fn carries_everything(&self, world: &World, lookalike: &Lookalike) -> Result<()> {
        streams::carried(world, &self.a, &self.b)?;
        crafted::carried(world, &self.crafter, [&self.b, &self.c], lookalike)
    }

    fn carries_everything_in_a_storm(&self, world: &World, appliance: &Appliance, hook: &str) -> Result<()> {
        for host in self.hosts() {
            let tier = || Ok(tier_of(appliance, host)?.filter(|tier| tier == hook));
            wait_for(PATIENCE, tier).with_context(|| format!("{hook} on {}", host.port()))?;
        }
        let lookalike = self.lookalike(world, appliance)?;
        let mut clients = Clients::new(self.storm.each_ref(), &world.path("files"), 1)?;
        let (mut tally, over) = (Tally::default(), AtomicBool::new(false));
        let (carried, storm) = std::thread::scope(|scope| {
            let storm = scope.spawn(|| -> Result<()> {
                while !over.load(Ordering::Relaxed) {
                    clients.turn(true, &mut tally)?;
                }
                Ok(())
            });
            let carried = self.carries_everything(world, &lookalike);
            over.store(true, Ordering::Relaxed);
            (carried, storm.join().expect("the storm does not panic"))
        });
        carried?;
        storm?;
        println!("beside {} exchanges of DHCP and {} of TFTP", tally.dhcp, tally.tftp);
        ensure!(tally.dhcp > 1000 && tally.transfers > 10, "this is no storm:\n{tally}");
        let counters = &appliance.json(&["status"])?["counters"];
        let tags = counters[format!("kernel.{hook}.vlan")].as_u64().context("no counter of VLAN tags")?;
        ensure!(tags >= crafted::tagged_frames(), "the programs saw {tags} tagged frames: {counters}");
        Ok(())
    }

    /// What the kernel answers for the appliance: a machine with a lease, and a running transfer.
    fn lookalike(&self, world: &World, appliance: &Appliance) -> Result<Lookalike> {
        // XDP's answers on a veth are lost, including its ACK. There is a lease nevertheless.
        let said = Dhcp::Udhcpc.lease(world, &self.crafter);
        let leases = appliance.json(&["leases"])?;
        let is_bound = |l: &serde_json::Value| l["mac"] == self.crafter.mac() && l["state"] == "bound";
        ensure!(leases.as_array().is_some_and(|all| all.iter().any(is_bound)), "{said:?}, {leases}");
        let socket = self.c.inside(|| Ok(UdpSocket::bind((streams::C, 0))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"\0\x01mine\0octet\0blksize\x001024\0", (ADDRESS, 69))?;
        let mut buffer = [0; 2048];
        let (len, server) = socket.recv_from(&mut buffer)?;
        ensure!(buffer[..2] == [0, 6], "no OACK: {:?}", &buffer[..len]);
        Ok(Lookalike { client_port: socket.local_addr()?.port(), server_port: server.port() })
    }
}

/// The hook that answers at a host's port, according to the status; `None` if the port is not the bridge's.
fn tier_of(appliance: &Appliance, host: &Host) -> Result<Option<String>> {
    let status = appliance.json(&["status"])?;
    let is_its = |o: &serde_json::Map<String, serde_json::Value>| {
        o.contains_key("tier") && o.get("name").is_some_and(|name| *name == host.port())
    };
    Ok(lab::appliance::find(&status, &|value| value.as_object().is_some_and(&is_its))
        .and_then(|port| Some(port["tier"].as_str()?.to_owned())))
}

/// Whether the kernel has the link that is pinned for a host's port, according to bpftool. It is pinned by the port's
/// index.
fn kernel_has(hook: &str, host: &Host) -> Result<bool> {
    let index = fs::read_to_string(Path::new("/sys/class/net").join(host.port()).join("ifindex"))?;
    let ours = fs::read_dir("/sys/fs/bpf")?.flatten().find(|e| e.path().join("links").is_dir());
    let links = ours.context("the daemon's directory")?.path().join("links");
    let link = links.join(format!("{hook}-{}", index.trim()));
    if !link.exists() {
        return Ok(false);
    }
    let shown = output(Command::new("bpftool").args(["--json", "link", "show", "pinned"]).arg(link))?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    ensure!(shown["prog_id"].as_u64().is_some_and(|id| id > 0), "a link without a program: {shown}");
    Ok(true)
}
