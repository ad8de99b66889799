//! `GET /metrics`: what is measured, in Prometheus' text format (version 0.0.4) or in OpenMetrics, as the client asks.
//!
//! [`families`] has every name, unit and type. They follow Prometheus' conventions, and `promtool check metrics` reads
//! them in a test.

mod accept;
mod families;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use jiff::Timestamp;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use pxe_contract::stage::Stage;

use super::documents::PortStatus;
use super::openapi::{self, Written};
use super::{ApiState, Failure};
use crate::dataplane;
use crate::machines::diagnosis::{Histogram, Kind as Cause};
use crate::machines::timeline::Timeline;
use crate::serve::dhcp;

/// What the appliance itself measures, at one moment.
#[derive(Clone, Debug)]
pub struct Measures {
    pub version: &'static str,
    pub started: Timestamp,
    /// Problems that need attention.
    pub alerts: usize,
    pub ports: Vec<PortStatus>,
    pub dhcp: dhcp::Status,
    /// [`tftp::Stats`](crate::serve::tftp::Stats) by name.
    pub tftp: Vec<(&'static str, u64)>,
    /// `None` when the fast path is off.
    pub kernel: Option<KernelMeasures>,
}

/// What the kernel programs measure.
#[derive(Clone, Debug)]
pub struct KernelMeasures {
    pub counters: dataplane::Counters,
    /// Bytes of files in the block map.
    pub published_bytes: u64,
}

/// The counts of boots.
#[derive(Clone, Debug, Default)]
struct Boots {
    /// Seconds since DISCOVER.
    stages: Vec<(Stage, Histogram)>,
    failures: Vec<(Cause, u64)>,
    transfers: u64,
}

/// Everything in a scrape.
#[derive(Clone, Debug)]
struct Scrape {
    measures: Measures,
    boots: Boots,
    /// Machines by the stage of their last boot; `None` for those that have not booted.
    machines: BTreeMap<Option<Stage>, u64>,
    /// By HTTP.
    http_sent_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Version 0.0.4.
    Text,
    /// Version 1.0.0.
    OpenMetrics,
}

pub(super) async fn metrics(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<Written<openapi::Metrics>, Failure> {
    let format = accept::preferred(&headers);
    let text = tokio::task::spawn_blocking(move || Scrape::of(&state).render(format));
    let text = text.await.map_err(Failure::internal)?;
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    Ok(Written::new((headers, text).into_response()))
}

impl Scrape {
    /// Each source is locked for as long as its own numbers are copied.
    fn of(state: &ApiState) -> Self {
        Self {
            measures: state.appliance.measures(),
            boots: Boots::of(&state.boot.timeline),
            machines: state.boot.machines.count_by_stage(),
            http_sent_bytes: state.boot.http_sent.load(Ordering::Relaxed),
        }
    }

    fn render(self, format: Format) -> String {
        let mut registry = Registry::with_prefix("bridgehead");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        let written = match format {
            Format::Text => prometheus_text::encode(&mut out, &registry),
            Format::OpenMetrics => text::encode(&mut out, &registry),
        };
        written.expect("writing to a String does not fail");
        out
    }
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
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}
