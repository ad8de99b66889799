//! Machines that are declared while the daemon runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Appliance, address_only, program};
use lab::clients::Dhcp;
use lab::needs::Needs;
use lab::net::Host;
use lab::storm;
use lab::world::{self, World};
use serde_json::Value;

/// In the range, and the first that a stranger would be given.
const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);

fn start(world: &World, hosts: &[Host]) -> Result<(Appliance, String)> {
    let ports: Vec<String> = hosts.iter().map(Host::port).collect();
    let config = address_only(world, &ports, "auto");
    Ok((Appliance::start(world, &config)?, config))
}

fn count(appliance: &Appliance, name: &str) -> Result<u64> {
    let status = appliance.json(&["status"])?;
    status["counters"][name].as_u64().with_context(|| format!("`bridgehead status` has no {name}: {status}"))
}

/// What was said is true at once, survives a daemon that is killed in the next moment, and the kernel says it.
#[test]
fn a_kept_machine_has_its_address_from_the_kernel_after_a_crash() {
    world::test(&["udhcpc"], |world| {
        let hosts = [Host::new("kept", 1)?, Host::new("other", 2)?];
        let (appliance, config) = start(world, &hosts)?;
        let [kept, other] = &hosts;
        let reserved = RESERVED.to_string();
        appliance.run(&[
            "node",
            "add",
            "n1",
            "--mac",
            kept.mac(),
            "--address",
            &reserved,
            "--label",
            "gpu",
        ])?;
        appliance.crash()?;

        let appliance = Appliance::start(world, &config)?;
        let machine = appliance.json(&["nodes", "n1"])?;
        ensure!(machine["origin"] == "kept" && machine["reserved"] == reserved, "{machine}");
        ensure!(Dhcp::Udhcpc.lease(world, other)? != RESERVED, "a stranger got what is reserved");
        ensure!(Dhcp::Udhcpc.lease(world, kept)? == RESERVED);
        let acks = count(&appliance, "kernel.tc.dhcp-acks")?;
        appliance.crash()?;

        let appliance = Appliance::start(world, &config)?;
        ensure!(Dhcp::Udhcpc.lease(world, kept)? == RESERVED);
        ensure!(count(&appliance, "dhcp.discovers")? == 0, "the daemon was asked");
        ensure!(count(&appliance, "kernel.tc.dhcp-acks")? > acks, "the kernel did not answer");

        // Another address is another from the next DISCOVER on, whoever answers it.
        appliance.run(&["node", "set", "label=gpu", "--address", &OTHER.to_string()])?;
        ensure!(Dhcp::Udhcpc.lease(world, kept)? == OTHER);
        appliance.run(&["node", "rm", "n1"])?;
        let machine = appliance.json(&["nodes", kept.mac()])?;
        ensure!(machine.get("origin").is_none() && machine.get("name").is_none(), "{machine}");
        let audit = appliance.run(&["audit"])?;
        ensure!(audit.lines().count() == 3 && audit.contains("node.rm n1"), "{audit}");
        Ok(())
    });
}

/// A table brings a rack, or says which of its lines are wrong; and what one appliance prints another takes.
#[test]
fn a_table_goes_from_one_appliance_to_another() {
    world::test(&[], |world| {
        let hosts = [Host::new("a", 1)?];
        let (appliance, config) = start(world, &hosts)?;
        let table = world.path("rack.csv");
        let rows: String = (1..=40).map(|n| format!("n{n},02:00:00:00:00:{n:02x},gpu,a1,{n}\n")).collect();
        fs::write(&table, format!("name,mac,labels,rack,slot\n{rows}n41,02:00:00:00:00:01,,,\nn 42,x,,,\n"))?;
        let file = table.to_str().context("a path")?;
        let refused = appliance.command(&["node", "import", file])?.output()?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.status.code() == Some(1) && words.contains("line 43: `x` is no MAC address"),
            "{words}"
        );
        ensure!(appliance.json(&["nodes"])?.as_array().is_some_and(Vec::is_empty), "something was imported");

        fs::write(&table, format!("name,mac,labels,rack,slot\n{rows}"))?;
        appliance.run(&["node", "import", file])?;
        let exported = appliance.run(&["node", "export"])?;
        let chosen = appliance.json(&["nodes", "n[1-40]"])?;
        ensure!(chosen == appliance.json(&["nodes", "label=gpu"])?, "{chosen}");
        appliance.stop()?;

        fs::remove_dir_all(world.path("state"))?;
        let appliance = Appliance::start(world, &config)?;
        fs::write(&table, &exported)?;
        appliance.run(&["node", "import", file])?;
        ensure!(appliance.run(&["node", "export"])? == exported);
        let missing = appliance.command(&["nodes", "n[39-41]"])?.output()?;
        let words = String::from_utf8_lossy(&missing.stderr).into_owned();
        ensure!(
            missing.status.code() == Some(1) && words.contains("no machine is meant by `n41`"),
            "{words}"
        );
        Ok(())
    });
}

/// Strangers are given nothing, and a rule takes them: each has its name from its first DISCOVER on, and keeps it.
#[test]
fn machines_that_a_rule_takes_keep_their_names_over_crashes() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let config = storm::config(world, &[], None, [30_001, 20_480, 77])?
            .replace("[files]", "unknown = \"ignore\"\n[files]")
            + "\n[[rule]]\nmatch = { mac = \"02:73:74\" }\nname = \"c{n:03}\"\nprofile = \"web\"\nlabels = [\"rack-1\"]\n";
        let appliance = Appliance::start(world, &config)?;
        let names = |appliance: &Appliance| -> Result<BTreeMap<String, String>> {
            let nodes = appliance.json(&["nodes"])?;
            let nodes = nodes.as_array().context("nodes")?;
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            Ok(nodes.iter().map(|node| (text(&node["mac"]), text(&node["name"]))).collect())
        };
        let (code, outcome) = storm::run(&["--nodes", "50"])?;
        ensure!(code == Some(0) && outcome["booted"] == 50, "{code:?}: {outcome:#}");
        let first = names(&appliance)?;
        let different: BTreeSet<&String> = first.values().collect();
        ensure!(first.len() >= 50 && different.len() == first.len(), "{first:?}");
        ensure!(first.values().all(|name| name.len() == 4 && name.starts_with('c')), "{first:?}");
        ensure!(appliance.json(&["nodes", "label=rack-1"])?.as_array().map(Vec::len) == Some(first.len()));
        appliance.crash()?;

        let appliance = Appliance::start(world, &config)?;
        ensure!(names(&appliance)? == first, "after a crash");
        let check =
            appliance.run(&["check", "--config", &world.path("bridgehead.toml").display().to_string()])?;
        ensure!(check.contains("(c{n:03}) takes c001 ("), "{check}");
        let (code, outcome) = storm::run(&["--nodes", "50"])?;
        ensure!(code == Some(0) && outcome["booted"] == 50, "{code:?}: {outcome:#}");
        ensure!(names(&appliance)? == first, "after another boot");
        let refused = appliance.command(&["node", "set", "c001", "--label", "x"])?.output()?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            words.contains("taken by the rule at") && words.contains("`bridgehead node adopt"),
            "{words}"
        );
        Ok(())
    });
}

/// Which rack a machine is in follows from the port that it asks by.
#[test]
fn a_rule_goes_by_the_port_that_a_machine_is_behind() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let rack = Host::new("rack", 1)?;
        let config = storm::config(world, &[rack.port()], None, [3_001, 2_048, 77])?
            .replace("[files]", "unknown = \"ignore\"\n[files]")
            + "\n[[rule]]\nmatch = { port = \"other\" }\nname = \"other{n}\"\nprofile = \"web\"\n"
            + "\n[[rule]]\nmatch = { port = \"p-rack\" }\nname = \"rack{n}\"\nprofile = \"web\"\n";
        let appliance = Appliance::start(world, &config)?;
        let program = program()?;
        let mut storm = rack.command(program.to_str().context("a path")?);
        let storm =
            storm.args(["storm", "--json", "--yes", "--nodes", "5", "--interface", "eth0"]).output()?;
        let words = String::from_utf8_lossy(&storm.stderr).into_owned();
        ensure!(storm.status.success(), "{words}{}", String::from_utf8_lossy(&storm.stdout));
        let named = appliance.json(&["nodes", "rack[1-5]"])?;
        ensure!(named.as_array().map(Vec::len) == Some(5), "{named:#}");
        let before = config.rfind("[[rule]]").context("a rule")?;
        let line = config[..before].matches('\n').count() + 1;
        let is_there = |place: &str| place.ends_with(&format!("bridgehead.toml:{line}"));
        ensure!(named[0]["origin"]["rule"].as_str().is_some_and(is_there), "not line {line}: {named:#}");
        Ok(())
    });
}
