//! Nodes that run a Docker engine: the appliance places workloads on them, which return after a power failure. No
//! others can use the engine.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{self, Appliance};
use lab::boot::page;
use lab::engine::Engine;
use lab::machine::{Disk, Machine, Spec};
use lab::needs::Needs;
use lab::net::tap;
use lab::process::{Process, output, wait_for};
use lab::timeline::Event;
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "curl", "openssl"];

/// A page with the workload's environment and the contents of its volume, to which it writes once.
const START: &str = r#"#!/bin/sh
set -e
b=/bin/busybox
$b mkdir -p /www /data
[ -e /data/marker ] || $b cat /proc/sys/kernel/random/uuid > /data/marker
$b sync
{ echo "$GREETING"; $b cat /data/marker; } > /www/index.html
exec $b httpd -f -h /www -p 80
"#;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

/// Generous, because times on a shared machine are printed, not judged.
const BOOTS_WITHIN: Duration = Duration::from_secs(500);

const TWO: &str = r#"
[[workload]]
name        = "web"
image       = "web:latest"
ports       = ["80:80"]
environment = { GREETING = "hello" }
on          = { node = "n1" }

[[workload]]
name        = "other"
image       = "other:latest"
ports       = ["8080:80"]
environment = { GREETING = "another" }
on          = { label = "lab", count = 1 }
"#;

#[test]
fn workloads_come_back_after_a_power_cut_and_strangers_are_refused() {
    // dockerd gives up if containerd takes longer than 30 s, which may happen beside another emulated machine.
    world::test(Needs::of(&PROGRAMS).machine(2048).undisturbed(), |world| {
        let lab = Lab::start(world, "", TWO, &["web:latest", "other:latest"])?;
        let first = lab.boot(world, &[])?;
        ensure!(lab.greeting(80)? == "hello" && lab.greeting(8080)? == "another");
        let workloads = lab.appliance.json(&["workloads"])?;
        for (name, image) in [("web", "web:latest"), ("other", "other:latest")] {
            let shown = find(&workloads, name)?;
            ensure!(
                shown["node"] == "n1" && shown["image"] == image && shown["state"] == "running",
                "{shown}"
            );
            ensure!(shown["since"].is_string() && shown["address"] == NODE.to_string(), "{shown}");
        }
        let table = lab.appliance.run(&["workloads"])?;
        ensure!(table.contains("NODE") && table.contains("10.77.0.11 8080:80/tcp"), "{table}");
        strangers_are_refused(world)?;

        // A changed entry gets a new container; the other one keeps running.
        let other = lab.page(8080)?;
        let file = world.path("bridgehead.toml");
        fs::write(&file, fs::read_to_string(&file)?.replace("\"hello\"", "\"good day\""))?;
        lab.appliance.run(&["reload"])?;
        wait_for(BOOTS_WITHIN, || Ok(lab.greeting(80).ok().filter(|g| g == "good day")))?;
        ensure!(lab.page(8080)? == other, "a workload that did not change was made anew");

        drop(first);
        let _second = lab.boot(world, &[])?;
        ensure!(lab.greeting(80)? == "good day" && lab.greeting(8080)? == "another");
        ensure!(lab.page(8080)? != other, "there is no disk that could have kept it");

        // The daemon is killed, and the node keeps running; the next daemon finds the node's containers.
        let before = lab.page(80)?;
        let Lab { appliance, engine, .. } = lab;
        appliance.crash()?;
        ensure!(page((NODE, 80).into())? == before);
        let appliance = Appliance::start(world, &fs::read_to_string(&file)?)?;
        wait_for(BOOTS_WITHIN, || {
            let workloads = appliance.json(&["workloads"])?;
            let all = [find(&workloads, "web")?, find(&workloads, "other")?];
            Ok(all.iter().all(|workload| workload["state"] == "running").then_some(()))
        })?;
        ensure!(page((NODE, 80).into())? == before, "its container was made anew");
        let status = appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        engine.stop()
    });
}

const STORAGE: &str = r#"
[[storage]]
name = "data"

[[storage.disks]]
name = "one"

[[storage.volume]]
name  = "engine"
disks = "one"
mount = "/var/lib/docker"
"#;

const PET: &str = r#"
[[workload]]
name        = "pet"
image       = "web:latest"
ports       = ["80:80"]
environment = { GREETING = "it is me" }
volumes     = ["data:/data"]
on          = { label = "lab", count = 1 }
"#;

#[test]
fn a_pet_keeps_its_data_through_a_power_cut_and_another_container() {
    world::test(Needs::of(&PROGRAMS).machine(2048).undisturbed(), |world| {
        let disks = [Disk::blank(world, "D1", 1024)?];
        let lab = Lab::start(world, STORAGE, PET, &["web:latest"])?;
        let first = lab.boot(world, &disks)?;
        let marker = lab.marker(80)?;
        ensure!(marker.len() == 36, "no marker: {marker}");
        drop(first);

        let _second = lab.boot(world, &disks)?;
        ensure!(lab.marker(80)? == marker, "the data is gone");
        let log = fs::read_to_string(lab.appliance.log())?;
        ensure!(log.matches("image brought to a node").count() == 1, "the image was on the disk already");
        // Another container, the same volume.
        let file = world.path("bridgehead.toml");
        fs::write(&file, fs::read_to_string(&file)?.replace("it is me", "still me"))?;
        lab.appliance.run(&["reload"])?;
        wait_for(BOOTS_WITHIN, || Ok(lab.greeting(80).ok().filter(|g| g == "still me")))?;
        ensure!(lab.marker(80)? == marker, "the data went with the container");
        lab.stop()
    });
}

/// An appliance with a machine on its wire that shall run containers.
struct Lab {
    engine: Engine,
    appliance: Appliance,
    spec: Spec,
    events: Receiver<Event>,
    _follow: Process,
}

impl Lab {
    fn start(world: &World, storage: &str, workloads: &str, images: &[&str]) -> Result<Self> {
        let engine = Engine::start(world)?;
        for image in images {
            engine.make_image(world, image, START, 0)?;
        }
        let spec = Spec { memory_mib: 2048, address: Some(NODE), ..Spec::numbered(1) };
        tap(&spec.tap)?;
        let mut config = appliance::address_only(world, std::slice::from_ref(&spec.tap), "auto");
        let plan = if storage.is_empty() { "" } else { "storage = \"data\"\n" };
        config += &format!(
            "\n[[profile]]\nname = \"docker\"\nrun = \"docker\"\ncmdline = \"console=ttyS0 no_timer_check\"\n{plan}\
             \n[[node]]\nname = {:?}\nmac = {:?}\nmemory = \"2G\"\naddress = \"{NODE}\"\nprofile = \"docker\"\n\
             labels = [\"lab\"]\n{storage}{workloads}",
            spec.name, spec.mac
        );
        let appliance = Appliance::start(world, &config)?;
        println!("bringing the node's image in");
        wait_for(BOOTS_WITHIN, || {
            let profiles = appliance.json(&["profiles"])?;
            Ok(appliance::find(&profiles, &|p| p["name"] == "docker" && p["ready"] == true).map(|_| ()))
        })?;
        let (follow, events) = appliance.follow(world)?;
        Ok(Self { engine, appliance, spec, events, _follow: follow })
    }

    /// From power-on until all of the node's workloads are running.
    fn boot(&self, world: &World, disks: &[Disk]) -> Result<Machine> {
        while self.events.try_recv().is_ok() {}
        let end = Instant::now() + BOOTS_WITHIN;
        let spec = Spec { disks: disks.to_vec(), ..self.spec.clone() };
        let mut machine = Machine::power_on(world, spec, None)?;
        loop {
            machine.ensure_running()?;
            if Instant::now() > end {
                let workloads = self.appliance.run(&["workloads"])?;
                bail!("out of time:\n{workloads}\nthe end of the console:\n{}", machine.console_tail());
            }
            let Ok(event) = self.events.recv_timeout(Duration::from_millis(200)) else { continue };
            let seconds = event.seconds_since(machine.powered_on);
            println!("{seconds:7.2} s  {}  {}", event.stage, event.detail.as_deref().unwrap_or_default());
            match event.stage.as_str() {
                "failed" => bail!(
                    "{}\nthe end of the console:\n{}",
                    event.cause.unwrap_or_default(),
                    machine.console_tail()
                ),
                "workload" => return Ok(machine),
                _ => {}
            }
        }
    }

    /// A workload's answer. It may not listen yet.
    fn page(&self, port: u16) -> Result<String> {
        wait_for(BOOTS_WITHIN, || Ok(page((NODE, port).into()).ok()))
    }

    fn greeting(&self, port: u16) -> Result<String> {
        Ok(self.page(port)?.lines().next().unwrap_or_default().to_owned())
    }

    fn marker(&self, port: u16) -> Result<String> {
        Ok(self.page(port)?.lines().nth(1).unwrap_or_default().to_owned())
    }

    fn stop(self) -> Result<()> {
        let status = self.appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        self.engine.stop()
    }
}

fn find<'a>(workloads: &'a Value, name: &str) -> Result<&'a Value> {
    let found = appliance::find(workloads, &|w| w["name"] == name);
    found.with_context(|| format!("no workload {name}: {workloads}"))
}

/// The node's engine obeys only clients with a client certificate from its own authority. It refuses clients without
/// one, with a certificate from a self-made authority or the one for nodes, and with a server certificate.
fn strangers_are_refused(world: &World) -> Result<()> {
    let state = world.path("state");
    let own = Stranger::new(world, "own", None, "clientAuth")?;
    let node = Stranger::new(world, "node", Some(state.join("ca")), "clientAuth")?;
    let server = Stranger::new(world, "server", Some(state.join("engines")), "serverAuth")?;
    let client = Stranger::new(world, "client", Some(state.join("engines")), "clientAuth")?;
    let url = format!("https://{NODE}:2376/version");
    let ask = |stranger: Option<&Stranger>| -> Result<(bool, String)> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert"]).arg(state.join("engines.pem")).arg(&url);
        if let Some(Stranger { certificate, key }) = stranger {
            curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let answer = curl.output()?;
        let words = [answer.stdout, answer.stderr].concat();
        Ok((answer.status.success(), String::from_utf8_lossy(&words).into_owned()))
    };
    // The right one first, which was created last: the node's clock may be slow, and when this one is valid, the others
    // are, too. All ask in the same way, so that a refusal is due to the certificate.
    wait_for(BOOTS_WITHIN, || Ok(ask(Some(&client))?.1.contains("ApiVersion").then_some(())))
        .context("a client of the right authority is refused")?;
    for stranger in [None, Some(&own), Some(&node), Some(&server)] {
        let (answered, words) = ask(stranger)?;
        ensure!(!answered && !words.contains("ApiVersion"), "a stranger is obeyed: {words}");
        ensure!(words.contains("alert"), "it is refused for another reason: {words}");
    }
    let plain =
        Command::new("curl").args(["-s", "--max-time", "20", &url.replace("https", "http")]).output()?;
    ensure!(!String::from_utf8_lossy(&plain.stdout).contains("ApiVersion"), "it answers without TLS");
    Ok(())
}

/// A certificate created by OpenSSL.
struct Stranger {
    certificate: PathBuf,
    key: PathBuf,
}

impl Stranger {
    /// From the authority with the files `authority.key` and `.pem`, or self-signed.
    fn new(world: &World, name: &str, authority: Option<PathBuf>, usage: &str) -> Result<Self> {
        let at = |end: &str| world.path(format!("stranger-{name}.{end}"));
        let (key, request, certificate, extensions) = (at("key"), at("csr"), at("pem"), at("ext"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        output(openssl.args(["-subj", "/CN=bridgehead", "-keyout"]).arg(&key).arg("-out").arg(&request))?;
        fs::write(&extensions, format!("extendedKeyUsage={usage}\n"))?;
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-req", "-days", "2", "-in"]).arg(&request).arg("-extfile").arg(&extensions);
        match authority {
            Some(stem) => {
                openssl.arg("-CA").arg(stem.with_extension("pem"));
                openssl.arg("-CAkey").arg(stem.with_extension("key")).arg("-CAcreateserial");
            }
            None => drop(openssl.arg("-signkey").arg(&key)),
        }
        output(openssl.arg("-out").arg(&certificate))?;
        Ok(Self { certificate, key })
    }
}
