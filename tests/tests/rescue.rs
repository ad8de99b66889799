//! A boot that fails, on real firmware: it can be reached by SSH with a password for that boot, its cause is in the
//! timeline, its workload's output is stored, and so is its kernel's output when it dies.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, Appliance};
use lab::boot::{Boot, News, Outcome};
use lab::engine::DEMO;
use lab::machine::Spec;
use lab::needs::Needs;
use lab::net::Host;
use lab::process::{Process, wait_for};
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 6] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "ssh", "sshpass"];
/// Generous, because times on a shared machine are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(400);

const IMAGE: &str = "failing:latest";
/// Its workload: it prints two lines and fails.
const START: &str = "#!/bin/sh\necho out\nprintf 'err: no end' >&2\nexit 3\n";

#[test]
fn a_failed_boot_is_entered_by_ssh_and_its_crash_is_kept() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let host = Host::new("a", 9)?;
        let spec = Spec { address: Some("10.77.0.11".parse()?), ..Spec::numbered(1) };
        let ports = [spec.tap.clone(), host.port()];
        let config = appliance::demo(world, &ports, std::slice::from_ref(&spec), "auto");
        let wanted = "on-exit = \"restart\"\nrestarts = 1\nrescue = \"ssh\"\ncmdline =";
        let config = config.replace("cmdline =", wanted).replace(DEMO, IMAGE);
        let mut boot =
            Boot::prepare(world, std::slice::from_ref(&spec), &config, 0, |step| println!("{step}"))?;
        boot.engine.make_image(world, IMAGE, START, 0)?;
        boot.appliance.run(&["image", "add", IMAGE])?;
        host.address("10.77.0.50/24")?;

        boot.power_on(world, vec![spec.clone()])?;
        let cause = fails(&mut boot)?;
        let expected = "the workload ended 2 times in a row, at last with exit code 3";
        ensure!(cause.ends_with("exit code 3"), "{cause}");
        let way_in = way_in(&boot.appliance)?;
        let events = || boot.appliance.run(&["events", "--node", "n1"]);
        wait_for(PATIENCE, || Ok(events()?.contains(expected).then_some(())))?;
        let logs = boot.appliance.run(&["logs", "n1"])?;
        let said: Vec<&str> = logs.lines().skip(1).collect();
        // Without a line feed, the next output continues the line.
        ensure!(said == ["out", "err: no endout", "err: no end"], "{logs}");

        let ssh = Ssh { world, host: &host, address: "10.77.0.11" };
        let refused = ssh.log_in("xxxxx-xxxxx-xxxxx-xxxxx", &["true"])?;
        ensure!(!refused.status.success(), "a wrong password is let in");
        ensure!(text(&refused.stderr).contains("Permission denied"), "{refused:?}");
        let _login = ssh.open(&way_in.password)?;
        let seen = Command::new("ssh-keygen").args(["-lf"]).arg(world.path("known_hosts")).output()?;
        ensure!(text(&seen.stdout).contains(&way_in.host_key), "{seen:?} is not {}", way_in.host_key);
        let version = ssh.run("cat /proc/version; id -u; cat /etc/motd")?;
        ensure!(version.starts_with("Linux version ") && version.contains("\n0\n"), "{version}");
        ensure!(version.contains(expected), "the message of the day: {version}");
        // One login: the same password is now invalid, and the appliance knows.
        let again = ssh.log_in(&way_in.password, &["true"])?;
        ensure!(!again.status.success() && text(&again.stderr).contains("Permission denied"), "{again:?}");
        wait_for(PATIENCE, || {
            let document = boot.appliance.json(&["rescue", "n1"])?;
            Ok(document.get("password").is_none().then_some(()))
        })
        .context("the password that was used is shown for ever")?;

        ssh.start("sleep 1; echo c > /proc/sysrq-trigger")?;
        let console = || boot.appliance.run(&["console", "n1"]);
        wait_for(PATIENCE, || {
            let panicked =
                |line: &str| line.contains("crash: ") && line.contains("Kernel panic - not syncing");
            Ok(console()?.lines().any(panicked).then_some(()))
        })
        .with_context(|| format!("the console has no panic: {}", console().unwrap_or_default()))?;
        ensure!(console()?.contains("sysrq triggered crash"), "{}", console()?);
        nothing_tells(&boot.appliance, world, &way_in.password)?;

        // The next boot has another password, and ends when it is released: QEMU is told not to boot again.
        boot.power_on(world, vec![spec])?;
        let next = wait_for(PATIENCE, || {
            Ok(self::way_in(&boot.appliance).ok().filter(|n| n.password != way_in.password))
        })?;
        nothing_tells(&boot.appliance, world, &next.password)?;
        boot.appliance.run(&["release", "n1"])?;
        wait_for(PATIENCE, || Ok(boot.machines[0].machine.ensure_running().is_err().then_some(())))
            .context("it was released, and does not boot again")?;
        boot.stop()
    });
}

/// Follows the boot to its end, which must be a failure, and returns the cause.
fn fails(boot: &mut Boot) -> Result<String> {
    boot.watch(PATIENCE, |_, news| {
        if let News::Event(_, event, seconds) = news {
            let words = event.detail.as_deref().or(event.cause.as_deref()).unwrap_or_default();
            println!("{seconds:7.2} s  {} ({}) {words}", event.stage, event.answered_by);
        }
    })?;
    match &boot.machines[0].outcome {
        Some(Outcome::Failed(why)) => Ok(why.clone()),
        other => anyhow::bail!("{other:?}"),
    }
}

struct WayIn {
    password: String,
    host_key: String,
}

/// The output of `bridgehead rescue`, as soon as there is one.
fn way_in(appliance: &Appliance) -> Result<WayIn> {
    wait_for(PATIENCE, || {
        let Ok(document) = appliance.json(&["rescue", "n1"]) else { return Ok(None) };
        let text = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(text("password").zip(text("host-key")).map(|(password, host_key)| WayIn { password, host_key }))
    })
    .context("`bridgehead rescue n1` shows no password")
}

/// No other document, and no log, contains the password.
fn nothing_tells(appliance: &Appliance, world: &World, password: &str) -> Result<()> {
    let mut texts = vec![fs::read_to_string(appliance.log())?];
    for command in
        [&["nodes"][..], &["events"], &["status"], &["profiles"], &["console", "n1"], &["logs", "n1"]]
    {
        texts.push(appliance.run(&[command, &["--json"]].concat())?);
    }
    for name in ["n1.console", "bridgehead.toml"] {
        texts.push(String::from_utf8_lossy(&fs::read(world.path(name))?).into_owned());
    }
    ensure!(texts.iter().all(|text| !text.contains(password)), "the password is told elsewhere, too");
    Ok(())
}

/// Debian's ssh on another host.
struct Ssh<'a> {
    world: &'a World,
    host: &'a Host,
    address: &'a str,
}

impl Ssh<'_> {
    fn command(&self, password: Option<&str>) -> Command {
        let mut command = self.host.command(if password.is_some() { "sshpass" } else { "ssh" });
        if let Some(password) = password {
            command.env("SSHPASS", password).args(["-e", "ssh"]);
        }
        command.args(["-F", "none", "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=60"]);
        // The boot is reported as failed shortly before its SSH server listens.
        command.args(["-o", "ConnectionAttempts=10"]);
        command.args(["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.world.path("known_hosts").display()));
        command.args(["-l", "root", self.address]);
        command
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from("/run/bridgehead-test-ssh")
    }

    /// One login for one command.
    fn log_in(&self, password: &str, command: &[&str]) -> Result<Output> {
        self.command(Some(password)).args(command).output().context("running sshpass")
    }

    /// One login for several commands, which lasts as long as the process.
    fn open(&self, password: &str) -> Result<Process> {
        let mut ssh = self.command(Some(password));
        let mut login =
            Process::start(ssh.args(["-M", "-N", "-S"]).arg(self.socket()), &self.world.path("ssh.log"))?;
        wait_for(PATIENCE, || {
            login.ensure_running().context("logging in")?;
            Ok(self.socket().exists().then_some(()))
        })?;
        Ok(login)
    }

    fn run(&self, command: &str) -> Result<String> {
        let output = self.command(None).arg("-S").arg(self.socket()).arg(command).output()?;
        ensure!(output.status.success(), "{command}: {output:?}");
        Ok(text(&output.stdout))
    }

    /// A command that outlives its session.
    fn start(&self, command: &str) -> Result<()> {
        self.run(&format!("({command}) < /dev/null > /dev/null 2>&1 &")).map(drop)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
