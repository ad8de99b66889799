//! The main job with real firmware: power-on to a page that names the node and the image's digest.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::appliance::find;
use lab::boot::{Boot, Booting, News};
use lab::machine::{Firmware, Spec};
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 4] = ["ip", "qemu-system-x86_64", "dockerd", "docker"];

/// What comes before a workload, in the order in which it comes.
const STAGES: [&str; 9] =
    ["discover", "request", "ack", "loader", "config", "kernel", "initrd", "stage1", "workload"];

#[test]
fn bios_and_uefi_boot_at_once() {
    world::test(&PROGRAMS, |world| {
        let boot = boot(world, vec![Spec::numbered(1), Spec::numbered(2)], "auto")?;
        let firmwares: Vec<Firmware> = boot.machines.iter().map(|m| m.machine.spec.firmware).collect();
        ensure!(firmwares == [Firmware::Bios, Firmware::Uefi]);
        for booting in &boot.machines {
            in_order(booting)?;
            // Where the kernel takes the programs, the blocks come from there: lock-step or, as EDK2
            // asks for its loader, in windows.
            for stage in ["loader", "kernel"] {
                let by = answered_by(booting, stage);
                ensure!(matches!(by, Some("tc" | "xdp")), "{stage} was sent by {by:?}");
            }
        }
        let nodes = boot.appliance.json(&["nodes"])?;
        for booting in &boot.machines {
            let name = booting.machine.spec.name.as_str();
            let node = find(&nodes, &|o| o.get("name").and_then(Value::as_str) == Some(name));
            let stage = node.and_then(|n| n.get("stage")?.as_str());
            ensure!(stage == Some("workload"), "`bridgehead nodes` shows {name} as {node:?}");
        }
        boot.stop()
    });
}

#[test]
fn bios_boots_without_the_fast_path() {
    world::test(&PROGRAMS, |world| {
        let boot = boot(world, vec![Spec::numbered(1)], "off")?;
        let booting = &boot.machines[0];
        in_order(booting)?;
        let others: Vec<_> = booting.stages.iter().filter(|(_, by, _)| by != "daemon").collect();
        ensure!(others.is_empty(), "answered without the daemon: {others:?}");
        boot.stop()
    });
}

/// Boots `specs` until every page was compared.
fn boot(world: &World, specs: Vec<Spec>, fast_path: &str) -> Result<Boot> {
    let mut boot = Boot::start(world, specs, fast_path, |step| println!("{step}"))?;
    // Generous: time on a shared machine is told and not judged.
    boot.watch(Duration::from_secs(300), |machines, news| {
        if let News::Event(i, event, seconds) = news {
            println!(
                "{seconds:7.2} s  {}  {} ({})",
                machines[i].machine.spec.name, event.stage, event.answered_by
            );
        }
    })?;
    boot.failures()?;
    Ok(boot)
}

fn in_order(booting: &Booting) -> Result<()> {
    let reached: Vec<&str> = booting.stages.iter().map(|(stage, ..)| stage.as_str()).collect();
    let mut rest = reached.iter();
    for stage in STAGES {
        ensure!(rest.any(|s| *s == stage), "no {stage} in its place among {reached:?}");
    }
    Ok(())
}

fn answered_by<'a>(booting: &'a Booting, stage: &str) -> Option<&'a str> {
    booting.stages.iter().find(|(s, ..)| s == stage).map(|(_, by, _)| by.as_str())
}
