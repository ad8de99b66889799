//! Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use pxe_contract::stage::Stage;

use super::documents::Status;
use super::{ApiState, Failure, read};
use crate::diagnosis::{BUCKETS, Histogram, Kind as Cause};
use crate::machines::Machine;
use crate::text::word;
use crate::timeline::Timeline;

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, Failure> {
    let machines = state.boot.machines.all();
    let boots = Boots::of(&state.boot.timeline);
    let status = read::whole_status(state).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(&status, &machines, &boots)))
}

/// What is counted of boots.
#[derive(Default)]
struct Boots {
    stages: Vec<(Stage, Histogram)>,
    failures: Vec<(Cause, u64)>,
    transfers: u64,
}

impl Boots {
    fn of(timeline: &Timeline) -> Self {
        let watch = timeline.watch();
        Self {
            stages: watch.pace().since_discover().map(|(stage, h)| (stage, h.clone())).collect(),
            failures: watch.failures().collect(),
            transfers: watch.transfers(),
        }
    }

    /// What Prometheus makes a histogram of: buckets that count everything below their bound, a sum, a
    /// count.
    fn histograms(&self) -> Vec<(String, f64)> {
        let mut samples = Vec::new();
        for (stage, histogram) in &self.stages {
            let stage = word(*stage);
            let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            let mut total = 0;
            for (bound, count) in bounds.zip(histogram.counts) {
                total += count;
                samples
                    .push((format!("_bucket{}", label(&[("stage", &stage), ("le", &bound)])), total as f64));
            }
            let stage = label(&[("stage", &stage)]);
            samples.push((format!("_sum{stage}"), histogram.sum));
            samples.push((format!("_count{stage}"), total as f64));
        }
        samples
    }
}

/// Who sends files, and the counter of what it sent: whole frames in the kernel, contents elsewhere.
pub(crate) const TIERS: [(&str, &str); 4] = [
    ("xdp", "kernel.xdp.reply-bytes"),
    ("tc", "kernel.tc.reply-bytes"),
    ("daemon", "tftp.bytes-by-daemon"),
    ("http", "http.sent-bytes"),
];

fn text(status: &Status, machines: &[Machine], boots: &Boots) -> String {
    let mut out = String::new();
    // Samples by what follows the family's name.
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        // Writing to a String can't fail.
        let _ = writeln!(out, "# HELP bridgehead_{name} {help}\n# TYPE bridgehead_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "bridgehead_{name}{labels} {value}");
        }
    };
    let version = [(label(&[("version", &status.version)]), 1.0)];
    family("build_info", "gauge", "The running version.", &version);
    let started = [(String::new(), status.started.as_microsecond() as f64 / 1e6)];
    family("start_time_seconds", "gauge", "When the daemon started, in Unix time.", &started);
    family(
        "alerts",
        "gauge",
        "Things somebody should look at.",
        &[(String::new(), status.alerts.len() as f64)],
    );
    let ports: Vec<_> = status
        .ports
        .iter()
        .map(|port| (label(&[("port", &port.name), ("tier", &word(port.tier))]), 1.0))
        .collect();
    family("port_info", "gauge", "Ports of the bridge and the fast path's tier on each.", &ports);
    let mut stages = BTreeMap::<String, f64>::new();
    for machine in machines {
        *stages.entry(machine.stage.map_or_else(|| "none".to_owned(), word)).or_default() += 1.0;
    }
    let stages: Vec<_> = stages.iter().map(|(stage, count)| (label(&[("stage", stage)]), *count)).collect();
    family("nodes", "gauge", "Machines by the stage that their last boot reached.", &stages);
    family(
        "boot_stage_seconds",
        "histogram",
        "From a machine's DISCOVER to each stage of its boot.",
        &boots.histograms(),
    );
    let failures: Vec<_> = boots
        .failures
        .iter()
        .map(|(cause, count)| (label(&[("cause", &word(*cause))]), *count as f64))
        .collect();
    family("boot_failures_total", "counter", "Boots that failed, by their first cause.", &failures);
    family("transfers", "gauge", "Transfers of files under way.", &[(String::new(), boots.transfers as f64)]);
    let sent: Vec<_> = TIERS
        .iter()
        .filter_map(|(tier, counter)| {
            Some((label(&[("tier", tier)]), *status.counters.get(*counter)? as f64))
        })
        .collect();
    family("sent_bytes_total", "counter", "Sent to machines, by who sent it.", &sent);
    for (name, value) in &status.counters {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .collect();
        family(
            &format!("{name}_total"),
            "counter",
            "Since the daemon started.",
            &[(String::new(), *value as f64)],
        );
    }
    out
}

fn label(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}
