//! `cargo xtask bench boot`: the same machines and files, served by dnsmasq in its usual configuration, and by
//! the appliance. Times are read from a capture at the machine's own card.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::lab::appliance::{ADDRESS, Appliance, BRIDGE, demo};
use ::lab::boot::{check_page, page};
use ::lab::capture::{self, Files, Stages};
use ::lab::dnsmasq::Dnsmasq;
use ::lab::engine::{DEMO, Engine};
use ::lab::machine::{Firmware, Machine, Spec};
use ::lab::net;
use ::lab::process::{output, wait_for};
use ::lab::world::World;
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde::Serialize;

use super::report::{Group, Report, Table};
use super::samples::{median, save};

/// How long one boot may take: dnsmasq's BIOS boots take 25 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Server {
    Dnsmasq,
    Bridgehead,
}

/// One boot, as `target/bench/boot.json` keeps it: seconds since power-on.
#[derive(Debug, Serialize)]
struct Sample {
    firmware: &'static str,
    server: Server,
    #[serde(flatten)]
    stages: Stages,
    /// The workload's page was fetched.
    page: f64,
}

impl Sample {
    /// The table's columns.
    fn row(&self) -> [Option<f64>; 7] {
        let Stages { discover, ack, loader, kernel, initrd, init } = self.stages;
        [discover, ack, loader, kernel, initrd, init, Some(self.page)]
    }
}

pub(super) fn boot(world: &World, pairs: u32) -> Result<Report> {
    let mut specs = [Spec::numbered(1), Spec::numbered(2)];
    for (n, spec) in specs.iter_mut().enumerate() {
        // dnsmasq must give the same address, because it is in the files that both serve.
        spec.address = Some(Ipv4Addr::new(10, 77, 0, 11 + n as u8));
        net::tap(&spec.tap)?;
    }
    let engine = Engine::start(world)?;
    engine.make_demo_image(world)?;
    let mut samples = Vec::new();
    for pair in 1..=pairs {
        for spec in &specs {
            for server in [Server::Bridgehead, Server::Dnsmasq] {
                let sample = match server {
                    Server::Bridgehead => from_bridgehead(world, &specs, spec),
                    Server::Dnsmasq => from_dnsmasq(world, spec),
                };
                let sample = sample.with_context(|| format!("{} from {server:?}", spec.firmware.name()))?;
                println!("{pair}/{pairs}  {} from {server:?}: {:.1} s", sample.firmware, sample.page);
                samples.push(sample);
                save("boot", &samples)?;
            }
        }
    }
    Ok(Report { name: "boot", tables: vec![table(&samples)], goals: Vec::new(), notes: Vec::new() })
}

fn from_bridgehead(world: &World, specs: &[Spec], spec: &Spec) -> Result<Sample> {
    let ports: Vec<String> = specs.iter().map(|s| s.tap.clone()).collect();
    let appliance = Appliance::start(world, &demo(world, &ports, specs, "auto"))?;
    appliance.run(&["image", "add", DEMO])?;
    let digest = appliance.image_digest(DEMO)?;
    // The machine has its lease before its files are copied, because these name the address.
    let (machine, capture, page) = power_on(world, spec, &digest)?;
    let files = mirror(world, spec)?;
    drop(machine);
    let sample = sample(spec, Server::Bridgehead, &capture, &files, page)?;
    fs::write(world.path("digest"), digest)?;
    appliance.stop()?;
    Ok(sample)
}

fn from_dnsmasq(world: &World, spec: &Spec) -> Result<Sample> {
    net::bridge(BRIDGE, &format!("{ADDRESS}/24"))?;
    net::plug(&spec.tap, BRIDGE)?;
    let address = spec.address.context("benchmark machines have reservations")?;
    let arguments = [
        format!("--interface={BRIDGE}"),
        "--dhcp-range=10.77.0.100,10.77.0.199,1h".into(),
        format!("--dhcp-host={},{address}", spec.mac),
        "--dhcp-match=set:efi64,option:client-arch,7".into(),
        format!("--dhcp-boot={}", loader(Firmware::Bios)),
        format!("--dhcp-boot=tag:efi64,{}", loader(Firmware::Uefi)),
        "--enable-tftp".into(),
        format!("--tftp-root={}", mirror_root(world, spec).display()),
    ];
    let log = world.path("dnsmasq.log");
    let dnsmasq = Dnsmasq::start(Command::new("dnsmasq"), &arguments, &log)?;
    let digest = fs::read_to_string(world.path("digest"))?;
    let (machine, capture, page) =
        power_on(world, spec, &digest).with_context(|| format!("dnsmasq:\n{}", dnsmasq.last_lines(15)))?;
    drop(machine);
    let files = files(&fs::read_to_string(mirror_root(world, spec).join("grub/grub.cfg"))?, spec)?;
    drop(dnsmasq);
    net::ip(["link", "delete", BRIDGE])?;
    sample(spec, Server::Dnsmasq, &capture, &files, page)
}

/// Boots a machine until its page is right. Returns it with its capture and the page's time.
fn power_on(world: &World, spec: &Spec, digest: &str) -> Result<(Machine, PathBuf, f64)> {
    let capture = world.path(format!("{}.pcap", spec.name));
    let mut machine = Machine::power_on(world, spec.clone(), Some(&capture))?;
    let address = spec.address.context("benchmark machines have reservations")?;
    let text = wait_for(PATIENCE, || {
        machine.ensure_running()?;
        Ok(page((address, 80).into()).ok())
    })
    .with_context(|| format!("the end of {}'s console:\n{}", spec.name, machine.console_tail()))?;
    let seconds = Timestamp::now().duration_since(machine.powered_on).as_secs_f64();
    check_page(&text, &spec.name, digest)?;
    Ok((machine, capture, seconds))
}

fn sample(spec: &Spec, server: Server, capture: &Path, files: &Files, page: f64) -> Result<Sample> {
    let stages = capture::stages(capture, &spec.mac, files)?;
    Ok(Sample { firmware: spec.firmware.name(), server, stages, page })
}

/// The first-stage file for a firmware, by the name that both servers give.
fn loader(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "grub/i386-pc.0",
        Firmware::Uefi => "grub/x86_64-efi.efi",
    }
}

fn mirror_root(world: &World, spec: &Spec) -> PathBuf {
    world.path(format!("mirror-{}", spec.name))
}

/// Copies what the appliance serves to one machine into a TFTP root: its grub.cfg, as a plain file, and all
/// files that it names.
fn mirror(world: &World, spec: &Spec) -> Result<Files> {
    let root = mirror_root(world, spec);
    let get = |from: &str, to: &str| -> Result<PathBuf> {
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        let url = format!("http://{ADDRESS}/{from}");
        output(
            Command::new("curl").args(["--silent", "--show-error", "--fail", "--output"]).arg(&to).arg(url),
        )?;
        Ok(to)
    };
    let own = format!("grub/grub.cfg-01-{}", spec.mac.replace(':', "-"));
    let text = fs::read_to_string(get(&own, "grub/grub.cfg")?)?;
    get(loader(spec.firmware), loader(spec.firmware))?;
    for name in names(&text) {
        get(&name, &name)?;
    }
    files(&text, spec)
}

/// The files that a grub.cfg loads by `linux` and `initrd`, without leading slash or device.
fn names(grub_cfg: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in grub_cfg.lines() {
        let mut words = line.split_whitespace().map(|w| w.trim_matches(|c| matches!(c, '"' | '\'' | ';')));
        // Commands are alone on a line, or the condition of an `if`.
        let files = match words.find(|w| *w != "if") {
            Some("linux") => words.take(1).collect::<Vec<_>>(),
            Some("initrd") => words.collect(),
            _ => continue,
        };
        let path = |file: &str| file.find("boot/").map(|at| file[at..].to_owned());
        names.extend(files.into_iter().filter_map(path).filter(|n| !names.contains(n)).collect::<Vec<_>>());
    }
    names
}

fn files(grub_cfg: &str, spec: &Spec) -> Result<Files> {
    let names = names(grub_cfg);
    let [kernel, .., initrd] = &names[..] else {
        bail!("{}'s grub.cfg names no kernel and initrd:\n{grub_cfg}", spec.name)
    };
    Ok(Files { loader: loader(spec.firmware).into(), kernel: kernel.clone(), initrd: initrd.clone() })
}

/// Medians, a row for each firmware and server.
fn table(samples: &[Sample]) -> Table {
    const STAGES: [&str; 7] = ["DISCOVER", "ACK", "loader", "kernel", "initrd", "init runs", "page"];
    let row = |firmware: &str, server: Server| {
        let these = samples.iter().filter(|s| s.firmware == firmware && s.server == server);
        let rows: Vec<_> = these.map(Sample::row).collect();
        let stage = |n: usize| median(rows.iter().filter_map(|row| row[n]));
        (format!("{server:?}"), (0..STAGES.len()).map(stage).collect())
    };
    let group = |firmware: Firmware| {
        let firmware = firmware.name();
        Group {
            title: format!("GRUB from {firmware}"),
            rows: [Server::Bridgehead, Server::Dnsmasq].map(|server| row(firmware, server)).into(),
        }
    };
    Table {
        caption: "Seconds since power-on, medians".into(),
        heads: STAGES.map(|stage| (stage, true)).into(),
        groups: [Firmware::Bios, Firmware::Uefi].map(group).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_what_it_loads() {
        let text = "menuentry x {\n  if linux (tftp,10.77.0.1)/boot/aa/kernel console=ttyS0 x=/boot/no; then\n  \
                    initrd '/boot/aa/stage1' /boot/bb/image\n}\n";
        assert_eq!(names(text), ["boot/aa/kernel", "boot/aa/stage1", "boot/bb/image"]);
        let files = files(text, &Spec::numbered(1)).unwrap();
        assert_eq!((files.kernel.as_str(), files.initrd.as_str()), ("boot/aa/kernel", "boot/bb/image"));
    }
}
