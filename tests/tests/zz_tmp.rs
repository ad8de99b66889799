//! Boots in two stages with real firmware: GRUB loads a kernel and stage 1, and pxe-init fetches the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, find};
use lab::boot::{Boot, News, Outcome};
use lab::engine::DEMO;
use lab::machine::Spec;
use lab::net::ip;
use lab::process::wait_for;
use lab::timeline::Event;
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "mkfs.ext4"];
/// Generous: time on a shared machine is told and not judged.
const PATIENCE: Duration = Duration::from_secs(900);

#[test]
#[ignore]
fn small_memory() {
    world::test(&PROGRAMS, |world| {
        let spec = Spec { memory_mib: 304, ..Spec::numbered(1) };
        let ports = [spec.tap.clone()];
        let specs = std::slice::from_ref(&spec);
        let config = appliance::demo(world, &ports, specs, "auto");
        let mut boot = Boot::prepare(world, specs, &config, 96 << 20, |step| println!("{step}"))?;
        boot.power_on(world, vec![spec.clone()])?;
        let events = watch(&mut boot)?;
        println!("{:?}", boot.failures());
        println!(
            "{}",
            boot.machines[0]
                .machine
                .console_text()
                .lines()
                .filter(|l| l.contains("bridgehead"))
                .collect::<Vec<_>>()
                .join("\n")
        );
        let _ = events;
        boot.stop()
    });
}
#[test]
#[ignore]
fn small_memory_unknown() {
    world::test(&PROGRAMS, |world| {
        let spec = Spec { memory_mib: 192, ..Spec::numbered(1) };
        let ports = [spec.tap.clone()];
        let specs = std::slice::from_ref(&spec);
        let config = appliance::demo(world, &ports, specs, "auto").replace("memory  = \"192M\"", "");
        let mut boot = Boot::prepare(world, specs, &config, 96 << 20, |step| println!("{step}"))?;
        boot.power_on(world, vec![spec.clone()])?;
        watch(&mut boot)?;
        println!("{:?}", boot.failures());
        boot.stop()
    });
}
#[test]
#[ignore]
fn one_stage() {
    world::test(&PROGRAMS, |world| {
        let spec = Spec { memory_mib: 2560, ..Spec::numbered(1) };
        let ports = [spec.tap.clone()];
        let specs = std::slice::from_ref(&spec);
        let config =
            appliance::demo(world, &ports, specs, "auto").replace("cmdline =", "stages = \"one\"\ncmdline =");
        let mut boot = Boot::prepare(world, specs, &config, 600_000_000, |step| println!("{step}"))?;
        boot.power_on(world, vec![spec.clone()])?;
        watch(&mut boot)?;
        println!("{:?}", boot.failures());
        boot.stop()
    });
}
/// Everything but power for a machine that boots the demo image, with so much ballast, in two stages.
fn prepare(world: &World, spec: &Spec, ballast: u64) -> Result<Boot> {
    let ports = [spec.tap.clone()];
    let config = appliance::demo(world, &ports, std::slice::from_ref(spec), "auto");
    let config = config.replace("cmdline =", "stages  = \"two\"\ncmdline =");
    Boot::prepare(world, std::slice::from_ref(spec), &config, ballast, |step| println!("{step}"))
}

/// Follows the boot to its end, and gives back what the timeline had of it.
fn watch(boot: &mut Boot) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    boot.watch(PATIENCE, |_, news| {
        if let News::Event(_, event, seconds) = news {
            let (bytes, detail) = (event.bytes.unwrap_or_default(), detail(event));
            println!("{seconds:7.2} s  {} ({}) {bytes} {detail}", event.stage, event.answered_by);
            events.push(event.clone());
        }
    })?;
    Ok(events)
}

fn image_event(events: &[Event]) -> Result<&Event> {
    events.iter().find(|event| event.stage == "image").context("no `image` in the timeline")
}

fn detail(event: &Event) -> &str {
    event.detail.as_deref().unwrap_or_default()
}

/// The digest and size of the demo image's stage 2.
fn stage2(boot: &Boot) -> Result<(String, u64)> {
    let images = boot.appliance.json(&["images"])?;
    let image = find(&images, &|o| o.get("reference").and_then(Value::as_str) == Some(DEMO));
    let blob = image.and_then(|image| image.get("stage2-blob")).context("no stage 2")?;
    let text = |key: &str| blob.get(key).context("a blob has a digest and a size");
    Ok((text("sha256")?.as_str().unwrap_or_default().to_owned(), text("size")?.as_u64().unwrap_or_default()))
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;

    let file = fs::File::options().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    byte[0] ^= 0x10;
    Ok(file.write_all_at(&byte, middle)?)
}
