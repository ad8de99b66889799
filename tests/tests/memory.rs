//! The daemon's memory when it knows a large site.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::Appliance;
use lab::needs::Needs;
use lab::storm;
use lab::world;

/// Without the block map, which is the kernel's memory.
const MOST_MIB: u64 = 200;

#[test]
#[ignore = "takes minutes: 11,000 simulated machines"]
fn ten_thousand_known_machines_and_a_thousand_that_boot() {
    world::test(Needs::of(&["ip"]).processors(2), |world| {
        let config = storm::config(world, &[], None, [3000, 1000, 1024])?;
        let config = config.replace("/20\"", "/18\"").replace("10.77.9.255", "10.77.63.0");
        let appliance = Appliance::start(world, &config)?;
        let at_first = peak_mib(&appliance)?;
        let (code, outcome) = storm::run(&["--nodes", "10000", "--spread", "60s", "--keep-leases"])?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        let known = peak_mib(&appliance)?;
        let (code, outcome) = storm::run(&["--nodes", "1000", "--keep-leases"])?;
        ensure!(code == Some(0), "{code:?}: {outcome:#}");
        let booting = peak_mib(&appliance)?;
        let nodes = appliance.json(&["nodes"])?;
        let nodes = nodes.as_array().context("nodes")?.len();
        println!(
            "{at_first} MiB at first, at most {known} while {nodes} machines became known, {booting} with 1,000 booting"
        );
        ensure!(nodes >= 10_000 && booting < MOST_MIB, "{booting} MiB with {nodes} machines");
        Ok(())
    });
}

/// The daemon's peak resident memory.
fn peak_mib(appliance: &Appliance) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", appliance.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}
