//! What machines are made of: received from nodes, and served to clients of the API.

use std::time::Instant;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::facts::Told;
use pxe_contract::rescue::Standing;

pub(super) use pxe_contract::facts::BODY_MAX;

use super::documents::MachineFacts;
use super::session::Speaker;
use super::{ApiState, BootState, Failure, Kind, read, report};
use crate::machines::facts::Said;
use crate::machines::timeline::{Happened, Who};

pub(super) async fn take(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<StatusCode, Failure> {
    let invalid = |error| Failure::new(Kind::Invalid, error, "see `POST /node/facts` in docs/api.md");
    let told = Json::<Told<Mac>>::from_request(request, &());
    let Json(Told { mac, facts }) = tokio::time::timeout(report::ARRIVES_WITHIN, told)
        .await
        .map_err(|_| invalid("the facts did not arrive in time".to_owned()))?
        .map_err(|rejection| invalid(rejection.body_text()))?;
    speaker.is(&state, mac)?;
    let now = Instant::now();
    // None of them is another's like: what a node says again, it may say again.
    if state.fact_rates.take(mac, now, now).is_none() {
        let error = format!("{mac} told its facts too often");
        return Err(Failure::new(Kind::Unavailable, error, "try again in a quarter of a minute"));
    }
    let known = state.facts.clone();
    let taken = tokio::task::spawn_blocking(move || known.take(mac, facts, Timestamp::now()));
    for change in taken.await.map_err(Failure::internal)?.map_err(Failure::internal)? {
        state.timeline.record(Happened::warning(Who::Mac(mac), change));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A machine that told its facts polls: 200 while it is to wait, 204 when it has become something, and is to boot again.
pub(super) async fn enrolled(
    State(state): State<BootState>,
    speaker: Speaker,
    body: Result<Json<Standing<Mac>>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    const HINT: &str = "see `POST /node/enrolled` in docs/api.md";
    let Json(Standing { mac, .. }) = body.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    speaker.is(&state, mac)?;
    Ok(if (state.is_something)(mac) { StatusCode::NO_CONTENT } else { StatusCode::OK })
}

pub(super) async fn facts(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Json<MachineFacts>, Failure> {
    let machine = read::find(&state.boot.machines, &name)?;
    let (known, mac) = (state.boot.facts.clone(), machine.mac);
    let said = tokio::task::spawn_blocking(move || known.said(mac)).await.map_err(Failure::internal)?;
    let Said { time, facts } = said.map_err(Failure::internal)?.ok_or_else(|| {
        let error = format!("{} has not told its facts", machine.label());
        let hint =
            "it does when it boots an image; [dhcp] unknown = \"enrol\" has strangers boot for that alone";
        Failure::new(Kind::NotFound, error, hint)
    })?;
    Ok(Json(MachineFacts { node: machine.name, mac, time, facts }))
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
