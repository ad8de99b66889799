//! The timeline as scripts see it: one JSON object a line from `bridgehead events --json`.

use jiff::Timestamp;
use serde::Deserialize;

/// A line of it. Like any script, the lab reads the documented fields and not the daemon's types.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    pub id: u64,
    pub time: Timestamp,
    pub node: Option<String>,
    pub mac: String,
    pub address: Option<std::net::Ipv4Addr>,
    pub stage: String,
    pub answered_by: String,
    pub bytes: Option<u64>,
    pub duration: Option<f64>,
    pub detail: Option<String>,
    pub cause: Option<String>,
}

impl Event {
    /// Seconds from `start` to the event.
    pub fn seconds_since(&self, start: Timestamp) -> f64 {
        self.time.duration_since(start).as_secs_f64()
    }
}
