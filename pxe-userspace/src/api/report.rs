//! What a node's init says of its boot.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, FromRequest as _, Request, State};
use axum::http::StatusCode;
use pxe_common::Mac;
use serde::Deserialize;

use super::{BootState, Failure, Kind, files};
use crate::diagnosis::Note;
use crate::text;
use crate::timeline::{Happened, Stage, Who};

/// The body of `POST /node/report`. Unknown keys are for daemons newer than this one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    #[serde(with = "text::mac")]
    mac: Mac,
    stage: Reported,
    detail: Option<String>,
    cause: Option<String>,
    /// Of what the node fetched, and seconds that it took.
    bytes: Option<u64>,
    duration: Option<f64>,
    /// Of the workload's first process.
    exit_code: Option<i32>,
    /// Seconds since the node's kernel started.
    uptime: Option<f64>,
}

/// What only the node itself can know.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reported {
    Stage1,
    Image,
    Workload,
    /// The workload's first process ended, for good or ill.
    Exited,
    Failed,
}

impl Reported {
    /// An exit is no stage of a boot: one in order leaves the node at its last, any other is a failure.
    fn stage(self, exit_code: Option<i32>) -> Stage {
        match self {
            Self::Stage1 => Stage::Stage1,
            Self::Image => Stage::Image,
            Self::Workload => Stage::Workload,
            Self::Exited if exit_code == Some(0) => Stage::Workload,
            Self::Exited | Self::Failed => Stage::Failed,
        }
    }
}

/// A report is a few words.
pub(super) const BODY_MAX: usize = 16 * 1024;

/// Words from a node are cut there: they go into the database and onto people's terminals.
const WORDS_MAX: usize = 1000;

/// For the whole of a report to arrive.
pub(super) const ARRIVES_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn report(
    State(state): State<BootState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let invalid = |error| Failure::new(Kind::Invalid, error, "docs/api.md shows a report");
    let Json(report) = tokio::time::timeout(ARRIVES_WITHIN, Json::<Report>::from_request(request, &()))
        .await
        .map_err(|_| invalid("the report did not arrive in time".to_owned()))?
        .map_err(|rejection| invalid(rejection.body_text()))?;
    of_itself(&state, peer, report.mac)?;
    let stage = report.stage.stage(report.exit_code);
    let exit = report.exit_code.map(|code| format!("ended with exit code {code}"));
    let uptime = report.uptime.filter(|u| u.is_finite()).map(|u| format!("{u:.1} s after its kernel"));
    let detail: Vec<String> = [report.detail.map(words), exit, uptime].into_iter().flatten().collect();
    let cause = report.cause.map(words);
    state.timeline.record(Happened {
        detail: Some(detail.join(", ")).filter(|d| !d.is_empty()),
        bytes: report.bytes,
        duration: report.duration.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        cause: match stage {
            Stage::Failed => cause.or_else(|| Some("the node did not say why".to_owned())),
            _ => cause,
        },
        ..Happened::new(Who::Mac(report.mac), stage)
    });
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the machine speaks for itself.
pub(super) fn of_itself(state: &BootState, peer: SocketAddr, mac: Mac) -> Result<(), Failure> {
    let address = files::ipv4(peer.ip());
    if state.machines.by_address(address).is_some_and(|machine| machine.mac == mac) {
        return Ok(());
    }
    let error = format!("{address} is not the address of {mac}");
    state.timeline.note(Who::Mac(mac), Note::Refused { what: "report", why: error.clone() });
    Err(Failure::new(Kind::Forbidden, error, "a node reports for itself, from the address of its lease"))
}

/// One line without control characters.
fn words(said: String) -> String {
    text::one_line(&said).chars().take(WORDS_MAX).collect()
}
