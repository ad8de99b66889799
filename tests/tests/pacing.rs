//! Admission and the ceiling, with simulated machines and other traffic.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Appliance, program};
use lab::needs::Needs;
use lab::net::{self, Host};
use lab::process::{PATIENCE, Process, output, wait_for};
use lab::storm;
use lab::world::{self, World};
use serde_json::Value;

/// Kernel and initrds.
const FILES: [usize; 3] = [100_000, 60_000, 40_000];

#[test]
fn sixty_machines_share_a_low_ceiling_and_all_boot() {
    world::test(Needs::of(&["ip", "tc"]).processors(1), |world| {
        // 1.5 MB/s: room for 24 boots at a time, of 60 that each take about half a megabyte.
        let appliance = Appliance::start(world, &storm::config(world, &[], Some("12M"), FILES)?)?;
        let log = world.path("storm.log");
        let mut storm =
            storm::command(&["--nodes", "60", "--keep-leases", "--expect", "failed=0,restarts=0"])?;
        let (mut storm, outcome) = Process::with_lines(&mut storm, &log)?;

        // Some machines wait, and the status says why and how far all of them are.
        let (status, nodes) = wait_for(PATIENCE, || {
            let status = appliance.json(&["status"])?;
            let nodes = appliance.json(&["nodes"])?;
            let waits = nodes.as_array().context("nodes")?.iter().any(|n| n["waiting"].is_u64());
            Ok((waits && status["pacing"]["waiting"].as_u64() > Some(0)).then_some((status, nodes)))
        })?;
        ensure!(status["pacing"]["most"] == 24, "{status:#}");
        let waiting = nodes.as_array().context("nodes")?.iter().filter(|n| n["waiting"].is_u64());
        ensure!(waiting.clone().all(|n| n["stage"] == "discover"), "{nodes:#}");
        let words = appliance.run(&["nodes"])?;
        ensure!(words.contains("discover (waiting: "), "{words}");
        let mut told = Vec::new();
        while storm.ended()?.is_none() {
            let words = appliance.run(&["status"])?;
            told.extend(words.lines().find(|l| l.starts_with("boots: ")).map(str::to_owned));
            std::thread::sleep(Duration::from_millis(500));
        }
        println!("{}", told.join("\n"));

        let code = storm.wait(Duration::from_secs(300))?;
        let outcome: Value = serde_json::from_str(&outcome.iter().collect::<Vec<_>>().join("\n"))?;
        println!("{outcome:#}");
        ensure!(code.success(), "{code}: {outcome:#}\n{}", fs::read_to_string(&log)?);
        ensure!(outcome["booted"] == 60 && outcome["failed"] == 0, "{outcome:#}");

        let events = appliance.run(&["events"])?;
        ensure!(events.contains(" before it"), "waiting is no event");
        let status = appliance.json(&["status"])?;
        ensure!(status["pacing"]["waiting"] == 0, "{status:#}");
        let held = status["counters"]["dhcp.held"].as_u64();
        ensure!(held > Some(0), "{status:#}");

        // They have leases now, but the kernel still lets none of them bypass the daemon.
        let again = ["--nodes", "40", "--client", "ipxe", "--expect", "failed=0,restarts=0"];
        let (code, outcome) = storm::run(&again)?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        let status = appliance.json(&["status"])?;
        ensure!(status["counters"]["dhcp.held"].as_u64() > held, "{status:#}");
        Ok(())
    });
}

/// The capacity of the rack's link; two thirds of it are the ceiling.
const LINK: &str = "30mbit";
const CEILING: &str = "16M";
const CEILING_BYTES: u64 = 2_000_000;
/// What the other traffic sends: 10 Mbit/s.
const PIECE: usize = 12_500;
const EVERY: Duration = Duration::from_millis(10);
const MEASURED: Duration = Duration::from_secs(5);

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 51);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 61);

/// A rack behind a switch whose port to the rack is slow.
struct Rack {
    rack: Host,
    sender: Host,
    /// The switch's port to the appliance.
    port: String,
}

impl Rack {
    fn new() -> Result<Self> {
        let switch = Host::new("switch", 1)?;
        let rack = Host::new("rack", 2)?;
        let sender = Host::new("sender", 3)?;
        let port = switch.port();
        net::ip(["link", "set", &rack.port(), "netns", "switch"])?;
        for args in [
            "link add br0 type bridge forward_delay 0 mcast_snooping 0",
            "link set eth0 master br0",
            "link set p-rack master br0",
            "link set p-rack up",
            "link set br0 up",
        ] {
            net::ip(["-n", "switch"].into_iter().chain(args.split(' ')))?;
        }
        let tbf = format!("qdisc add dev p-rack root tbf rate {LINK} burst 16kb limit 40kb");
        output(Command::new("tc").args(["-n", "switch"]).args(tbf.split(' ')))?;
        sender.address(&format!("{SENDER}/20"))?;
        rack.address(&format!("{RECEIVER}/20"))?;
        // Its other end is in the switch's namespace, which ends with the world.
        std::mem::forget(switch);
        Ok(Self { rack, sender, port })
    }

    /// Bytes of the other traffic that arrive at the rack during `during`.
    fn other_traffic(&self) -> Result<u64> {
        let listener = self.rack.inside(|| Ok(TcpListener::bind((RECEIVER, 4000))?))?;
        let mut near = self.sender.inside(|| Ok(TcpStream::connect((RECEIVER, 4000))?))?;
        let (mut far, _) = listener.accept()?;
        far.set_read_timeout(Some(Duration::from_millis(50)))?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| -> Result<()> {
                near.set_nonblocking(true)?;
                let piece = [7; PIECE];
                let start = Instant::now();
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    match near.write(&piece) {
                        Ok(_) => {}
                        // It sends more than the link can carry.
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e.into()),
                    }
                    std::thread::sleep((start + EVERY * n).saturating_duration_since(Instant::now()));
                }
                Ok(())
            });
            let (start, mut arrived, mut buf) = (Instant::now(), 0, vec![0; 1 << 16]);
            while start.elapsed() < MEASURED {
                match far.read(&mut buf) {
                    Ok(len) => arrived += len as u64,
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            done.store(true, Ordering::Relaxed);
            sending.join().expect("no panic")?;
            Ok(arrived)
        })
    }

    /// The other traffic's bytes while a hundred machines boot behind the same link, and the boots' bytes.
    fn under_storm(&self, world: &World, ceiling: Option<&str>) -> Result<(u64, u64)> {
        let ports = [self.port.clone(), self.sender.port()];
        let appliance = Appliance::start(world, &storm::config(world, &ports, ceiling, FILES)?)?;
        let status = appliance.json(&["status"])?;
        ensure!(status["alerts"] == Value::Array(Vec::new()), "{status:#}");
        let log = world.path("storm.log");
        let mut storm = self.rack.command(program()?.to_str().context("a path in UTF-8")?);
        storm.args(["storm", "--json", "--nodes", "100", "--interface", "eth0", "--yes"]);
        let (mut storm, outcome) = Process::with_lines(&mut storm, &log)?;
        let sent = || -> Result<u64> {
            let counters = &appliance.json(&["status"])?["counters"];
            let of = |name: &str| counters[name].as_u64().unwrap_or(0);
            Ok(of("kernel.tc.reply-bytes") + of("kernel.xdp.reply-bytes") + of("tftp.bytes-by-daemon"))
        };
        // First one machine of each kind boots alone: a megabyte and a half.
        wait_for(PATIENCE, || Ok((sent()? > 6_000_000).then_some(())))?;
        let before = sent()?;
        let others = self.other_traffic()?;
        let boots = sent()? - before;
        let code = storm.wait(Duration::from_secs(400))?;
        let outcome: Value = serde_json::from_str(&outcome.iter().collect::<Vec<_>>().join("\n"))?;
        println!("ceiling {ceiling:?}: {others} bytes of others, {boots} of boots; {outcome:#}");
        ensure!(ceiling.is_none() || code.success(), "{code}: {outcome:#}\n{}", fs::read_to_string(&log)?);
        ensure!(appliance.stop()?.success(), "an orderly end");
        Ok((others, boots))
    }
}

#[test]
fn other_traffic_keeps_its_share_while_a_rack_boots() {
    world::test(Needs::of(&["ip", "tc"]).processors(1), |world| {
        let rack = Rack::new()?;
        let queues = || output(Command::new("tc").args(["qdisc", "show", "dev", &rack.port]));
        let before = queues()?;
        let ports = [rack.port.clone(), rack.sender.port()];
        let appliance = Appliance::start(world, &storm::config(world, &ports, None, FILES)?)?;
        let alone = rack.other_traffic()?;
        drop(appliance);
        println!("{alone} bytes alone");
        let (others, boots) = rack.under_storm(world, Some(CEILING))?;
        ensure!(others * 10 >= alone * 9, "{others} of {alone}");
        // The boots use up their ceiling, and not more.
        let allowed = CEILING_BYTES * MEASURED.as_secs();
        ensure!(boots * 10 >= allowed * 5, "{boots} of {allowed}: no storm");
        ensure!(boots * 10 <= allowed * 13, "{boots} of {allowed}");
        ensure!(queues()? == before, "the ceiling is left: {}", queues()?);
        let (without, _) = rack.under_storm(world, None)?;
        ensure!(without < others, "the link is wide enough for both: {without}");
        Ok(())
    });
}
