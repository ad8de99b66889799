//! The storm simulator with a real appliance.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Appliance, demo};
use lab::engine::{DEMO, Engine};
use lab::needs::Needs;
use lab::process::{PATIENCE, wait_for};
use lab::world::{self, World};
use lab::{net, storm};

/// An appliance whose default profile names a kernel and two initrds.
fn appliance(world: &World, sizes: [usize; 3]) -> Result<Appliance> {
    Appliance::start(world, &storm::config(world, &[], None, sizes)?)
}

#[test]
fn fifty_machines_of_all_kinds_boot_through_loss() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let appliance = appliance(world, [300_001, 204_800, 77])?;
        let (code, outcome) = storm::run(&["--nodes", "50", "--loss", "2%", "--profile", "web"])?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        ensure!(outcome["booted"] == 50 && outcome["failed"] == 0, "{outcome:#}");
        ensure!(outcome["retries"]["all"].as_u64() > Some(0), "loss shows in retries: {outcome:#}");
        ensure!(outcome["frames"]["lost"].as_u64() > Some(0), "{outcome:#}");
        // Plus the loader.
        ensure!(outcome["bytes"].as_u64() > Some(50 * (300_001 + 204_800 + 77)), "{outcome:#}");
        let stages: Vec<_> = outcome["stages"].as_array().context("stages")?.iter().collect();
        ensure!(stages.iter().all(|s| s["nodes"] == 50), "{outcome:#}");

        // The appliance's view: every machine reached its initrd, and all addresses were released. If a file's last ACK
        // is lost, the appliance notices only after a timeout.
        wait_for(PATIENCE, || {
            let nodes = appliance.json(&["nodes"])?;
            let nodes = nodes.as_array().context("nodes")?;
            let ours = nodes.iter().filter(|n| n["mac"].as_str().is_some_and(|m| m.starts_with(storm::MACS)));
            Ok((ours.filter(|n| n["stage"] == "initrd").count() == 50).then_some(()))
        })
        .context("not all machines are at their initrds")?;
        let leases = appliance.json(&["leases"])?;
        let left = leases.as_array().context("leases")?.iter().filter(|l| l["state"] == "bound").count();
        ensure!(left == 0, "{left} leases are left: {leases:#}");
        ensure!(!net::ip(["-brief", "link"])?.contains("storm"), "the cable is left");
        Ok(())
    });
}

#[test]
fn machines_with_an_image_report_until_it_runs() {
    world::test(&["ip", "dockerd"], |world| {
        let engine = Engine::start(world)?;
        engine.make_demo_image(world)?;
        let appliance = Appliance::start(world, &demo(world, &[], &[], "auto"))?;
        appliance.run(&["image", "add", DEMO])?;
        let (code, outcome) = storm::run(&["--nodes", "6", "--expect", "failed=0,server-retries=0"])?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        let last = outcome["stages"].as_array().and_then(|s| s.last()).context("stages")?;
        ensure!(last["stage"] == "workload" && last["nodes"] == 6, "{outcome:#}");
        let nodes = appliance.json(&["nodes"])?;
        let nodes = nodes.as_array().context("nodes")?;
        ensure!(nodes.iter().filter(|n| n["stage"] == "workload").count() >= 6, "{nodes:#?}");
        Ok(())
    });
}

#[test]
fn what_is_expected_decides_the_exit_code() {
    world::test(&["ip"], |world| {
        let _appliance = appliance(world, [3000, 1000, 1024])?;
        let quick = ["--nodes", "3", "--client", "ipxe"];
        let (code, outcome) = storm::run(&[&quick[..], &["--expect", "p99<60s,failed=0"]].concat())?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        let (code, outcome) = storm::run(&[&quick[..], &["--expect", "max<1ms,failed=0"]].concat())?;
        ensure!(code == Some(1), "{code:?}: {outcome:#}");
        let broken = outcome["broken"].as_array().context("broken")?;
        ensure!(broken.len() == 1 && broken[0].as_str().is_some_and(|b| b.contains("max<")), "{outcome:#}");

        // Wrong usage, detected before a frame is sent.
        let wrong = [
            (&["--expect", "p98<1"][..], "p99"),
            (&["--profile", "none"], "there are web, other"),
            (&["--nodes", "2305"], "has 2304"),
            (&["--interface", "none"], "ip link"),
            (&["--interface", "lo"], "--yes"),
        ];
        for (args, word) in wrong {
            let (code, words) = storm::run(args)?;
            ensure!(code == Some(2), "{args:?}: {code:?}: {words}");
            ensure!(words.as_str().is_some_and(|w| w.contains(word)), "{args:?}: {words}");
        }
        let (code, words) = storm::run(&["--profile", "other", "--client", "ipxe"])?;
        ensure!(code == Some(2) && words.as_str().is_some_and(|w| w.contains("profile \"web\"")), "{words}");
        Ok(())
    });
}

#[test]
fn a_file_that_changes_under_the_machines_is_noticed() {
    world::test(&["ip"], |world| {
        let appliance = appliance(world, [30_000, 1000, 1024])?;
        let (code, words) = storm::run(&["--nodes", "2", "--client", "ipxe"])?;
        ensure!(code == Some(0), "{words:#}");
        // A truncated kernel boots nowhere, but no digest is configured, so at least it must be the same for all.
        let root = world.path("files");
        let twenty =
            std::thread::spawn(|| storm::run(&["--nodes", "20", "--client", "ipxe", "--spread", "4s"]));
        // In addition to the two before, some machines are past their kernel, and some are not.
        wait_for(PATIENCE, || {
            let nodes = appliance.json(&["nodes"])?;
            let nodes = nodes.as_array().context("nodes")?;
            Ok((nodes.iter().filter(|n| n["stage"] == "initrd").count() >= 6).then_some(()))
        })?;
        fs::write(root.join("kernel.new"), vec![7; 30_000])?;
        fs::rename(root.join("kernel.new"), root.join("kernel"))?;
        let (code, outcome) = twenty.join().expect("it does not panic")?;
        ensure!(code == Some(1), "{outcome:#}");
        let cause = outcome["causes"][0]["cause"].as_str().unwrap_or_default();
        ensure!(cause.contains("is not what its digest or other machines say"), "{outcome:#}");
        ensure!(outcome["booted"].as_u64() > Some(0), "those before the change: {outcome:#}");
        drop(appliance);
        Ok(())
    });
}
