//! Boots in two stages with real firmware: GRUB loads a kernel and stage 1, and pxe-init fetches the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, find};
use lab::boot::{Boot, News, Outcome};
use lab::clients::Dhcp;
use lab::engine::{DEMO, import};
use lab::machine::{Disk, Spec};
use lab::needs::Needs;
use lab::net::{Host, ip};
use lab::process::{Process, wait_for};
use lab::timeline::Event;
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "mkfs.ext4"];
/// Generous, because times on a shared machine are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_disk_keeps_the_image_for_the_next_boot() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let disk = world.path("disk");
        fs::File::create(&disk)?.set_len(64 << 20)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-L", "bridgehead-cache"]).arg(&disk).status()?;
        ensure!(made.success(), "mkfs.ext4: {made}");
        let spec = Spec { disks: vec![Disk { serial: "CACHE".into(), image: disk }], ..Spec::numbered(1) };
        // An application of 5 MB, BusyBox included.
        let mut boot = prepare(world, &spec, 3_000_000)?;
        let size = stage2(&boot)?.1;

        boot.power_on(world, vec![spec.clone()])?;
        let first = watch(&mut boot)?;
        boot.failures()?;
        let image = image_event(&first)?;
        ensure!(image.bytes == Some(size), "{image:?}");
        ensure!(detail(image).contains("fetched, kept on vda"), "{image:?}");
        let all: u64 = first.iter().filter_map(|event| event.bytes).sum();
        println!("the node downloaded {all} bytes in all, {size} of them as stage 2");
        ensure!(all < 25_000_000, "{all} bytes in all");
        let nodes = boot.appliance.json(&["nodes"])?;
        let node = find(&nodes, &|o| o.get("name").and_then(Value::as_str) == Some("n1"));
        ensure!(node.and_then(|n| n.get("stages")?.as_u64()) == Some(2), "{node:?}");

        // The power is cut: the data on the disk must be there nevertheless.
        boot.power_on(world, vec![spec.clone()])?;
        let second = watch(&mut boot)?;
        boot.failures()?;
        let image = image_event(&second)?;
        ensure!(image.bytes == Some(0) && detail(image).contains("found on vda"), "{image:?}");

        // Another page, and one bit in the middle of the ballast.
        let root = world.path(DEMO.replace(':', "-"));
        let start = fs::read_to_string(root.join("start"))?;
        fs::write(root.join("start"), start.replace("mkdir -p /www", "mkdir -p /www # changed"))?;
        flip(&root.join("ballast"))?;
        import(&root, DEMO, &["ENTRYPOINT [\"/start\"]"])?;
        boot.appliance.run(&["image", "add", DEMO])?;
        let unchanged = std::mem::replace(&mut boot.digest, boot.appliance.image_digest(DEMO)?);
        ensure!(boot.digest != unchanged, "the image did not change");
        boot.power_on(world, vec![spec.clone()])?;
        let changed = watch(&mut boot)?;
        boot.failures()?;
        let image = image_event(&changed)?;
        let size = stage2(&boot)?.1;
        println!("{} of {size} bytes were fetched", image.bytes.unwrap_or_default());
        ensure!(image.bytes.is_some_and(|bytes| bytes > 0 && bytes * 20 < size), "{image:?}");
        let words = format!("of {:.1} MB fetched, the rest was in the cache, kept on vda", size as f64 / 1e6);
        ensure!(detail(image).contains(&words), "{image:?}");
        boot.stop()
    });
}

#[test]
fn an_image_that_others_want_too_comes_by_multicast() {
    world::test(Needs::of(&[&PROGRAMS[..], &["curl", "udhcpc"]].concat()).machine(512), |world| {
        let spec = Spec::numbered(1);
        let other = Host::new("other", 1)?;
        let ports = [spec.tap.clone(), other.port()];
        let config = appliance::demo(world, &ports, std::slice::from_ref(&spec), "auto");
        let config =
            config.replace("cmdline =", "stages  = \"two\"\ncmdline =") + "\n[carousel]\nat-least = 2\n";
        let mut boot =
            Boot::prepare(world, std::slice::from_ref(&spec), &config, 16 << 20, |step| println!("{step}"))?;
        Dhcp::Udhcpc.move_in(world, &other)?;
        // To the appliance, it is another machine that fetches it.
        let (sha256, size) = stage2(&boot)?;
        let asks = format!(
            "while :; do curl -s -H 'Content-Type: application/json' -d '{{}}' http://{}/carousel/{sha256}; sleep 1; done",
            appliance::ADDRESS
        );
        let _asking = Process::start(other.command("sh").args(["-c", &asks]), &world.path("other.log"))?;

        boot.power_on(world, vec![spec])?;
        let events = watch(&mut boot)?;
        boot.failures()?;
        let image = image_event(&events)?;
        ensure!(image.bytes == Some(size), "{image:?}");
        ensure!(detail(image).contains("by multicast"), "{image:?}");
        boot.stop()
    });
}

#[test]
fn a_link_that_is_cut_in_the_middle_is_resumed() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let mut boot = prepare(world, &spec, 96 << 20)?;
        boot.power_on(world, vec![spec.clone()])?;
        let sent = PathBuf::from(format!("/sys/class/net/{}/statistics/tx_bytes", spec.tap));
        let sent = || -> Result<u64> { Ok(fs::read_to_string(&sent)?.trim().parse()?) };
        let cut = std::thread::scope(|scope| {
            let cutting = scope.spawn(|| -> Result<()> {
                // The kernel and stage 1 are about 13 MiB.
                wait_for(PATIENCE, || Ok((sent()? > 50 << 20).then_some(())))
                    .context("the transfer of stage 2")?;
                ip(["link", "set", &spec.tap, "down"])?;
                // Until pxe-init gives up.
                let console = world.path(format!("{}.console", spec.name));
                wait_for(PATIENCE, || {
                    Ok(fs::read_to_string(&console)?.contains("sends no more").then_some(()))
                })
                .context("the link is down, and the machine does not say so")?;
                let at = sent()?;
                ensure!(at < 96 << 20, "{at} bytes were sent before the cut");
                println!("cut after {at} bytes");
                ip(["link", "set", &spec.tap, "up"])?;
                Ok(())
            });
            let events = watch(&mut boot);
            cutting.join().expect("no panic")?;
            events
        })?;
        boot.failures()?;
        let image = image_event(&cut)?;
        ensure!(detail(image).contains("fetched, after the link was lost"), "{image:?}");
        let console = boot.machines[0].machine.console_text();
        ensure!(console.contains("sends no more"), "{console}");
        boot.stop()
    });
}

#[test]
fn a_flipped_bit_is_refused() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let mut boot = prepare(world, &spec, 1 << 20)?;
        let (sha256, _) = stage2(&boot)?;
        flip(&world.path("state/images/blobs").join(sha256))?;
        boot.power_on(world, vec![spec])?;
        let events = watch(&mut boot)?;
        match &boot.machines[0].outcome {
            Some(Outcome::Failed(why)) => {
                ensure!(why.starts_with("the image is damaged: SHA-256 "), "{why}");
            }
            other => anyhow::bail!("{other:?}"),
        }
        ensure!(events.iter().all(|event| event.stage != "image" && event.stage != "workload"));
        boot.stop()
    });
}

/// An image that GRUB could not load: in one stage this machine would need 2 GiB. `auto` decides by the memory that the
/// configuration declares.
#[test]
#[ignore = "takes minutes: 600 MB through an emulated processor"]
fn six_hundred_megabytes_boot_with_a_gibibyte() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| {
        let (boot, events) = boot_large(world, 1024, "auto")?;
        let image = image_event(&events)?;
        ensure!(image.bytes == Some(stage2(&boot)?.1), "{image:?}");
        boot.stop()
    });
}

/// For comparison: the same image as an initrd, on a machine with enough memory for it.
#[test]
#[ignore = "takes minutes: 600 MB through an emulated processor"]
fn six_hundred_megabytes_in_one_stage() {
    world::test(Needs::of(&PROGRAMS).machine(4096), |world| boot_large(world, 4096, "one")?.0.stop());
}

fn boot_large(world: &World, memory_mib: u32, stages: &str) -> Result<(Boot, Vec<Event>)> {
    let spec = Spec { memory_mib, ..Spec::numbered(1) };
    let ports = [spec.tap.clone()];
    let specs = std::slice::from_ref(&spec);
    let config = appliance::demo(world, &ports, specs, "auto");
    let config = config.replace("cmdline =", &format!("stages  = {stages:?}\ncmdline ="));
    let mut boot = Boot::prepare(world, specs, &config, 600_000_000, |step| println!("{step}"))?;
    boot.power_on(world, vec![spec])?;
    let events = watch(&mut boot)?;
    boot.failures()?;
    Ok((boot, events))
}

/// Prepares everything except power for a machine that boots the demo image, with this much ballast, in two stages.
fn prepare(world: &World, spec: &Spec, ballast: u64) -> Result<Boot> {
    let ports = [spec.tap.clone()];
    let config = appliance::demo(world, &ports, std::slice::from_ref(spec), "auto");
    let config = config.replace("cmdline =", "stages  = \"two\"\ncmdline =");
    Boot::prepare(world, std::slice::from_ref(spec), &config, ballast, |step| println!("{step}"))
}

/// Follows the boot to its end, and returns the timeline's events.
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
