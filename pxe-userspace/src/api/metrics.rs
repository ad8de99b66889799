//! Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::documents::Status;
use super::{ApiState, Failure};
use crate::machines::Machine;
use crate::text::word;

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, Failure> {
    let machines = state.boot.machines.all();
    let appliance = state.appliance;
    let status = tokio::task::spawn_blocking(move || appliance.status()).await.map_err(Failure::internal)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(&status, &machines)))
}

fn text(status: &Status, machines: &[Machine]) -> String {
    let mut out = String::new();
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
