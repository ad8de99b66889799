//! Power over real machines: a BMC of OpenIPMI's simulator starts and ends QEMU, and the machine boots from the appliance.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, Appliance};
use lab::bmc::{Bmc, PASSWORD, USER};
use lab::boot::Boot;
use lab::machine::Spec;
use lab::needs::Needs;
use lab::process::wait_for;
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "ipmi_sim", "ipmitool"];

/// Generous, because times on a shared machine are printed, not judged.
const BOOT: Duration = Duration::from_secs(300);

#[test]
fn a_bmc_starts_and_ends_a_machine_that_boots_and_its_lies_are_told() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), std::slice::from_ref(&spec), "auto");
        let mut bmc = Bmc::start(world, &spec)?;
        let power =
            format!("power = {{ ipmi = \"127.0.0.1:{}\", credentials = \"rack\" }}\nmemory  =", bmc.port);
        let config = config.replacen("memory  =", &power, 1);
        let boot = Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        let appliance = &boot.appliance;
        add_credentials(appliance)?;

        let off = status(appliance)?;
        ensure!(off["state"] == "off" && off["driver"] == "ipmi", "{off}");
        let shown = appliance.run(&["power", "on", "n1", "--boot", "pxe"])?;
        ensure!(shown.contains("switched, boots by PXE once"), "{shown}");
        ensure!(bmc.machine().is_some(), "no QEMU runs");
        ensure!(bmc.boots().as_deref() == Some("pxe"), "the boot override: {:?}", bmc.boots());
        wait_for(BOOT, || {
            let node = appliance.json(&["nodes", "n1"])?;
            ensure!(node["stage"] != "failed", "{node}\n{}", appliance.run(&["why", "n1"])?);
            Ok((node["stage"] == "workload").then_some(()))
        })
        .with_context(|| lab::process::last_lines(&spec.console(world), 15))?;
        let on = status(appliance)?;
        ensure!(on["state"] == "on" && on["heard"].is_string(), "{on}");

        let first = bmc.machine().context("no QEMU runs")?;
        appliance.run(&["power", "cycle", "n1"])?;
        let second = bmc.machine().context("no QEMU runs after the cycle")?;
        ensure!(first != second, "it was not switched off in between");
        appliance.run(&["power", "off", "n1"])?;
        ensure!(bmc.machine().is_none(), "QEMU still runs");

        // Somebody who only says that he obeys.
        bmc.lie()?;
        let lie = failed(appliance, "off")?;
        ensure!(lie["kind"] == "lies", "{lie}");
        ensure!(lie["error"].as_str().is_some_and(|words| words.contains("still says on")), "{lie}");
        bmc.vanish()?;
        let gone = failed(appliance, "status")?;
        ensure!(gone["kind"] == "unreachable", "{gone}");

        let audit = appliance.run(&["audit"])?;
        for what in ["power.credentials.add rack", "power.on n1", "power.cycle n1", "power.off n1"] {
            ensure!(audit.contains(what), "{what} is not in the audit: {audit}");
        }
        no_password_lies_open(world)?;
        boot.stop()
    });
}

/// By standard input, as a script does.
fn add_credentials(appliance: &Appliance) -> Result<()> {
    let mut command = appliance.command(&["power", "credentials", "add", "rack", "--user", USER])?;
    let mut adding = command.stdin(Stdio::piped()).spawn()?;
    adding.stdin.take().context("a pipe")?.write_all(format!("{PASSWORD}\n").as_bytes())?;
    ensure!(adding.wait()?.success(), "the credentials were not added");
    Ok(())
}

fn status(appliance: &Appliance) -> Result<Value> {
    Ok(appliance.json(&["power", "status", "n1"])?[0].clone())
}

/// The result of an order that fails, with exit code 1.
fn failed(appliance: &Appliance, verb: &str) -> Result<Value> {
    let output = appliance.command(&["power", verb, "n1", "--json"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("1 of 1 failed: n1"), "{output:?}");
    let results: Value = serde_json::from_slice(&output.stdout)?;
    Ok(results[0].clone())
}

fn no_password_lies_open(world: &World) -> Result<()> {
    let mut waiting = vec![world.path("state"), world.path("bridgehead.log"), world.path("events.log")];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        } else if path.is_file() {
            let bytes = fs::read(&path)?;
            let open = bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
            ensure!(!open, "the password lies open in {}", path.display());
        }
    }
    Ok(())
}
