//! The daemon in a virtual machine, and its command line there.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::machine::Guest;

const CONFIG: &str = "/etc/bridgehead.toml";
/// The daemon's stderr.
const LOG: &str = "/var/log/bridgehead.log";
/// Where its files are.
pub const FILES: &str = "/srv/boot";
pub const STATE: &str = "/var/lib/bridgehead";
/// The card.
pub const PORT: &str = "eth0";

/// Starts the daemon and waits for its first line, or for its end. Its later lines need a reader, too.
const SERVE: &str = r#"
mkdir -p /run/bridgehead-said && cd /run/bridgehead-said && rm -f said first && mkfifo said first
BRIDGEHEAD_ASSETS=/assets bridgehead serve --config "$CONFIG" >said 2>>"$LOG" &
echo $! >/run/bridgehead-said/pid
{ read -r line; echo "$line" >first; cat >>/var/log/bridgehead.stdout; } <said &
read -r line <first
echo "$line"
"#;

/// A running `bridgehead serve` in a machine.
pub struct Inside<'g> {
    guest: &'g Guest,
}

impl<'g> Inside<'g> {
    /// Starts the daemon with this configuration and waits for `ready`.
    pub fn start(guest: &'g Guest, config: &str) -> Result<Self> {
        guest.write(CONFIG, config.as_bytes())?;
        Self::again(guest)
    }

    /// Starts it with the existing configuration.
    pub fn again(guest: &'g Guest) -> Result<Self> {
        let said = guest.text(&format!("CONFIG={CONFIG} LOG={LOG}\n{SERVE}"))?;
        let inside = Self { guest };
        ensure!(said.trim() == "ready", "the daemon says {said:?}, not `ready`:\n{}", inside.log()?);
        Ok(inside)
    }

    /// The end of its log.
    pub fn log(&self) -> Result<String> {
        self.guest.text(&format!("tail -n 60 {LOG}"))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn crash(self) -> Result<()> {
        self.end("KILL")
    }

    /// SIGTERM, and waits until it is gone.
    pub fn stop(self) -> Result<()> {
        self.end("TERM")
    }

    /// Polls for its end: it was started by a shell that is gone, so nothing can wait for it as a child.
    fn end(self, signal: &str) -> Result<()> {
        let script = format!(
            "pid=$(cat /run/bridgehead-said/pid); kill -{signal} $pid\n\
             while [ -d /proc/$pid ] && ! grep -q '^State:.*Z' /proc/$pid/status; do sleep 0.02; done"
        );
        self.guest.text(&script)?;
        Ok(())
    }

    /// What a command prints.
    pub fn command(&self, args: &str) -> Result<String> {
        self.guest.text(&format!("bridgehead {args}"))
    }

    /// The document that a reading command prints with `--json`.
    pub fn json(&self, args: &str) -> Result<Value> {
        let text = self.command(&format!("{args} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("bridgehead {args} --json is no JSON: {text}"))
    }

    pub fn status(&self) -> Result<Status> {
        Ok(Status(self.json("status")?))
    }
}

/// What `bridgehead status --json` said.
pub struct Status(pub Value);

impl Status {
    /// A counter; 0 where it is not shown.
    pub fn count(&self, name: &str) -> u64 {
        self.0["counters"][name].as_u64().unwrap_or(0)
    }

    /// The port's tier, and why it has no better one.
    pub fn tier(&self) -> (&str, &str) {
        let port = &self.0["ports"][0];
        (port["tier"].as_str().unwrap_or("none"), port["reason"].as_str().unwrap_or(""))
    }
}
