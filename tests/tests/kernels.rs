//! Kernels that were added on their own, with real firmware: a failing one is replaced by the last good one, and one
//! loads modules that a profile names.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::appliance;
use lab::boot::{Boot, News, Outcome};
use lab::machine::Spec;
use lab::needs::Needs;
use lab::timeline::Event;
use lab::world;
use serde_json::Value;

const PROGRAMS: [&str; 4] = ["ip", "qemu-system-x86_64", "dockerd", "docker"];
/// Generous, because times on a shared machine are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(300);
/// For a machine that may hang: its loader has finished long before.
const HANGS: Duration = Duration::from_secs(200);

#[test]
fn a_broken_kernel_gives_way_to_the_last_good_one() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), std::slice::from_ref(&spec), "auto");
        let mut boot =
            Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        boot.power_on(world, vec![spec.clone()])?;
        watch(&mut boot, PATIENCE)?;
        boot.failures()?;

        // Its header is a kernel's, so that GRUB loads it; the rest is an invalid instruction.
        let broken = world.path("broken");
        fs::create_dir(&broken)?;
        let mut vmlinuz = fs::read(lab::assets().join("kernel/vmlinuz"))?;
        let setup = 512 * (usize::from(vmlinuz[0x1f1]) + 1);
        for pair in vmlinuz[setup..].chunks_exact_mut(2) {
            pair.copy_from_slice(&[0x0f, 0x0b]);
        }
        fs::write(broken.join("vmlinuz"), vmlinuz)?;
        let broken = broken.to_string_lossy();
        boot.appliance.run(&["kernel", "add", &broken, "--name", "broken"])?;
        boot.appliance.run(&["kernel", "default", "broken"])?;

        for _ in 0..2 {
            boot.power_on(world, vec![spec.clone()])?;
            let events = watch(&mut boot, HANGS)?;
            ensure!(matches!(boot.machines[0].outcome, Some(Outcome::Failed(_))), "{events:?}");
            ensure!(events.iter().any(|event| event.stage == "kernel"), "{events:?}");
            ensure!(events.iter().all(|event| event.stage != "stage1"), "{events:?}");
        }
        boot.power_on(world, vec![spec.clone()])?;
        let third = watch(&mut boot, PATIENCE)?;
        boot.failures()?;
        let words = "kernel broken did not reach stage 1 twice: booting the last good one, 6.";
        let said =
            third.iter().filter(|event| event.detail.as_deref().unwrap_or_default().starts_with(words));
        ensure!(said.count() == 1, "{third:?}");

        // The same kernel, added to the store, and a driver for a card that the machine does not have.
        let directory = lab::assets().join("kernel");
        boot.appliance.run(&["kernel", "add", &directory.to_string_lossy(), "--name", "mine"])?;
        let named = config.replace("cmdline =", "kernel  = \"mine\"\nmodules = [\"igb\"]\ncmdline =");
        fs::write(world.path("bridgehead.toml"), named)?;
        boot.appliance.run(&["reload"])?;
        boot.power_on(world, vec![spec])?;
        watch(&mut boot, PATIENCE)?;
        boot.failures()?;
        let console = boot.machines[0].machine.console_text();
        ensure!(console.contains("bridgehead: module igb is loaded"), "{console}");

        let kernels = boot.appliance.json(&["kernel", "list"])?;
        ensure!(kernels.get("default").and_then(Value::as_str) == Some("broken"), "{kernels}");
        let removed = boot.appliance.run(&["kernel", "rm", "mine"]);
        ensure!(removed.is_err_and(|error| format!("{error:#}").contains("that of profile demo")));
        boot.appliance.run(&["kernel", "default"])?;
        boot.appliance.run(&["kernel", "rm", "broken"])?;
        boot.stop()
    });
}

fn watch(boot: &mut Boot, patience: Duration) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    boot.watch(patience, |_, news| match news {
        News::Event(_, event, seconds) => {
            println!("{seconds:7.2} s  {} {}", event.stage, event.detail.as_deref().unwrap_or_default());
            events.push(event.clone());
        }
        News::Ended(_, outcome) => println!("{outcome:?}"),
    })?;
    Ok(events)
}
