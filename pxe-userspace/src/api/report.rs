//! Reports of a node's init on its boot.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::StatusCode;
use pxe_common::Mac;
use pxe_contract::report::Report;

use super::session::Speaker;
use super::{BootState, Failure, Kind};
use crate::base::text;
use crate::machines::timeline::{Happened, Stage, Who};

/// A report is a few words.
pub(super) const BODY_MAX: usize = 16 * 1024;

/// The longest text of a node: it goes into the database and onto people's terminals.
const WORDS_MAX: usize = 1000;

/// The time in which a whole report has to arrive.
pub(super) const ARRIVES_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn report(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<StatusCode, Failure> {
    let invalid = |error| Failure::new(Kind::Invalid, error, "docs/api.md shows a report");
    let Json(report) = tokio::time::timeout(ARRIVES_WITHIN, Json::<Report<Mac>>::from_request(request, &()))
        .await
        .map_err(|_| invalid("the report did not arrive in time".to_owned()))?
        .map_err(|rejection| invalid(rejection.body_text()))?;
    speaker.is(&state, report.mac)?;
    let stage = report.stage.stage(report.exit_code);
    // Without `uptime`, which differs each time.
    let says = (text::word(stage), report.exit_code, &report.detail, &report.cause);
    let Some(left_out) = state.rates.take(report.mac, says, Instant::now()) else {
        tracing::debug!(mac = %report.mac, "a report too many: it is counted");
        return Ok(StatusCode::NO_CONTENT);
    };
    let left_out =
        (left_out > 0).then(|| format!("{left_out} reports before it came too fast, or said the same"));
    let exit = report.exit_code.map(|code| format!("ended with exit code {code}"));
    let uptime = report.uptime.filter(|u| u.is_finite()).map(|u| format!("{u:.1} s after its kernel"));
    let detail: Vec<String> =
        [report.detail.map(words), exit, uptime, left_out].into_iter().flatten().collect();
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

/// One line without control characters.
fn words(said: String) -> String {
    text::one_line(&said).chars().take(WORDS_MAX).collect()
}
