//! Storage plans on machines with disks: what a workload wrote is there after the next boot, and a disk that holds
//! something else is as it was.

use std::fs;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{self, Appliance};
use lab::boot::page;
use lab::engine::{DEMO, Engine};
use lab::machine::{Disk, Machine, Spec};
use lab::net::tap;
use lab::process::{Process, output};
use lab::timeline::Event;
use lab::world::{self, World};

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "blkid", "mke2fs"];

/// Writes once, and tells what it finds.
const START: &str = r#"#!/bin/sh
set -e
b=/bin/busybox
[ -e /data/marker ] || { $b cat /proc/sys/kernel/random/uuid > /data/marker; $b sync; }
$b mkdir -p /www
{ $b cat /data/marker; $b grep '^/dev/' /proc/mounts; $b grep -A1 ^md /proc/mdstat; } > /www/index.html
exec $b httpd -f -h /www -p 80
"#;

const MIRROR: &str = r#"
[[storage]]
name         = "data"
release-keys = "boot-segment"

[[storage.disks]]
name  = "pair"
count = 2
size  = "64M..1G"

[[storage.volume]]
name    = "db"
disks   = "pair"
raid    = 1
encrypt = true
format  = "ext4"
mount   = "/data"
options = "noatime"
"#;

#[test]
fn an_encrypted_mirror_keeps_its_data_and_a_foreign_disk_is_left_alone() {
    world::test(&PROGRAMS, |world| {
        let disks = [Disk::blank(world, "D1", 160)?, Disk::blank(world, "D2", 160)?];
        let node = Node::with_plan(world, MIRROR)?;
        let first = node.boot(world, &disks)?;
        let marker = first.lines().next().unwrap_or_default();
        ensure!(marker.len() == 36, "no marker");
        ensure!(first.contains("/dev/mapper/bridgehead-db /data ext4 rw,noatime"), "{first}");
        ensure!(first.contains("active raid1") && first.contains("[2/2]"), "{first}");
        for disk in &disks {
            let bytes = fs::read(&disk.image)?;
            let open = bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
            ensure!(!open, "what the workload wrote lies open on {}", disk.serial);
            let table = output(Command::new("blkid").args(["-p", "-o", "export"]).arg(&disk.image))?;
            ensure!(table.contains("PTTYPE=gpt"), "{table}");
        }

        let second = node.boot(world, &disks)?;
        ensure!(second.lines().next() == Some(marker), "the data is gone");
        ensure!(second.contains("[2/2]"), "{second}");

        // A mirror that lost a disk; in its place one that is somebody else's.
        let foreign = Disk::blank(world, "D3", 160)?;
        output(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "photos"]).arg(&foreign.image))?;
        let before = fs::read(&foreign.image)?;
        let third = node.boot(world, &[foreign.clone(), disks[1].clone()])?;
        ensure!(third.lines().next() == Some(marker), "the data is gone");
        ensure!(third.contains("[2/1]"), "{third}");
        ensure!(fs::read(&foreign.image)? == before, "the foreign disk was written to");

        // Without any of its own disks the plan can't be carried out, and touches not even the blank one.
        let blank = Disk::blank(world, "D4", 160)?;
        let refusal = match node.boot(world, &[foreign.clone(), blank.clone()]) {
            Ok(page) => bail!("it booted:\n{page}"),
            Err(error) => error.to_string(),
        };
        ensure!(refusal.contains("(serial D3, 160 MiB) holds ext4 \"photos\""), "{refusal}");
        ensure!(refusal.contains("left alone"), "{refusal}");
        ensure!(fs::read(&foreign.image)? == before, "the foreign disk was written to");
        ensure!(fs::read(&blank.image)?.iter().all(|byte| *byte == 0), "the blank disk was written to");
        node.stop()
    });
}

const EVERYTHING: &str = r#"
[[storage]]
name    = "data"
wipe    = "always"
serials = ["D2"]

[[storage.disks]]
name  = "pair"
count = 2

[[storage.volume]]
name   = "mirrored"
disks  = "pair"
size   = "200M"
raid   = 10
format = "btrfs"
mount  = "/data"

[[storage.volume]]
name   = "striped"
disks  = "pair"
raid   = 0
format = "xfs"
mount  = "/data/striped"
"#;

#[test]
fn a_disk_that_was_given_up_is_taken_and_every_format_is_found_again() {
    world::test(&PROGRAMS, |world| {
        let disks = [Disk::blank(world, "D1", 480)?, Disk::blank(world, "D2", 480)?];
        // At the place where partitions begin, too: it shows up again in the new one.
        for offset in ["0", "1048576"] {
            let options = format!("offset={offset}");
            let mut mke2fs = Command::new("mke2fs");
            mke2fs.args(["-q", "-F", "-t", "ext4", "-E", &options]).arg(&disks[1].image).arg("200M");
            output(&mut mke2fs)?;
        }
        let node = Node::with_plan(world, EVERYTHING)?;
        let first = node.boot(world, &disks)?;
        ensure!(first.contains("/dev/md0 /data btrfs"), "{first}");
        ensure!(first.contains("/dev/md1 /data/striped xfs"), "{first}");
        ensure!(first.contains("active raid10 ") && first.contains("active raid0 "), "{first}");
        let second = node.boot(world, &disks)?;
        ensure!(second.lines().next() == first.lines().next(), "the data is gone");
        ensure!(second.contains("/dev/md1 /data/striped xfs"), "{second}");
        node.stop()
    });
}

/// A machine whose profile has a storage plan, and the appliance that it boots from.
struct Node {
    engine: Engine,
    appliance: Appliance,
    spec: Spec,
    events: Receiver<Event>,
    _follow: Process,
}

impl Node {
    fn with_plan(world: &World, plan: &str) -> Result<Self> {
        let engine = Engine::start(world)?;
        engine.make_image(world, DEMO, START, 0)?;
        let spec = Spec::numbered(1);
        tap(&spec.tap)?;
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), std::slice::from_ref(&spec), "auto");
        let image = format!("image   = {DEMO:?}\n");
        ensure!(config.contains(&image));
        let config = config.replace(&image, &format!("{image}storage = \"data\"\n")) + plan;
        let appliance = Appliance::start(world, &config)?;
        appliance.run(&["image", "add", DEMO])?;
        let (follow, events) = appliance.follow(world)?;
        Ok(Self { engine, appliance, spec, events, _follow: follow })
    }

    fn boot(&self, world: &World, disks: &[Disk]) -> Result<String> {
        let spec = Spec { disks: disks.to_vec(), ..self.spec.clone() };
        let end = boot(world, spec, &self.events);
        println!("{end:?}");
        end
    }

    fn stop(self) -> Result<()> {
        let status = self.appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        self.engine.stop()
    }
}

/// From power-on to the page that the workload serves; then the plug is pulled.
fn boot(world: &World, spec: Spec, events: &Receiver<Event>) -> Result<String> {
    while events.try_recv().is_ok() {}
    let end = Instant::now() + Duration::from_secs(240);
    let mut machine = Machine::power_on(world, spec, None)?;
    let mut address = None;
    loop {
        machine.ensure_running()?;
        ensure!(Instant::now() < end, "out of time; the end of the console:\n{}", machine.console_tail());
        let Ok(event) = events.recv_timeout(Duration::from_millis(200)) else { continue };
        let seconds = event.seconds_since(machine.powered_on);
        println!("{seconds:7.2} s  {}  {}", event.stage, event.detail.as_deref().unwrap_or_default());
        address = event.address.or(address);
        match event.stage.as_str() {
            "failed" => bail!(event.cause.unwrap_or_default()),
            "workload" => break,
            _ => {}
        }
    }
    let address = address.context("the machine has no address")?;
    let mut last = Ok(String::new());
    for _ in 0..50 {
        last = page((address, 80).into());
        if last.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    last.with_context(|| format!("the end of the console:\n{}", machine.console_tail()))
}
