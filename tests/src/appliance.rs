//! The daemon under test and its command line, used as people use them: a configuration file, `ready` on
//! stdout, commands with `--json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::engine::DEMO;
use crate::machine::Spec;
use crate::net::Host;
use crate::process::{PATIENCE, Process, output};
use crate::timeline::Event;
use crate::world::World;

/// The bridge that the appliance makes in a lab.
pub const BRIDGE: &str = "pxe0";
/// The appliance's address on it.
pub const ADDRESS: &str = "10.77.0.1";

/// The program under test: `BRIDGEHEAD_BIN`, or the one beside this process in Cargo's target directory.
pub fn program() -> Result<PathBuf> {
    let path = match std::env::var_os("BRIDGEHEAD_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()?;
            let own = own.parent().context("an executable lies in a directory")?;
            // Test binaries lie in target/PROFILE/deps.
            if own.ends_with("deps") { own.with_file_name("bridgehead") } else { own.join("bridgehead") }
        }
    };
    ensure!(path.is_file(), "{}: not built; `cargo xtask build` does", path.display());
    Ok(path)
}

/// A configuration without anything to boot: the bridge with `ports`, leases, files.
pub fn address_only(world: &World, ports: &[String], fast_path: &str) -> String {
    base(&Places::of(world), ports, fast_path, "address-only")
}

/// An appliance's directories for its state and its files.
pub struct Places {
    pub state: PathBuf,
    pub files: PathBuf,
}

impl Places {
    fn of(world: &World) -> Self {
        Self { state: world.path("state"), files: world.path("files") }
    }
}

/// A configuration in which every machine boots the demo image, and `nodes` are declared.
pub fn demo(world: &World, ports: &[String], nodes: &[Spec], fast_path: &str) -> String {
    demo_at(&Places::of(world), ports, nodes, fast_path)
}

/// The same with other directories.
pub fn demo_at(places: &Places, ports: &[String], nodes: &[Spec], fast_path: &str) -> String {
    let mut text = base(places, ports, fast_path, "boot");
    text += &format!(
        r#"
[default]
profile = "demo"

[[profile]]
name    = "demo"
image   = "{DEMO}"
# no_timer_check: software emulation delivers the timer too late for the kernel's check of it.
cmdline = "console=ttyS0 no_timer_check"
"#
    );
    for Spec { name, mac, memory_mib, address, .. } in nodes {
        text += &format!("\n[[node]]\nname    = {name:?}\nmac     = {mac:?}\nmemory  = \"{memory_mib}M\"\n");
        if let Some(address) = address {
            text += &format!("address = \"{address}\"\n");
        }
    }
    text
}

/// A configuration in which unknown machines get what `unknown` says.
pub fn base(places: &Places, ports: &[String], fast_path: &str, unknown: &str) -> String {
    let Places { state, files } = places;
    format!(
        r#"state-dir = {state:?}

[network]
bridge    = "{BRIDGE}"
address   = "{ADDRESS}/24"
ports     = {ports:?}
fast-path = "{fast_path}"

[dhcp]
mode       = "authoritative"
range      = ["10.77.0.100", "10.77.0.199"]
lease-time = "1h"
router     = "{ADDRESS}"
unknown    = "{unknown}"

[files]
root = {files:?}

[api]
listen = "127.0.0.1:7480"
"#
    )
}

/// A running `bridgehead serve`.
pub struct Appliance {
    process: Process,
    log: PathBuf,
    /// Its lines on stdout after `ready`; the channel must stay open.
    _lines: mpsc::Receiver<String>,
}

impl Appliance {
    /// Writes `config` to the lab's directory, starts the daemon on it, and waits for `ready`.
    pub fn start(world: &World, config: &str) -> Result<Self> {
        Self::start_by(world, config, Command::new(program()?))
    }

    /// The same by a command that runs the daemon's program; the daemon's arguments are appended to its own.
    pub fn start_by(world: &World, config: &str, mut command: Command) -> Result<Self> {
        fs::create_dir_all(world.path("files"))?;
        let file = world.path("bridgehead.toml");
        fs::write(&file, config)?;
        command.args(["serve", "--config"]).arg(&file).env("BRIDGEHEAD_ASSETS", crate::assets());
        let log = world.path("bridgehead.log");
        let (mut process, lines) = Process::with_lines(&mut command, &log)?;
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.trim() == "ready" => Ok(Self { process, log, _lines: lines }),
            Ok(line) => bail!("the daemon's first line is {line:?}, not `ready`"),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the daemon is not ready after {} s:\n{}", PATIENCE.as_secs(), process.last_lines(15))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = process.wait(PATIENCE)?;
                bail!("the daemon ended ({status}):\n{}", process.last_lines(15))
            }
        }
    }

    /// An appliance that hands out addresses and files, with hosts named `names` on its wire.
    pub fn with_hosts(world: &World, names: &[&str]) -> Result<(Self, Vec<Host>)> {
        let hosts: Vec<Host> = (1..).zip(names).map(|(n, name)| Host::new(name, n)).collect::<Result<_>>()?;
        let ports: Vec<String> = hosts.iter().map(Host::port).collect();
        Ok((Self::start(world, &address_only(world, &ports, "auto"))?, hosts))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The daemon's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn ensure_running(&mut self) -> Result<()> {
        self.process.ensure_running()
    }

    /// Sends SIGTERM, and returns the exit status.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.terminate(PATIENCE)
    }

    /// SIGKILL: a crash.
    pub fn crash(mut self) -> Result<()> {
        self.process.kill()
    }

    /// A command of the command line, for the daemon's default API address.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(args);
        Ok(command)
    }

    /// What a command prints.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)?)
    }

    /// The document that a reading command prints with `--json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = output(self.command(args)?.arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("bridgehead {args:?} --json is no JSON: {text}"))
    }

    /// The timeline from its beginning, and further events. It ends when the [`Process`] does.
    pub fn follow(&self, world: &World) -> Result<(Process, mpsc::Receiver<Event>)> {
        let mut command = self.command(&["events", "--follow", "--json"])?;
        let (process, lines) = Process::with_lines(&mut command, &world.path("events.log"))?;
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                match serde_json::from_str(&line) {
                    // Without a receiver, events are read and dropped, until the process ends.
                    Ok(event) => drop(sender.send(event)),
                    Err(e) => eprintln!("bridgehead events: {e}: {line}"),
                }
            }
        });
        Ok((process, events))
    }

    /// The digest of an image that the appliance has.
    pub fn image_digest(&self, reference: &str) -> Result<String> {
        let images = self.json(&["images"])?;
        find(&images, &|o| o.get("reference").and_then(Value::as_str) == Some(reference))
            .and_then(|image| image.get("digest")?.as_str().map(str::to_owned))
            .with_context(|| format!("`bridgehead images --json` has no digest of {reference}: {images}"))
    }
}

/// The first object in `value`, however deep, that `wanted` accepts.
pub fn find<'a>(value: &'a Value, wanted: &dyn Fn(&Value) -> bool) -> Option<&'a Value> {
    match value {
        Value::Object(_) if wanted(value) => Some(value),
        Value::Object(fields) => fields.values().find_map(|v| find(v, wanted)),
        Value::Array(items) => items.iter().find_map(|v| find(v, wanted)),
        _ => None,
    }
}
