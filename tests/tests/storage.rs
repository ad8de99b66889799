//! Storage plans on machines with disks: a workload's data is there after the next boot, and a disk with foreign
//! contents is unchanged.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{self, ADDRESS, Appliance};
use lab::boot::{fetch, page};
use lab::engine::{DEMO, Engine};
use lab::machine::{Disk, Machine, Spec};
use lab::needs::Needs;
use lab::net::tap;
use lab::peers;
use lab::process::{PATIENCE, Process, output, wait_for};
use lab::timeline::Event;
use lab::world::{self, World};

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "blkid", "mke2fs"];

/// Generous, because times on a shared machine are printed, not judged.
const BOOTS_WITHIN: Duration = Duration::from_secs(500);

/// Writes once, and serves what it finds.
const START: &str = r#"#!/bin/sh
set -e
b=/bin/busybox
[ -e /data/marker ] || { $b cat /proc/sys/kernel/random/uuid > /data/marker; $b sync; }
$b mkdir -p /www
{ $b cat /data/marker; $b grep -E '^/dev/| nfs' /proc/mounts; $b grep -A1 ^md /proc/mdstat || :; } > /www/index.html
[ ! -d /shared ] || echo "$BRIDGEHEAD_NODE was here" >> /shared/said
while $b sleep 1; do $b date +%s > /data/beat && $b sync && $b cp /data/beat /www/next && $b mv /www/next /www/beat; done &
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
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
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

        // A mirror that lost a disk; in its place there is a foreign one.
        let foreign = Disk::blank(world, "D3", 160)?;
        output(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "photos"]).arg(&foreign.image))?;
        let before = fs::read(&foreign.image)?;
        let third = node.boot(world, &[foreign.clone(), disks[1].clone()])?;
        ensure!(third.lines().next() == Some(marker), "the data is gone");
        ensure!(third.contains("[2/1]"), "{third}");
        ensure!(fs::read(&foreign.image)? == before, "the foreign disk was written to");

        // Without any of its own disks the plan can't be carried out, and does not touch even the blank one.
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
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let disks = [Disk::blank(world, "D1", 480)?, Disk::blank(world, "D2", 480)?];
        // Also where partitions begin: it reappears in the new partition.
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

const REMOTE: &str = r#"
[[storage]]
name = "data"

[[storage.disks]]
name   = "san"
iscsi  = "iqn.2026-01.lab:d1"
portal = "san.lab"

[[storage.volume]]
name  = "db"
disks = "san"
mount = "/data"

[[storage.mount]]
nfs     = "files.lab:/export"
mount   = "/shared"
options = "noatime"
"#;

/// Tested with NFS-Ganesha and tgt, whose names dnsmasq resolves.
#[test]
fn disks_and_directories_of_other_machines_are_found_by_name() {
    const SERVERS: [&str; 4] = ["dnsmasq", "ganesha.nfsd", "tgtd", "tgtadm"];
    world::test(Needs::of(&[&PROGRAMS[..], &SERVERS].concat()).machine(512), |world| {
        let node = Node::with_plan(world, REMOTE)?;
        let mut servers = Servers::start(world)?;
        let own = Disk::blank(world, "D1", 160)?;
        let (machine, address, first) = node.boot_up(world, std::slice::from_ref(&own))?;
        let marker = first.lines().next().unwrap_or_default().to_owned();
        ensure!(marker.len() == 36, "no marker");
        ensure!(first.contains(" /data ext4 rw"), "{first}");
        ensure!(first.contains("files.lab:/export /shared nfs"), "{first}");
        ensure!(first.contains("noatime,vers=4.2"), "{first}");

        // After a restart of the target, the node logs in again, and pending writes are completed. Data is there from
        // the first write on. A busy machine may answer late.
        let beat = || -> Result<u64> { Ok(fetch((address, 80).into(), "/beat")?.trim().parse()?) };
        let beats = |after: u64| wait_for(BOOTS_WITHIN, || Ok(beat().ok().filter(|beat| *beat > after)));
        beats(0).context("the first write to the disk")?;
        servers.restart_target()?;
        let before = beats(0)?;
        beats(before + 3).with_context(|| {
            format!("writing to the disk after its target was restarted\n{}", machine.console_tail())
        })?;
        drop(machine);

        let second = node.boot(world, std::slice::from_ref(&own))?;
        ensure!(second.lines().next() == Some(&marker), "the data is gone");
        let said = fs::read_to_string(world.path("export/said"))?;
        ensure!(said == "n1 was here\nn1 was here\n", "{said:?}");
        ensure!(fs::read(&own.image)?.iter().all(|byte| *byte == 0), "the machine's own disk was written to");

        // Without a target, the boot reports which host was asked for what.
        servers.target.kill()?;
        drop(servers);
        let refusal = match node.boot(world, &[]) {
            Ok(page) => bail!("it booted:\n{page}"),
            Err(error) => error.to_string(),
        };
        ensure!(refusal.contains("san.lab"), "{refusal}");
        node.stop()
    });
}

/// Servers that run on other machines of a site, here on the appliance's own address.
struct Servers {
    target: Process,
    lun: Disk,
    _others: [Process; 2],
}

impl Servers {
    fn start(world: &World) -> Result<Self> {
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--bind-interfaces",
        ]);
        dnsmasq.arg("--conf-file=/dev/null").arg(format!("--listen-address={ADDRESS}"));
        dnsmasq.args(["san.lab", "files.lab"].map(|name| format!("--address=/{name}/{ADDRESS}")));
        let dnsmasq = Process::start(&mut dnsmasq, &world.path("dnsmasq.log"))?;

        fs::create_dir_all(world.path("export"))?;
        let plugins =
            lab::target().join("peers/usr/lib").join(format!("{}-linux-gnu/ganesha", std::env::consts::ARCH));
        let config = format!(
            "NFS_CORE_PARAM {{ Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Plugins_Dir = {plugins:?}; }}\n\
             NFSv4 {{ Graceless = true; RecoveryRoot = {recovery:?}; UseGetpwnam = true; \
             Only_Numeric_Owners = true; DomainName = lab; }}\n\
             EXPORT {{ Export_Id = 1; Path = {export:?}; Pseudo = /export; Access_Type = RW; \
             Squash = No_Root_Squash; SecType = sys; Protocols = 4; FSAL {{ Name = VFS; }} }}\n",
            recovery = world.path("recovery"),
            export = world.path("export"),
        );
        fs::create_dir_all(world.path("recovery"))?;
        fs::write(world.path("ganesha.conf"), config)?;
        let mut ganesha = peers::command("ganesha.nfsd");
        ganesha.arg("-F").arg("-f").arg(world.path("ganesha.conf")).arg("-p").arg(world.path("ganesha.pid"));
        ganesha.arg("-L").arg("STDERR");
        let mut ganesha = Process::start(&mut ganesha, &world.path("ganesha.log"))?;

        let lun = Disk::blank(world, "LUN", 160)?;
        let target = target(&lun)?;
        wait_for(PATIENCE, || {
            ganesha.ensure_running()?;
            Ok(TcpStream::connect((ADDRESS, 2049)).ok())
        })?;
        Ok(Self { target, lun, _others: [dnsmasq, ganesha] })
    }

    fn restart_target(&mut self) -> Result<()> {
        self.target.kill()?;
        std::thread::sleep(Duration::from_secs(3));
        self.target = target(&self.lun)?;
        Ok(())
    }
}

/// tgt, with one disk.
fn target(lun: &Disk) -> Result<Process> {
    let log = lun.image.with_extension("tgtd.log");
    let mut tgtd = Process::start(peers::command("tgtd").arg("-f"), &log)?;
    let tgtadm = |arguments: &[&str]| {
        let mut tgtadm = peers::command("tgtadm");
        tgtadm.args(["--lld", "iscsi", "--tid", "1"]).args(arguments);
        output(&mut tgtadm)
    };
    wait_for(PATIENCE, || {
        tgtd.ensure_running()?;
        Ok(tgtadm(&["--op", "new", "--mode", "target", "-T", "iqn.2026-01.lab:d1"]).ok())
    })?;
    let image = lun.image.to_str().context("a path in ASCII")?;
    tgtadm(&["--op", "new", "--mode", "logicalunit", "--lun", "1", "-b", image])?;
    tgtadm(&["--op", "bind", "--mode", "target", "-I", "ALL"])?;
    Ok(tgtd)
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
        let config = config.replace("[dhcp]\n", &format!("[dhcp]\ndns = [{ADDRESS:?}]\n"));
        let appliance = Appliance::start(world, &config)?;
        appliance.run(&["image", "add", DEMO])?;
        let (follow, events) = appliance.follow(world)?;
        Ok(Self { engine, appliance, spec, events, _follow: follow })
    }

    /// Boots, and cuts the power.
    fn boot(&self, world: &World, disks: &[Disk]) -> Result<String> {
        let end = self.boot_up(world, disks).map(|(.., page)| page);
        println!("{end:?}");
        end
    }

    fn boot_up(&self, world: &World, disks: &[Disk]) -> Result<(Machine, Ipv4Addr, String)> {
        boot(world, Spec { disks: disks.to_vec(), ..self.spec.clone() }, &self.events)
    }

    fn stop(self) -> Result<()> {
        let status = self.appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        self.engine.stop()
    }
}

/// From power-on to the workload's page.
fn boot(world: &World, spec: Spec, events: &Receiver<Event>) -> Result<(Machine, Ipv4Addr, String)> {
    while events.try_recv().is_ok() {}
    let end = Instant::now() + BOOTS_WITHIN;
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
    let page = wait_for(BOOTS_WITHIN, || Ok(page((address, 80).into()).ok()))
        .with_context(|| format!("the end of the console:\n{}", machine.console_tail()))?;
    Ok((machine, address, page))
}
