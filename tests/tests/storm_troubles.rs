//! Racks that are powered on at once while something goes wrong: all machines boot nevertheless, and the appliance
//! reports what it was.
//!
//! `STORM_NODES` (60) and `STORM_KIB` (500 for kernel and initrds) make it larger; then `STORM_SPREAD=1s` powers all on
//! within a second. With few machines, all would be done before anything happens.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Appliance, BRIDGE};
use lab::dnsmasq::Dnsmasq;
use lab::needs::Needs;
use lab::net::{Host, ip};
use lab::process::{Process, wait_for};
use lab::storm;
use lab::world::{self, World};
use serde_json::Value;

const RIVAL: &str = "10.77.15.66";

#[test]
fn a_daemon_that_is_killed_costs_no_machine() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let config = config(world, &[])?;
        let appliance = Appliance::start(world, &config)?;
        let storm = Storm::begin(world)?;
        storm.under_way(&appliance)?;
        appliance.crash()?;
        // As systemd would. iPXE sends its last request 7 s after the first: no server may be away for longer.
        std::thread::sleep(Duration::from_secs(1));
        let appliance = Appliance::start(world, &config)?;
        storm.all_boot()?;
        ensure!(alerts(&appliance)?.is_empty(), "{:?}", alerts(&appliance)?);
        ensure!(appliance.stop()?.success(), "an orderly end");
        Ok(())
    });
}

#[test]
fn a_lossy_wire_costs_no_machine() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let _appliance = Appliance::start(world, &config(world, &[])?)?;
        Storm::with(world, &["--loss", "2%"])?.all_boot()
    });
}

#[test]
fn a_port_that_flaps_costs_no_machine() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let appliance = Appliance::start(world, &config(world, &[])?)?;
        let storm = Storm::begin(world)?;
        storm.under_way(&appliance)?;
        let port = port()?;
        for _ in 0..3 {
            ip(["link", "set", &port, "down"])?;
            std::thread::sleep(Duration::from_secs(2));
            ip(["link", "set", &port, "up"])?;
            std::thread::sleep(Duration::from_secs(3));
        }
        storm.all_boot()?;
        ensure!(alerts(&appliance)?.is_empty(), "{:?}", alerts(&appliance)?);
        Ok(())
    });
}

#[test]
fn another_dhcp_server_costs_no_machine_and_is_named() {
    world::test(Needs::of(&["ip", "dnsmasq"]).processors(1), |world| {
        let rival = Host::new("rival", 1)?;
        rival.address(&format!("{RIVAL}/20"))?;
        let appliance = Appliance::start(world, &config(world, &[rival.port()])?)?;
        // Addresses without a boot file, as from a router that somebody plugged in.
        let arguments =
            ["--interface=eth0", "--dhcp-range=10.77.10.0,10.77.14.255,1h", "--dhcp-lease-max=5000"];
        let arguments = arguments.map(str::to_owned);
        let _rival = Dnsmasq::start(rival.command("dnsmasq"), &arguments, &world.path("dnsmasq.log"))?;
        let storm = Storm::begin(world)?;
        storm.all_boot()?;
        let alerts = alerts(&appliance)?;
        ensure!(alerts.iter().any(|alert| alert.contains(RIVAL)), "{alerts:?}");
        Ok(())
    });
}

/// A storm that runs in a separate process.
struct Storm {
    process: Process,
    outcome: std::sync::mpsc::Receiver<String>,
    nodes: usize,
    log: std::path::PathBuf,
}

impl Storm {
    /// Some machines are at each stage when something happens.
    fn begin(world: &World) -> Result<Self> {
        let spread = std::env::var("STORM_SPREAD").unwrap_or_else(|_| "12s".to_owned());
        Self::with(world, &["--spread", &spread])
    }

    fn with(world: &World, args: &[&str]) -> Result<Self> {
        let nodes = number("STORM_NODES", 60)?;
        let log = world.path("storm.log");
        let mut command = storm::command(&["--nodes", &nodes.to_string(), "--expect", "failed=0"])?;
        command.args(args);
        let (process, outcome) = Process::with_lines(&mut command, &log)?;
        Ok(Self { process, outcome, nodes, log })
    }

    /// Waits until some machines have their files; many do not have them yet.
    fn under_way(&self, appliance: &Appliance) -> Result<()> {
        wait_for(Duration::from_secs(300), || {
            let nodes = appliance.json(&["nodes"])?;
            let ours = nodes.as_array().context("nodes")?.iter().filter(|node| {
                let has = |name: &str, what: &dyn Fn(&str) -> bool| node[name].as_str().is_some_and(what);
                has("mac", &|mac| mac.starts_with(storm::MACS)) && has("stage", &|stage| stage == "initrd")
            });
            Ok((ours.count() * 5 >= self.nodes).then_some(()))
        })
        .context("the storm does not begin")
    }

    fn all_boot(mut self) -> Result<()> {
        let code = self.process.wait(Duration::from_secs(660))?;
        let text = self.outcome.iter().collect::<Vec<_>>().join("\n");
        let words = fs::read_to_string(&self.log)?;
        let outcome: Value = serde_json::from_str(&text).with_context(|| format!("{text}\n{words}"))?;
        println!(
            "{}",
            Value::from_iter(
                ["booted", "failed", "seconds", "retries", "restarts"].map(|key| (key, outcome[key].clone()))
            )
        );
        ensure!(code.success() && outcome["booted"] == self.nodes, "{code}: {outcome:#}\n{words}");
        Ok(())
    }
}

fn config(world: &World, ports: &[String]) -> Result<String> {
    let bytes = number("STORM_KIB", 500)? * 1024;
    storm::config(world, ports, None, [bytes / 2, bytes / 4, bytes / 4])
}

fn number(name: &str, or: usize) -> Result<usize> {
    std::env::var(name).map_or(Ok(or), |text| text.parse().with_context(|| format!("{name}={text}")))
}

/// The bridge's port with the machines behind it.
fn port() -> Result<String> {
    let ports = fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif"))?;
    let names = ports.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().find(|name| name.starts_with("storm")).context("no port has the machines")
}

fn alerts(appliance: &Appliance) -> Result<Vec<String>> {
    let status = appliance.json(&["status"])?;
    let alerts = status["alerts"].as_array().context("alerts")?;
    Ok(alerts.iter().filter_map(|alert| alert.as_str().map(str::to_owned)).collect())
}
