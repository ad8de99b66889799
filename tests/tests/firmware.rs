//! The main job with real firmware: from power-on to a page that names the node and the image's digest.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, find, program};
use lab::boot::{Boot, Booting, News};
use lab::machine::{Firmware, Spec};
use lab::needs::Needs;
use lab::process::{PATIENCE, Process, output, wait_for};
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "tshark"];

/// Generous, because times on a shared machine are printed, not judged.
const BOOT: Duration = Duration::from_secs(300);

/// The stages before a workload, in order.
const STAGES: [&str; 9] =
    ["discover", "request", "ack", "loader", "config", "kernel", "initrd", "stage1", "workload"];

#[test]
fn bios_and_uefi_boot_at_once() {
    world::test(Needs::of(&PROGRAMS).machine(512).machine(512), |world| {
        let traced = Spec::numbered(2);
        let file = world.path("n2.pcapng");
        let mut trace = None;
        let mut boot = Boot::start(world, vec![Spec::numbered(1), traced.clone()], "auto", |step| {
            println!("{step}");
            if step == "powering on" {
                trace = Some(start_trace(world, &traced.name, &file));
            }
        })?;
        watch(&mut boot)?;
        let firmwares: Vec<Firmware> = boot.machines.iter().map(|m| m.machine.spec.firmware).collect();
        ensure!(firmwares == [Firmware::Bios, Firmware::Uefi]);
        for booting in &boot.machines {
            in_order(booting)?;
            // If the kernel accepts the programs, they send the blocks: in lock-step or, as EDK2 requests for its
            // loader, in windows.
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
            console_is_kept(&boot, name)?;
        }
        // The trace ends by itself with the boot.
        let status = trace.context("not powered on")??.wait(PATIENCE)?;
        ensure!(status.success(), "`bridgehead trace` ended with {status}");
        boot_is_traced(&file)?;
        boot.stop()
    });
}

#[test]
fn bios_boots_without_the_fast_path_and_stops_where_it_is_held() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let name = spec.name.clone();
        let ask = |args: &[&str]| output(Command::new(program()?).args(args));
        let hold = || -> Result<Option<String>> {
            let node: Value = serde_json::from_str(&ask(&["nodes", &name, "--json"])?)?;
            ensure!(node["stage"] != "image" && node["stage"] != "workload", "it was not held: {node}");
            Ok(node["hold"].as_str().map(str::to_owned))
        };
        let mut boot = Boot::start(world, vec![spec], "off", |step| {
            println!("{step}");
            if step == "powering on" {
                ask(&["hold", &name, "--once"]).expect("a machine can be held");
            }
        })?;
        std::thread::scope(|scope| {
            let released = scope.spawn(|| {
                wait_for(BOOT, || Ok((hold()?.as_deref() == Some("reached")).then_some(())))?;
                // A held machine opens a shell instead of continuing its boot. The hold is not learned from its
                // console, of which nothing may be stored yet.
                wait_for(BOOT, || {
                    let console = ask(&["console", &name]).unwrap_or_default();
                    Ok(console.contains("a shell on the console").then_some(()))
                })?;
                ensure!(hold()?.as_deref() == Some("reached"));
                ensure!(ask(&["nodes"])?.contains("stage1 (held)"));
                ensure!(ask(&["console", &name])?.contains("this boot is held"));
                ask(&["release", &name])
            });
            let watched = watch(&mut boot);
            // If it was not released, that is the reason why the boot did not continue.
            released.join().expect("the thread does not panic").context("releasing it")?;
            watched
        })?;
        let booting = &boot.machines[0];
        in_order(booting)?;
        let others: Vec<_> = booting.stages.iter().filter(|(_, by, _)| by != "daemon").collect();
        ensure!(others.is_empty(), "answered without the daemon: {others:?}");
        boot.stop()
    });
}

/// Whoever looks at a machine sees it, at the screen or at the serial line: what a profile is given that names no console.
#[test]
fn a_node_without_a_console_of_its_own_shows_on_the_serial_line() {
    world::test(Needs::of(&PROGRAMS).machine(512).machine(512), |world| {
        let specs = vec![Spec::numbered(1), Spec::numbered(2)];
        let ports: Vec<String> = specs.iter().map(|s| s.tap.clone()).collect();
        let config = appliance::demo(world, &ports, &specs, "auto").replacen("console=ttyS0 ", "", 1);
        let mut boot = Boot::prepare(world, &specs, &config, 0, |step| println!("{step}"))?;
        boot.power_on(world, specs)?;
        watch(&mut boot)?;
        for booting in &boot.machines {
            let machine = &booting.machine;
            wait_for(PATIENCE, || {
                let shown = String::from_utf8_lossy(&fs::read(machine.console())?).into_owned();
                let all = [
                    "Linux version 6.",
                    "console=ttyS0,115200 console=tty0",
                    "bridgehead: 52:54:00:77:00:",
                    "runs: ",
                ];
                Ok(all.iter().all(|words| shown.contains(words)).then_some(()))
            })
            .with_context(|| format!("the serial line of {}", machine.spec.name))?;
        }
        boot.stop()
    });
}

/// Follows the boots until every page was compared.
fn watch(boot: &mut Boot) -> Result<()> {
    boot.watch(BOOT, |machines, news| {
        if let News::Event(i, event, seconds) = news {
            println!(
                "{seconds:7.2} s  {}  {} ({})",
                machines[i].machine.spec.name, event.stage, event.answered_by
            );
        }
    })?;
    boot.failures()
}

fn start_trace(world: &World, node: &str, file: &Path) -> Result<Process> {
    let mut trace = Command::new(program()?);
    trace.args(["trace", node, "-o"]).arg(file);
    let trace = Process::start(&mut trace, &world.path("trace.log"))?;
    wait_for(PATIENCE, || Ok(fs::metadata(file).is_ok_and(|f| f.len() > 0).then_some(())))?;
    Ok(trace)
}

/// Wireshark's view of a whole boot's trace.
fn boot_is_traced(file: &Path) -> Result<()> {
    let comments = |filter: &str| -> Result<String> {
        let mut tshark = Command::new("tshark");
        output(tshark.args(["-n", "-T", "fields", "-e", "frame.comment", "-Y", filter, "-r"]).arg(file))
    };
    for filter in [
        "dhcp.option.dhcp == 1",
        "dhcp.option.dhcp == 5",
        "tftp.opcode == 1 && tftp.source_file contains \"grub/\"",
        "tftp.opcode == 1 && tftp.source_file contains \"/kernel\"",
        "tftp.opcode == 3",
        "http.request.uri contains \"/boot/node/\"",
        // The node's own messages can't be read by others.
        "tcp.dstport == 7443",
    ] {
        ensure!(!comments(filter)?.is_empty(), "the trace has no frame with {filter}");
    }
    let all = comments("frame.comment")?;
    for words in ["timeline: kernel by tc", "timeline: stage1 by daemon", "answered in the kernel (tc)"] {
        ensure!(all.contains(words), "no frame's comment says {words:?}");
    }
    Ok(())
}

/// The appliance has stored the console of the kernel and stage 1, from the first line.
fn console_is_kept(boot: &Boot, node: &str) -> Result<()> {
    let wanted = ["Linux version 6.", "bridgehead: 52:54:00:77:00:", "runs: "];
    wait_for(PATIENCE, || {
        let text = boot.appliance.run(&["console", node])?;
        let found: Vec<usize> = wanted.iter().filter_map(|words| text.find(words)).collect();
        ensure!(!text.contains("lines are missing"), "{text}");
        Ok((found.len() == wanted.len() && found.is_sorted()).then_some(()))
    })
    .with_context(|| format!("the console of {node}: {:?}", boot.appliance.run(&["console", node])))
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
