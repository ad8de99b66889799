//! The output of nodes' consoles and workloads: received from nodes, and served to clients of the API.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest as _, Path, Query, Request, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::openapi::{Lines, Written};
use super::session::Speaker;
use super::{ApiState, BootState, Failure, Kind, events, read, report};
use crate::machines::console::{BOOTS_MAX, Batch, ConsoleError, Consoles, Line, Source};

pub(super) use pxe_contract::console::BATCH_MAX as BODY_MAX;

pub(super) async fn take_console(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<StatusCode, Failure> {
    let consoles = state.consoles.clone();
    take(&state, consoles, speaker, request).await
}

pub(super) async fn take_logs(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<StatusCode, Failure> {
    let logs = state.logs.clone();
    take(&state, logs, speaker, request).await
}

async fn take(
    state: &BootState,
    kept: Consoles,
    speaker: Speaker,
    request: Request,
) -> Result<StatusCode, Failure> {
    let invalid = |error| Failure::new(Kind::Invalid, error, "see `POST /node/console` in docs/api.md");
    let Json(batch) = tokio::time::timeout(report::ARRIVES_WITHIN, Json::<Batch>::from_request(request, &()))
        .await
        .map_err(|_| invalid("the lines did not arrive in time".to_owned()))?
        .map_err(|rejection| invalid(rejection.body_text()))?;
    speaker.is(state, batch.mac)?;
    let now = Timestamp::now();
    let appended = tokio::task::spawn_blocking(move || kept.append(batch, now)).await;
    appended.map_err(Failure::internal)??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    /// How many boots back.
    #[serde(default)]
    back: usize,
    /// Anything but 0: follow further lines.
    #[serde(default)]
    follow: u8,
}

pub(super) async fn console(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Lines<Line>>, Failure> {
    let consoles = state.boot.consoles.clone();
    tell(&state, consoles, &name, wanted, "the last {} boots are, from where stage 1 has a network").await
}

pub(super) async fn logs(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Lines<Line>>, Failure> {
    let logs = state.boot.logs.clone();
    let hint = "the last {} boots are, of workloads whose profile has not logs = false";
    tell(&state, logs, &name, wanted, hint).await
}

async fn tell(
    state: &ApiState,
    consoles: Consoles,
    name: &str,
    wanted: Result<Query<Wanted>, QueryRejection>,
    nothing: &str,
) -> Result<Written<Lines<Line>>, Failure> {
    const HINT: &str = "the query takes back=N, or follow=1";
    let Query(wanted) = wanted.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let follow = wanted.follow != 0;
    if follow && wanted.back > 0 {
        return Err(Failure::new(Kind::Invalid, "a boot that is over says nothing more", HINT));
    }
    let machine = read::find(&state.boot.machines, name)?;
    let place = follow.then(|| state.access.follow()).transpose()?;
    // First the subscription, then the stored lines: so no line is missed.
    let live = follow.then(|| consoles.follow());
    let past = tokio::task::spawn_blocking(move || consoles.read(machine.mac, wanted.back)).await;
    let past = match past.map_err(Failure::internal)?? {
        Some(past) => past,
        None if follow => Vec::new(),
        None => {
            let error = format!("nothing is kept of that boot of {}", machine.label());
            let hint = nothing.replace("{}", &BOOTS_MAX.to_string());
            return Err(Failure::new(Kind::NotFound, error, hint));
        }
    };
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(send(machine.mac, past, live, place, lines));
    Ok(Written::lines(ReceiverStream::new(body)))
}

async fn send(
    mac: Mac,
    past: Vec<Line>,
    live: Option<Receiver<(Mac, Line)>>,
    _place: Option<OwnedSemaphorePermit>,
    lines: mpsc::Sender<events::Line>,
) {
    let told = Told::up_to(&past);
    for line in past {
        if lines.send(events::ndjson(&line)).await.is_err() {
            return;
        }
    }
    let Some(mut live) = live else { return };
    loop {
        let said = tokio::select! {
            said = live.recv() => said,
            () = lines.closed() => return,
        };
        match said {
            Ok((of, line)) if of == mac => {
                if !told.has(&line) && lines.send(events::ndjson(&line)).await.is_err() {
                    return;
                }
            }
            // Other machines' lines, or lines that arrived faster than they were read: their numbers show the gap.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Up to where a follower was told what is stored.
pub(super) struct Told(Option<(String, u64)>);

impl Told {
    pub(super) fn up_to(past: &[Line]) -> Self {
        Self(past.last().map(|line| (line.boot.clone(), line.number)))
    }

    /// Whether a line that arrived since the subscription is among what is stored.
    pub(super) fn has(&self, line: &Line) -> bool {
        // Those have no number of their own.
        line.from != Source::Netconsole
            && self.0.as_ref().is_some_and(|(boot, n)| *boot == line.boot && line.number <= *n)
    }
}

impl From<ConsoleError> for Failure {
    fn from(error: ConsoleError) -> Self {
        match error {
            ConsoleError::NoBoot { .. } => {
                Self::new(Kind::Invalid, error.to_string(), "the kernel has it in random/boot_id")
            }
            ConsoleError::Io { .. } => {
                Self::new(Kind::Unavailable, error.to_string(), "check state-dir, and its disk's room")
            }
        }
    }
}
