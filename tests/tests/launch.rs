//! Launches of real machines: from `bridgehead launch` to the pages that their workloads serve.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, Appliance, find};
use lab::bmc::{self, Bmc};
use lab::boot::{check_page, page};
use lab::engine::{DEMO, Engine};
use lab::machine::{Machine, Spec};
use lab::needs::Needs;
use lab::net::tap;
use lab::process::{Process, wait_for};
use lab::world;
use serde_json::Value;

const PROGRAMS: [&str; 4] = ["ip", "qemu-system-x86_64", "dockerd", "docker"];

/// Generous, because nothing is judged by it.
const BOOT: Duration = Duration::from_secs(400);

/// Another page, so that it is another image.
const OTHER_START: &str =
    "#!/bin/sh\nmkdir -p /www\necho another > /www/index.html\nexec /bin/busybox httpd -f -h /www -p 80\n";

/// Somebody switches them on; the launch goes on over a crash, and its image stays when the tag moves.
#[test]
fn machines_without_power_are_launched_by_hand_over_a_crash_and_keep_their_image() {
    world::test(Needs::of(&PROGRAMS).machine(512).machine(512), |world| {
        let specs = [Spec::numbered(1), Spec::numbered(2)];
        let [first, second] = specs.clone();
        let ports: Vec<String> = specs.iter().map(|spec| spec.tap.clone()).collect();
        specs.iter().try_for_each(|spec| tap(&spec.tap))?;
        let engine = Engine::start(world)?;
        engine.make_demo_image(world)?;
        let config = appliance::demo(world, &ports, &specs, "auto");
        let appliance = Appliance::start(world, &config)?;

        let order = ["launch", "all", "--image", "hello-metal", "--healthy", "http://{address}/"];
        let dry = appliance.run(&[&order[..], &["--dry-run"]].concat())?;
        ensure!(dry.contains("by hand: n1 n2; the launch waits for their DISCOVER"), "{dry}");
        ensure!(
            appliance.json(&["launches"])?.as_array().is_some_and(Vec::is_empty),
            "something was launched"
        );

        let mut command = appliance.command(&[&order[..], &["--wait"]].concat())?;
        let (mut waiting, lines) = Process::with_lines(&mut command, &world.path("launch.log"))?;
        let lines = std::thread::spawn(move || lines.iter().collect::<Vec<String>>());
        wait_for(BOOT, || Ok(launch(&appliance)?.is_some().then_some(())))?;
        let digest = appliance.image_digest(DEMO)?;
        let mut n1 = Machine::power_on(world, first.clone(), None)?;
        until(&appliance, "n1", "healthy", &mut n1)?;
        let again = appliance.command(&["launch", "n2", "--image", "hello-metal"])?.output()?;
        let words = String::from_utf8_lossy(&again.stderr).into_owned();
        ensure!(
            again.status.code() == Some(1) && words.contains("n2 is in launch 1, which goes on"),
            "{words}"
        );
        appliance.crash()?;

        let appliance = Appliance::start(world, &config)?;
        let mut n2 = Machine::power_on(world, second, None)?;
        until(&appliance, "n2", "healthy", &mut n2)?;
        let status = waiting.wait(BOOT)?;
        let lines = lines.join().expect("it reads");
        ensure!(status.code() == Some(0), "{status}: {lines:#?}");
        ensure!(
            lines.last().is_some_and(|line| line == "launch 1: all 2 machines are healthy"),
            "{lines:#?}"
        );
        for name in ["n1", "n2"] {
            check_page(&page((address(&appliance, name)?, 80).into())?, name, &digest)?;
        }

        std::fs::remove_dir_all(world.path("hello-metal-latest"))?;
        engine.make_image(world, DEMO, OTHER_START, 0)?;
        appliance.run(&["image", "add", DEMO])?;
        ensure!(appliance.image_digest(DEMO)? != digest, "the tag has not moved");
        appliance.run(&["image", "gc"])?;
        drop(n1);
        let boots = stage_events(&appliance, "workload")?;
        let mut n1 = Machine::power_on(world, first, None)?;
        wait_for(BOOT, || {
            n1.ensure_running()?;
            Ok((stage_events(&appliance, "workload")? > boots).then_some(()))
        })?;
        let address = address(&appliance, "n1")?;
        let page = wait_for(BOOT, || Ok(page((address, 80).into()).ok()))?;
        check_page(&page, "n1", &digest).context("after the tag moved")?;
        let refused = appliance.command(&["image", "rm", &pinned(&appliance, "n1")?])?.output()?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && words.contains("is booted by n1, n2"), "{words}");
        drop((n1, n2));
        let status = appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        engine.stop()
    });
}

/// Two machines that are off, behind their BMCs. The second one's cable is not plugged in: it is tried twice and set aside,
/// by a daemon that is killed meanwhile.
#[test]
fn machines_behind_bmcs_are_powered_on_and_one_without_a_cable_is_set_aside() {
    let programs = [&PROGRAMS[..], &["ipmi_sim", "ipmitool"]].concat();
    world::test(Needs::of(&programs).machine(512).machine(512), |world| {
        let specs = [Spec::numbered(1), Spec::numbered(3)];
        let ports = vec![specs[0].tap.clone()];
        specs.iter().try_for_each(|spec| tap(&spec.tap))?;
        let engine = Engine::start(world)?;
        engine.make_demo_image(world)?;
        let bmcs = [Bmc::start(world, &specs[0])?, Bmc::start(world, &specs[1])?];
        let mut config = appliance::demo(world, &ports, &specs, "auto");
        for (spec, bmc) in specs.iter().zip(&bmcs) {
            let power = format!("power = {{ ipmi = \"127.0.0.1:{}\", credentials = \"rack\" }}\n", bmc.port);
            let name = format!("name    = {:?}\n", spec.name);
            config = config.replace(&name, &format!("{name}{power}"));
        }
        let appliance = Appliance::start(world, &config)?;
        let mut credentials =
            appliance.command(&["power", "credentials", "add", "rack", "--user", bmc::USER])?;
        let mut credentials = credentials.stdin(Stdio::piped()).spawn()?;
        credentials
            .stdin
            .take()
            .context("its input")?
            .write_all(format!("{}\n", bmc::PASSWORD).as_bytes())?;
        ensure!(credentials.wait()?.success(), "no credentials");

        let order = ["launch", "n1", "--image", "hello-metal", "--wait"];
        let one = appliance.command(&order)?.output()?;
        let told = String::from_utf8_lossy(&one.stdout).into_owned();
        ensure!(one.status.code() == Some(0), "{told}\n{}", String::from_utf8_lossy(&one.stderr));
        let digest = appliance.image_digest(DEMO)?;
        check_page(&page((address(&appliance, "n1")?, 80).into())?, "n1", &digest)?;
        ensure!(bmcs[0].switched()? == ["on"], "{:?}", bmcs[0].switched()?);

        // What runs it already goes on.
        let order = ["launch", "all", "--image", "hello-metal", "--patience", "20s", "--wait"];
        let mut both = appliance.command(&order)?;
        let (mut both, lines) = Process::with_lines(&mut both, &world.path("launch.log"))?;
        let lines = std::thread::spawn(move || lines.iter().collect::<Vec<String>>());
        wait_for(BOOT, || Ok((!bmcs[1].switched()?.is_empty()).then_some(())))?;
        appliance.crash()?;
        let appliance = Appliance::start(world, &config)?;
        let status = both.wait(BOOT)?;
        let lines = lines.join().expect("it reads");
        ensure!(status.code() == Some(1), "{status}: {lines:#?}");
        let end: Vec<&String> = lines.iter().rev().take(2).collect();
        let is_last = |line: &String| line == "launch 2: 1 of 2 machines are healthy, 1 set aside";
        ensure!(end.first().is_some_and(|line| is_last(line)), "{lines:#?}");
        ensure!(
            end[1].starts_with("n3: set aside: it was powered on, and no DISCOVER arrived"),
            "{lines:#?}"
        );
        ensure!(bmcs[0].switched()? == ["on"], "{:?}", bmcs[0].switched()?);
        ensure!(bmcs[1].switched()? == ["on", "off", "on"], "{:?}", bmcs[1].switched()?);
        let said = [
            std::fs::read_to_string(appliance.log())?,
            lines.join("\n"),
            appliance.run(&["audit", "--json"])?,
        ];
        ensure!(said.iter().all(|text| !text.contains(bmc::PASSWORD)), "a password was told");
        drop(bmcs);
        let status = appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        engine.stop()
    });
}

/// The launch, once there is one.
fn launch(appliance: &Appliance) -> Result<Option<Value>> {
    let all = appliance.json(&["launches"])?;
    match all.as_array().is_some_and(|all| !all.is_empty()) {
        true => Ok(Some(appliance.json(&["launch", "show", "1"])?)),
        false => Ok(None),
    }
}

fn until(appliance: &Appliance, name: &str, state: &str, machine: &mut Machine) -> Result<()> {
    let console = machine.console().to_owned();
    let reached = wait_for(BOOT, || {
        machine.ensure_running()?;
        let launch = launch(appliance)?.context("it is gone")?;
        let member = find(&launch, &|o| o.get("name").and_then(Value::as_str) == Some(name));
        let is = member.and_then(|m| m["state"].as_str()).context("its state")?;
        ensure!(is == state || is != "set-aside", "{launch:#}");
        Ok((is == state).then_some(()))
    });
    reached.with_context(|| format!("{name}:\n{}", lab::process::last_lines(&console, 15)))
}

fn node(appliance: &Appliance, name: &str) -> Result<Value> {
    let nodes = appliance.json(&["nodes", name])?;
    let node = find(&nodes, &|o| o.get("name").and_then(Value::as_str) == Some(name));
    node.cloned().with_context(|| format!("`bridgehead nodes {name}`: {nodes}"))
}

fn address(appliance: &Appliance, name: &str) -> Result<Ipv4Addr> {
    Ok(node(appliance, name)?["address"].as_str().context("its address")?.parse()?)
}

/// The name of the image that it boots.
fn pinned(appliance: &Appliance, name: &str) -> Result<String> {
    let node = node(appliance, name)?;
    let image = node["launched"]["image"]["name"].as_str().with_context(|| format!("no launch: {node}"))?;
    ensure!(image.starts_with("hello-metal@sha256:"), "{image}");
    Ok(image.to_owned())
}

fn stage_events(appliance: &Appliance, stage: &str) -> Result<usize> {
    let lines = appliance.run(&["events", "--json", "--node", "n1"])?;
    Ok(lines.lines().filter(|line| line.contains(&format!("\"stage\":\"{stage}\""))).count())
}
