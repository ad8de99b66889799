//! `bridgehead storm`, and configurations of appliances for it.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::appliance::{ADDRESS, BRIDGE, program};
use crate::load::Numbers;
use crate::world::World;

/// The prefix of simulated machines' MAC addresses, except those that boot alone first.
pub const MACS: &str = "02:73:74:00";

/// A configuration with room for 2,304 machines, whose default profile is a kernel and two initrds by hand, of these
/// sizes in bytes.
pub fn config(world: &World, ports: &[String], ceiling: Option<&str>, sizes: [usize; 3]) -> Result<String> {
    let files = world.path("files");
    fs::create_dir_all(&files)?;
    for (name, size) in ["kernel", "one.img", "two.img"].into_iter().zip(sizes) {
        let mut bytes = Numbers::new(size as u64).bytes(size);
        // `check` knows a kernel by its bzImage header (Linux, Documentation/arch/x86/boot.rst).
        if let Some(header) = bytes.get_mut(0x1fe..0x206).filter(|_| name == "kernel") {
            header.copy_from_slice(b"\x55\xaa\0\0HdrS");
        }
        fs::write(files.join(name), bytes)?;
    }
    let state = world.path("state");
    let ceiling = ceiling.map(|rate| format!("ceiling = {rate:?}")).unwrap_or_default();
    Ok(format!(
        r#"state-dir = {state:?}
[network]
bridge  = "{BRIDGE}"
address = "{ADDRESS}/20"
ports   = {ports:?}
{ceiling}
[dhcp]
range = ["10.77.1.0", "10.77.9.255"]
[files]
root = {files:?}
[default]
profile = "web"
[[profile]]
name   = "web"
kernel = "/kernel"
initrd = ["/one.img", "/two.img"]
[[profile]]
name   = "other"
kernel = "/kernel"
"#
    ))
}

/// `bridgehead storm --json` with `args`.
pub fn command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.args(["storm", "--json"]).args(args);
    Ok(command)
}

/// Runs it to its end: the exit code, and the outcome, or the message if there is none.
pub fn run(args: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = command(args)?.output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    print!("{words}");
    let outcome = match output.stdout.is_empty() {
        true => Value::String(words.into_owned()),
        false => serde_json::from_slice(&output.stdout).context("the outcome is JSON")?,
    };
    Ok((output.status.code(), outcome))
}
