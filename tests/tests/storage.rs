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
use lab::machine::{Disk, Firmware, Machine, Spec};
use lab::net::tap;
use lab::process::output;
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

const PLAN: &str = r#"
[[storage]]
name         = "mirror"
release-keys = "boot-segment"

[[storage.disks]]
name  = "pair"
count = 2
size  = "64M..1G"

[[storage.volume]]
name    = "db"
disks   = "pair"
size    = "80M"
raid    = 1
encrypt = true
format  = "ext4"
mount   = "/data"
options = "noatime"

[[storage.volume]]
name   = "striped"
disks  = "pair"
size   = "170M"
raid   = 0
format = "xfs"
mount  = "/data/striped"

[[storage.volume]]
name   = "rest"
disks  = "pair"
raid   = 10
format = "btrfs"
mount  = "/rest"
"#;

#[test]
fn an_encrypted_mirror_keeps_its_data_and_a_foreign_disk_is_left_alone() {
    world::test(&PROGRAMS, |world| {
        let engine = Engine::start(world)?;
        engine.make_image(world, DEMO, START)?;
        let mut spec = Spec::numbered(1);
        ensure!(spec.firmware == Firmware::Bios);
        spec.disks = vec![Disk::blank(world, "D1", 480)?, Disk::blank(world, "D2", 480)?];
        tap(&spec.tap)?;
        let config = appliance::demo(world, &[spec.tap.clone()], &[spec.clone()], "auto");
        let named = format!("image   = {DEMO:?}\n");
        ensure!(config.contains(&named));
        let config = config.replace(&named, &format!("{named}storage = \"mirror\"\n")) + PLAN;
        let appliance = Appliance::start(world, &config)?;
        appliance.run(&["image", "add", DEMO])?;
        let (_follow, events) = appliance.follow(world)?;

        let first = boot(world, spec.clone(), &events)?;
        println!("first boot:\n{first}");
        let marker = first.lines().next().unwrap_or_default().to_owned();
        ensure!(marker.len() == 36, "no marker");
        ensure!(first.contains("/dev/mapper/bridgehead-db /data ext4 rw,noatime"), "{first}");
        ensure!(first.contains("/dev/md1 /data/striped xfs") && first.contains("/dev/md2 /rest btrfs"), "{first}");
        for level in ["raid0", "raid1", "raid10"] {
            ensure!(first.contains(&format!("active {level} ")), "{first}");
        }
        for disk in &spec.disks {
            let bytes = fs::read(&disk.image)?;
            let open = bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
            ensure!(!open, "what the workload wrote lies open on {}", disk.serial);
            let table = output(Command::new("blkid").args(["-p", "-o", "export"]).arg(&disk.image))?;
            ensure!(table.contains("PTTYPE=gpt"), "{table}");
        }

        let second = boot(world, spec.clone(), &events)?;
        println!("second boot:\n{second}");
        ensure!(second.lines().next() == Some(&marker), "the data is gone");
        ensure!(second.lines().filter(|line| line.starts_with("/dev/")).count() == 3, "{second}");

        // A node that lost a disk; in its place one that is somebody else's. A stripe has no data then.
        let foreign = Disk::blank(world, "D3", 480)?;
        output(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "photos"]).arg(&foreign.image))?;
        let before = fs::read(&foreign.image)?;
        let degraded = Spec { disks: vec![foreign.clone(), spec.disks[1].clone()], ..spec.clone() };
        let refusal = refusal(world, degraded, &events)?;
        println!("third boot: {refusal}");
        ensure!(refusal.contains("`striped`"), "{refusal}");
        ensure!(fs::read(&foreign.image)? == before, "the foreign disk was written to");

        let status = appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        engine.stop()
    });
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
