//! Power over real machines: a BMC of OpenIPMI's simulator starts and ends QEMU, and the machine boots from the appliance.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, Appliance};
use lab::boot::Boot;
use lab::machine::Spec;
use lab::needs::Needs;
use lab::process::{PATIENCE, Process, wait_for};
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "ipmi_sim", "ipmitool"];

/// Generous, because times on a shared machine are printed, not judged.
const BOOT: Duration = Duration::from_secs(300);

const PASSWORD: &str = "hunter2hunter2";

#[test]
fn a_bmc_starts_and_ends_a_machine_that_boots_and_its_lies_are_told() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), std::slice::from_ref(&spec), "auto");
        let power = "power = { ipmi = \"127.0.0.1\", credentials = \"rack\" }\nmemory  =";
        let config = config.replacen("memory  =", power, 1);
        let boot = Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        let appliance = &boot.appliance;
        let mut bmc = Bmc::start(world, &spec)?;
        add_credentials(appliance)?;

        let off = status(appliance)?;
        ensure!(off["state"] == "off" && off["driver"] == "ipmi", "{off}");
        let shown = appliance.run(&["power", "on", "n1", "--boot", "pxe"])?;
        ensure!(shown.contains("switched, boots by PXE once"), "{shown}");
        ensure!(bmc.machine().is_some(), "no QEMU runs");
        ensure!(fs::read_to_string(bmc.file("boot"))?.trim() == "pxe", "the boot override");
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
        fs::write(bmc.file("lies"), "")?;
        let lie = failed(appliance, "off")?;
        ensure!(lie["kind"] == "lies", "{lie}");
        ensure!(lie["error"].as_str().is_some_and(|words| words.contains("still says on")), "{lie}");
        bmc.simulator.kill()?;
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
    let mut command = appliance.command(&["power", "credentials", "add", "rack", "--user", "root"])?;
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

/// A BMC, whose chassis is a script that starts and ends QEMU.
struct Bmc {
    script: PathBuf,
    simulator: Process,
}

impl Bmc {
    fn start(world: &World, spec: &Spec) -> Result<Self> {
        let script = world.path("chassis");
        fs::write(&script, chassis(&spec.qemu(world, None)?))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let auths: String = ["callback", "user", "operator", "admin"]
            .iter()
            .map(|auth| format!("  allowed_auths_{auth} none md2 md5 straight\n"))
            .collect();
        let lan = format!(
            "name \"bmc\"\nset_working_mc 0x20\nstartlan 1\n  addr 127.0.0.1 623\n  priv_limit admin\n{auths}  \
             guid a123456789abcdefa123456789abcdef\nendlan\nchassis_control \"{} 0x20\"\n\
             user 1 false \"\" \"test\" user 10 none md2 md5 straight\n\
             user 2 true \"root\" \"{PASSWORD}\" admin 10 none md2 md5 straight\n",
            script.display()
        );
        let (lan_file, emu_file) = (world.path("bmc.lan"), world.path("bmc.emu"));
        fs::write(&lan_file, lan)?;
        fs::write(
            &emu_file,
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n",
        )?;
        let mut command = Command::new("ipmi_sim");
        command.arg("-c").arg(lan_file).arg("-f").arg(emu_file).arg("-s").arg(world.path("bmc.state"));
        let simulator = Process::start(command.arg("-n"), &world.path("bmc.log"))?;
        // Its port in hexadecimal, as the kernel lists it once it listens.
        wait_for(PATIENCE, || Ok(fs::read_to_string("/proc/net/udp")?.contains(":026F ").then_some(())))?;
        Ok(Self { script, simulator })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.script.with_added_extension(name)
    }

    /// The QEMU that runs.
    fn machine(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.file("machine")).ok()?.trim().parse().ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // A zombie waits for a parent that is no more.
        (!state.contains(") Z ")).then_some(pid)
    }
}

/// As OpenIPMI's own example has it: `DEVICE get|set PARAMETER [VALUE] …`.
fn chassis(qemu: &Command) -> String {
    let words = std::iter::once(qemu.get_program()).chain(qemu.get_args());
    let quoted = words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    format!(
        r#"#!/bin/sh
shift; verb=$1; shift
running() {{ [ -f "$0.machine" ] && grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(cat "$0.machine")/status" 2>/dev/null; }}
while [ $# -gt 0 ]; do case "$verb $1" in
    'get power') if [ -f "$0.lies" ] || running; then echo power:1; else echo power:0; fi; shift ;;
    'get boot') echo boot:default; shift ;;
    'set power')
        if [ "$2" = 1 ]; then
            running || {{ {quoted} </dev/null >"$0.qemu.log" 2>&1 & echo $! >"$0.machine"; }}
        elif running; then
            kill "$(cat "$0.machine")"
        fi
        shift 2 ;;
    'set boot') echo "$2" >"$0.boot"; shift 2 ;;
    *) shift 2 ;;
esac; done
"#
    )
}
