//! What machines are made of: told by real firmware, disks and a switch's own words, and read by people and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, Appliance};
use lab::boot::Boot;
use lab::engine::{DEMO, Engine};
use lab::machine::{Disk, Spec};
use lab::needs::Needs;
use lab::process::{Process, wait_for};
use lab::storm;
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "lldpd"];
/// Generous, because times on a shared machine are not judged.
const PATIENCE: Duration = Duration::from_secs(300);

/// What `bridgehead facts` says of n1, as soon as it fits.
fn facts(appliance: &Appliance, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = String::new();
    let found = wait_for(PATIENCE, || {
        let output = appliance.command(&["facts", "n1", "--json"])?.output()?;
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        let document = serde_json::from_slice::<Value>(&output.stdout).ok();
        Ok(document.filter(&fits))
    });
    found.with_context(|| format!("`bridgehead facts` says {last}"))
}

/// A switch on the machine's cable: lldpd sends on the tap, which no bridge forwards to others.
fn switch(world: &World, spec: &Spec) -> Result<Process> {
    // Where it locks itself in.
    fs::create_dir_all("/run/lldpd")?;
    let socket = world.path("lldpd.socket");
    let mut command = Command::new("lldpd");
    command.args(["-d", "-I", &spec.tap, "-C", &spec.tap, "-S", "a switch of the lab", "-u"]).arg(&socket);
    Process::start(&mut command, &world.path("lldpd.log"))
}

#[test]
fn a_machine_tells_what_it_is_made_of_and_what_is_missing_the_next_time() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| {
        let spec = Spec {
            memory_mib: 1024,
            serial: Some("BH-LAB-1".into()),
            disks: vec![Disk::blank(world, "DATA1", 64)?, Disk::blank(world, "DATA2", 96)?],
            ..Spec::numbered(1)
        };
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), std::slice::from_ref(&spec), "auto");
        let mut boot =
            Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        let _switch = switch(world, &spec)?;

        boot.power_on(world, vec![spec.clone()])?;
        boot.watch(PATIENCE, |_, _| ())?;
        boot.failures()?;
        let first = facts(&boot.appliance, |facts| facts["neighbours"].is_array())?;
        println!("{first:#}");
        ensure!(first["system"]["serial"] == "BH-LAB-1" && first["system"]["vendor"] == "QEMU", "{first}");
        ensure!(first["system"]["uuid"] == spec.uuid, "{first}");
        ensure!(first["firmware"]["mode"] == "bios", "{first}");
        ensure!(first["memory"]["installed"] == 1 << 30, "{first}");
        ensure!(first["cpu"]["threads"] == 1 && first["cpu"]["sockets"] == 1, "{first}");
        let disks = first["disks"].as_array().context("disks")?;
        let serials: Vec<&str> = disks.iter().filter_map(|disk| disk["serial"].as_str()).collect();
        ensure!(serials == ["DATA1", "DATA2"] && disks[1]["size"] == 96 << 20, "{first}");
        let nic = &first["nics"][0];
        ensure!(nic["mac"] == spec.mac && nic["driver"] == "virtio_net" && nic["carrier"] == true, "{first}");
        let neighbour = &first["neighbours"][0];
        ensure!(neighbour["port"].as_str().is_some() && neighbour["nic"] == nic["name"], "{first}");
        let shown = boot.appliance.run(&["facts", "n1"])?;
        ensure!(shown.contains("BH-LAB-1") && shown.contains("DATA2"), "{shown}");
        let chosen = boot.appliance.json(&["nodes", "fact=serial:bh-lab-*,fact=memory:>=1G"])?;
        ensure!(chosen.as_array().map(Vec::len) == Some(1), "{chosen}");
        let none = boot.appliance.command(&["nodes", "fact=memory:>=2G"])?.output()?;
        ensure!(none.status.code() == Some(1), "{none:?}");

        // The power goes, and somebody takes half of the memory and a disk with them.
        let less = Spec { memory_mib: 512, disks: spec.disks[..1].to_vec(), ..spec };
        boot.power_on(world, vec![less])?;
        boot.watch(PATIENCE, |_, _| ())?;
        boot.failures()?;
        facts(&boot.appliance, |facts| facts["memory"]["installed"] == 512 << 20)?;
        let events = boot.appliance.run(&["events", "--node", "n1"])?;
        ensure!(events.contains("512.0 MiB less memory than last time: 512.0 MiB"), "{events}");
        ensure!(events.contains("(DATA2, 96.0 MiB) is gone"), "{events}");
        boot.stop()
    });
}

/// A stranger boots for its facts alone, becomes what a rule makes of them, and boots that.
#[test]
fn a_stranger_enrols_and_becomes_what_a_rule_says() {
    world::test(Needs::of(&PROGRAMS[..4]).machine(512), |world| {
        let spec = Spec { serial: Some("BH-LAB-2".into()), ..Spec::numbered(1) };
        let config = appliance::demo(world, std::slice::from_ref(&spec.tap), &[], "auto")
            .replace("unknown    = \"boot\"", "unknown    = \"enrol\"")
            + "\n[[profile]]\nname = \"inventory\"\nrun = \"enrol\"\ncmdline = \"console=ttyS0 no_timer_check\"\n"
            + "\n[[rule]]\nmatch = { serial = \"BH-LAB-*\", memory = \"<=512M\" }\nname = \"n{n}\"\nprofile = \"demo\"\n";
        let mut boot =
            Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        wait_for(PATIENCE, || {
            let profiles = boot.appliance.json(&["profiles"])?;
            let ready = |profile: &Value| profile["name"] == "inventory" && profile["ready"] == true;
            Ok(appliance::find(&profiles, &ready).is_some().then_some(()))
        })?;
        boot.power_on(world, vec![spec.clone()])?;
        // It powers itself off to reboot (-no-reboot): what it has become by then boots the next time.
        let renamed = wait_for(PATIENCE, || {
            let events = boot.appliance.run(&["events"])?;
            Ok(events.contains("it is n1, by the facts that it told").then_some(events))
        });
        let events = renamed.with_context(|| boot.machines[0].machine.console_tail())?;
        ensure!(!events.contains("hello-metal"), "{events}");
        wait_for(PATIENCE, || Ok(boot.machines[0].machine.ensure_running().is_err().then_some(())))?;
        ensure!(boot.machines[0].machine.console_text().contains("has become something, and boots again"));

        boot.power_on(world, vec![spec])?;
        boot.watch(PATIENCE, |_, _| ())?;
        boot.failures()?;
        boot.stop()
    });
}

/// Fifty simulated machines are named by what they tell, keep their names, and are found by it.
#[test]
fn machines_of_a_storm_are_named_by_their_facts() {
    world::test(&["ip", "dockerd"], |world| {
        let engine = Engine::start(world)?;
        engine.make_demo_image(world)?;
        let config = appliance::demo(world, &[], &[], "auto")
            + "\n[[rule]]\nmatch = { vendor = \"Dell*\", memory = \">=256G\" }\nname = \"dell{n:02}\"\nprofile = \"demo\"\n";
        let appliance = Appliance::start(world, &config)?;
        appliance.run(&["image", "add", DEMO])?;
        let (code, outcome) = storm::run(&["--nodes", "12", "--facts", "--expect", "failed=0"])?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        // A machine's name follows what it told.
        let named = wait_for(PATIENCE, || {
            let dells = dells(&appliance)?;
            let are_named = dells.values().all(|name| name.starts_with("dell"));
            Ok((dells.len() >= 4 && are_named).then_some(dells))
        })?;
        let names: BTreeSet<&String> = named.values().collect();
        ensure!(names.len() == named.len(), "a name twice: {named:#?}");
        let by_switch = appliance.json(&["nodes", "fact=switch:leaf-1"])?;
        ensure!(by_switch.as_array().is_some_and(|all| all.len() >= 12), "{by_switch:#}");
        appliance.crash()?;
        let appliance = Appliance::start(world, &config)?;
        ensure!(dells(&appliance)? == named, "after a crash");
        Ok(())
    });
}

/// The machines that say that Dell made them, and their names.
fn dells(appliance: &Appliance) -> Result<BTreeMap<String, String>> {
    let nodes = appliance.json(&["nodes"])?;
    let dells =
        nodes.as_array().context("nodes")?.iter().filter(|node| node["facts"]["vendor"] == "Dell Inc.");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(dells.map(|node| (text(&node["mac"]), text(&node["name"]))).collect())
}
