//! Machines with real firmware that boot through an appliance in a virtual machine.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Places, demo_at, find};
use lab::boot::{check_page, page};
use lab::engine::{DEMO, Engine, docker};
use lab::guest::appliance::{PORT, STATE};
use lab::guest::{Card, Guest, Inside, LAN, Options, Suite};
use lab::machine::{Firmware, Machine, Spec};
use lab::net;
use lab::process::wait_for;
use lab::timeline::Event;
use lab::world::World;

use crate::row::host;

/// The assets that a boot of the demo image needs. The rest is three times as large.
const ASSETS: [&str; 6] = ["busybox", "grub", "kernel", "pxe-init", "rescue", "storage"];

/// Three emulated machines on two processors: times are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(600);

/// One BIOS and one UEFI machine, from power-on to the page of an image that came from a tar archive.
pub(crate) fn machines_boot_through_it(world: &World, suite: Suite) -> Result<()> {
    let archive = world.path("demo.tar");
    let engine = Engine::start(world)?;
    engine.make_demo_image(world)?;
    docker(&["save", "--output", &archive.display().to_string(), DEMO])?;
    engine.stop()?;

    let mut options = Options::new(suite, Card::VIRTIO)?;
    options.memory_mib = 2048;
    options.files.push((archive, "demo.tar".into()));
    options.files.extend(ASSETS.map(|name| (lab::assets().join(name), format!("assets/{name}"))));
    let guest = Guest::boot(world, &options)?;
    let specs = [(1, Firmware::Bios), (2, Firmware::Uefi)].map(|(n, firmware)| Spec {
        firmware,
        address: Some([10, 77, 0, 10 + n].into()),
        ..Spec::numbered(n)
    });
    let places = Places { state: STATE.into(), files: "/srv/boot".into() };
    let inside = Inside::start(&guest, &demo_at(&places, &[PORT.to_owned()], &specs, "auto"))?;
    let added = guest.run_for(PATIENCE, "bridgehead image add /demo.tar")?;
    added.text().with_context(|| format!("{:?}", inside.log()))?;
    let images = inside.json("images")?;
    let image = find(&images, &|o| o["reference"] == DEMO);
    let digest = image.and_then(|image| image["digest"].as_str()).with_context(|| images.to_string())?;

    let watcher = host("a", 99)?;
    watcher.address("10.77.0.250/24")?;
    for spec in specs {
        net::tap(&spec.tap)?;
        net::plug(&spec.tap, LAN)?;
        let (name, address) = (spec.name.clone(), spec.address.context("a reservation")?);
        let mut machine = Machine::power_on(world, spec, None)?;
        let page = wait_for(PATIENCE, || {
            machine.ensure_running()?;
            watcher.inside(|| Ok(page((address, 80).into()).ok()))
        });
        let page = page.with_context(|| {
            let events = inside.command(&format!("events --node {name}"));
            format!("{name}: {events:?}\n{}", machine.console_tail())
        })?;
        check_page(&page, &name, digest)?;
        by_the_kernel(&inside, &name)?;
    }
    inside.stop()
}

/// What the kernel can send was sent by the kernel.
fn by_the_kernel(inside: &Inside<'_>, node: &str) -> Result<()> {
    let events = inside.command(&format!("events --node {node} --json"))?;
    let events: Vec<Event> = events.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // The initrds end with this machine's own files, which are small: the daemon sends them.
    for stage in ["loader", "kernel"] {
        let event = events.iter().find(|e| e.stage == stage);
        let by = event.map(|e| e.answered_by.as_str());
        println!("{node}: {stage} by {by:?}");
        ensure!(
            matches!(by, Some("tc" | "xdp")),
            "{node}: {stage} was sent by {by:?}: {:#}",
            inside.json("status")?
        );
    }
    Ok(())
}
