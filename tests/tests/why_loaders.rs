//! Loaders that go round, because they can't load what they were told to, and what the appliance says of them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance, address_only, find};
use lab::load::Numbers;
use lab::net::Host;
use lab::process::{PATIENCE, wait_for};
use lab::rom::{Ends, Rom};
use lab::world;
use serde_json::Value;

const UEFI: u16 = 7;
const LOADER: &str = "grub/x86_64-efi.efi";

/// An appliance that gives unknown machines a kernel by hand and its initrd, which lie below `files`.
fn config(address_only: &str) -> String {
    let config = address_only.replace("\"address-only\"", "\"boot\"");
    config
        + "\n[default]\nprofile = \"hand\"\n\n[[profile]]\nname = \"hand\"\nkernel = \"/kernel\"\ninitrd = [\"/initrd\"]\n"
}

/// So much of a bzImage that a loader takes it for one.
fn kernel(files: &Path) -> Result<()> {
    let mut bytes = Numbers::new(1).bytes(600_000);
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    Ok(fs::write(files.join("kernel"), bytes)?)
}

/// What it asks for after it came no further than `step`, as its configuration tells it to.
fn again(rom: &Rom<'_>, mac: &str, step: &str) -> Result<String> {
    let path = format!("grub/failed/{step}/grub.cfg-01-{}", mac.replace(':', "-"));
    Ok(String::from_utf8(rom.read(ADDRESS, &path, Ends::Whole)?)?)
}

/// The machine's boot has failed for this cause, with these words somewhere in it, and all who look see that.
fn ensure_failed(appliance: &Appliance, mac: &str, kind: &str, words: &str) -> Result<()> {
    let mut why = Value::Null;
    wait_for(PATIENCE, || {
        why = appliance.json(&["why", mac])?;
        Ok((why["failed"] == true && why["causes"][0]["kind"] == kind).then_some(()))
    })
    .with_context(|| format!("no {kind}: {why:#}"))?;
    ensure!(why["causes"][0].to_string().contains(words), "no {words:?} in {why:#}");
    let nodes = appliance.json(&["nodes"])?;
    let node = find(&nodes, &|o| o.get("mac").and_then(Value::as_str) == Some(mac)).context("it is known")?;
    ensure!(node["stage"] == "failed", "`nodes` shows {node:#}");
    Ok(())
}

fn failures(appliance: &Appliance, mac: &str) -> Result<usize> {
    let events = appliance.run(&["events", "--json", "--node", mac])?;
    let events = events.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(events.iter().filter(|event| event["stage"] == "failed").count())
}

#[test]
fn a_loader_that_goes_round_says_why() {
    world::test(&["ip"], |world| {
        let host = Host::new("loops", 1)?;
        let files = world.path("files");
        fs::create_dir_all(&files)?;
        let appliance = Appliance::start(world, &config(&address_only(world, &[host.port()], "auto")))?;
        let (rom, mac) = (Rom::new(&host, UEFI), host.mac());
        rom.bind(ADDRESS)?;
        rom.read(ADDRESS, LOADER, Ends::Whole)?;
        let text = rom.read(ADDRESS, &format!("grub/grub.cfg-01-{}", mac.replace(':', "-")), Ends::Whole)?;
        ensure!(String::from_utf8(text)?.contains("/grub/failed/$bridgehead_at/grub.cfg-01-"));

        // Its kernel is not there; then it is none; then it is one, and its initrd is not there.
        ensure!(rom.read(ADDRESS, "/kernel", Ends::Whole).is_err(), "there is no kernel");
        let text = again(&rom, mac, "kernel")?;
        ensure!(
            text.contains("Bridgehead: its loader tries again and again: it asked for /kernel"),
            "{text}"
        );
        ensure_failed(&appliance, mac, "file-not-served", "/kernel")?;
        ensure!(rom.read(ADDRESS, "/kernel", Ends::Whole).is_err(), "there is none yet");
        again(&rom, mac, "kernel")?;
        ensure_failed(&appliance, mac, "file-not-served", "/kernel")?;
        ensure!(failures(&appliance, mac)? == 1, "one event for one cause");

        fs::write(files.join("kernel"), vec![0; 600_000])?;
        // It looks at the beginning only.
        rom.read(ADDRESS, "/kernel", Ends::Pulled(1))?;
        again(&rom, mac, "kernel")?;
        ensure_failed(&appliance, mac, "not-bootable", "no Linux kernel")?;
        ensure!(failures(&appliance, mac)? == 2, "another cause is another event");

        kernel(&files)?;
        rom.read(ADDRESS, "/kernel", Ends::Whole)?;
        wait_for(PATIENCE, || Ok((appliance.json(&["why", mac])?["failed"] == false).then_some(())))
            .context("it came further than before")?;
        ensure!(rom.read(ADDRESS, "/initrd", Ends::Whole).is_err(), "there is no initrd");
        again(&rom, mac, "initrd")?;
        ensure_failed(&appliance, mac, "file-not-served", "/initrd")?;
        // It loads its kernel again and again.
        rom.read(ADDRESS, "/kernel", Ends::Whole)?;
        ensure!(rom.read(ADDRESS, "/initrd", Ends::Whole).is_err(), "nor now");
        again(&rom, mac, "initrd")?;
        ensure_failed(&appliance, mac, "file-not-served", "/initrd")?;
        let status = appliance.run(&["status"])?;
        ensure!(!status.contains("done in"), "nothing is to be expected of it: {status}");
        ensure!(appliance.stop()?.success(), "the daemon ends well");
        Ok(())
    });
}
