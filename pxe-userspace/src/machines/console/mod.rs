//! The output of nodes' consoles, and likewise of their workloads: the last boots of each machine, in files below the
//! state directory that survive the daemon.
//!
//! Nodes write it, so its size is bounded (for a boot, a machine, all of them), and control characters are escaped
//! before it is kept, so that no reader's terminal interprets them.

pub mod crash;
mod store;

use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::base::lock::Unpoisoned as _;
use crate::base::{schema, text};
use store::Store;

pub use pxe_contract::console::{Said, Source};
pub use store::{BOOTS_MAX, ConsoleError};

/// Characters of a line. The kernel's own limit is near (LOG_LINE_MAX).
const LINE_MAX: usize = 1024;

/// A line of a console, as stored and as `bridgehead console --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "ConsoleLine")]
pub struct Line {
    /// The kernel's random name of this boot.
    pub boot: String,
    /// The line's number in its boot, from 0. Where numbers are missing, lines were lost.
    pub number: u64,
    /// By the appliance's clock, as precisely as it is known.
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
    /// Seconds since the node's kernel started.
    pub uptime: f64,
    #[schemars(with = "schema::Source")]
    pub from: Source,
    /// The kernel's: 0 (emergency) to 7 (debug).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// It continues in the next line.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub partial: bool,
    pub text: String,
}

/// A batch as a node sends it.
pub type Batch = pxe_contract::console::Batch<Mac>;

/// The consoles' handle. Cloning it is cheap. Methods read and write files.
#[derive(Clone)]
pub struct Consoles(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    live: broadcast::Sender<(Mac, Line)>,
}

impl Consoles {
    /// Opens the consoles in `directory`.
    pub fn open(directory: &Path) -> Result<Self, ConsoleError> {
        let store = Mutex::new(Store::open(directory.to_owned())?);
        let (live, _) = broadcast::channel(4096);
        Ok(Self(Arc::new(Inner { store, live })))
    }

    /// Stores a node's lines, and passes them to followers. Lines that are stored already are not stored
    /// again.
    pub fn append(&self, batch: Batch, now: Timestamp) -> Result<(), ConsoleError> {
        let Batch { mac, boot, first, uptime, lines } = batch;
        let lines = lines.into_iter().zip(0..).map(|(said, n)| {
            let time = before(now, uptime - said.uptime);
            line(boot.clone(), first.saturating_add(n), time, said)
        });
        // Held until they are passed on, so that they arrive in order.
        let mut store = self.0.store.lock().unpoisoned();
        for line in store.append(mac, &boot, first, lines.collect(), now)? {
            // Without a receiver nobody is interested.
            let _ = self.0.live.send((mac, line));
        }
        Ok(())
    }

    /// Stores a line without a number in the machine's present boot, as often as it arrives. A line of a machine without
    /// any boot is dropped.
    pub fn add(&self, mac: Mac, said: Said, now: Timestamp) -> Result<(), ConsoleError> {
        let mut store = self.0.store.lock().unpoisoned();
        if let Some((boot, number)) = store.last(mac, now)? {
            let line = line(boot, number, now, said);
            store.add(mac, &line)?;
            let _ = self.0.live.send((mac, line));
        }
        Ok(())
    }

    /// The lines of this machine's last boot, or of the boot `back` before it. `None` if there is none.
    pub fn read(&self, mac: Mac, back: usize) -> Result<Option<Vec<Line>>, ConsoleError> {
        self.0.store.lock().unpoisoned().read(mac, back)
    }

    /// Lines from now on, of all machines.
    pub fn follow(&self) -> broadcast::Receiver<(Mac, Line)> {
        self.0.live.subscribe()
    }
}

fn line(boot: String, number: u64, time: Timestamp, said: Said) -> Line {
    Line {
        boot,
        number,
        time,
        uptime: if said.uptime.is_finite() { said.uptime } else { 0.0 },
        from: said.from,
        level: said.level,
        partial: said.partial,
        text: visible(&said.text),
    }
}

/// That many seconds before `now`, if that is a valid time.
fn before(now: Timestamp, seconds: f64) -> Timestamp {
    SignedDuration::try_from_secs_f64(seconds.max(0.0))
        .ok()
        .and_then(|ago| now.checked_sub(ago).ok())
        .unwrap_or(now)
}

/// Text that is harmless for a terminal: control characters become `^[` and `\u{9b}`, and so do characters that
/// change the direction of writing (Unicode's Bidi_Control), which can make a line read as another.
fn visible(text: &str) -> String {
    let line: String = text.chars().take(LINE_MAX).map(|c| if c == '\t' { ' ' } else { c }).collect();
    text::visible(&line)
}

#[cfg(test)]
mod tests;
