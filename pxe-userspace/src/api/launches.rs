//! Launches: asked for, looked at, ended and undone.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use futures_util::future::BoxFuture;
use pxe_contract::failure::ErrorDocument;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::documents::{Asked, Launch, LaunchEvent, LaunchLine, Progress, WholeLaunch};
use super::door::By;
use super::openapi::{JsonOrLines, Lines, NDJSON, Written};
use super::streams::{self, Rows, Step};
use super::{ApiState, Failure, Kind, LaunchOrder};
use crate::machines::kept::selector;
use crate::operate::audit::Did;
use crate::operate::launch::order::OrderError;
use crate::operate::launch::{LaunchError, Launches};
use crate::store::ReadError;

/// Whether it is only asked what would be.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct How {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn list(State(state): State<ApiState>) -> Json<Vec<Launch>> {
    Json(state.launches.all())
}

pub(super) async fn show(
    State(state): State<ApiState>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<WholeLaunch>, Failure> {
    let id = number(id)?;
    let launches = state.launches;
    let whole = tokio::task::spawn_blocking(move || launches.get(id)).await.map_err(Failure::internal)?;
    whole.map(Json).map_err(failure)
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, Failure> {
    let Path(id) = id.map_err(|e| {
        Failure::new(
            Kind::Invalid,
            e.body_text(),
            "a launch is known by its number; `bridgehead launches` has them",
        )
    })?;
    Ok(id)
}

/// Answers with the launch. Who takes lines gets the steps of bringing its image in before.
pub(super) async fn launch(
    State(state): State<ApiState>,
    by: By,
    how: Result<Query<How>, QueryRejection>,
    headers: HeaderMap,
    order: Result<Json<LaunchOrder>, JsonRejection>,
) -> Result<Written<JsonOrLines<Asked, LaunchLine>>, Failure> {
    const HINT: &str = "send {\"select\": \"all\", \"image\": \"NAME:TAG\"} and what else docs/api.md has";
    let Query(how) =
        how.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes dry-run=true"))?;
    let Json(order) = order.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let (progress, steps) = mpsc::channel(16);
    let asking = ask(state, by, how.dry_run, order, progress);
    let takes_lines = headers.get(header::ACCEPT).is_some_and(|accept| accept == NDJSON);
    match takes_lines {
        true => Ok(Written::new(streams::steps::<LaunchLine>(asking, steps).into_response())),
        false => {
            drop(steps);
            let asked = tokio::spawn(asking).await.map_err(Failure::internal)??;
            Ok(Written::new(Json(asked).into_response()))
        }
    }
}

/// What was begun is told in the audit, whether or not the asker stays.
fn ask(
    state: ApiState,
    by: By,
    dry: bool,
    order: LaunchOrder,
    progress: mpsc::Sender<Progress>,
) -> BoxFuture<'static, Result<Asked, Failure>> {
    by.later();
    Box::pin(async move {
        let asked = state.appliance.launch(order.clone(), dry, by.caller.who.clone(), progress).await?;
        if !dry {
            let after = json!({ "launch": asked.launch.launch.id, "machines": asked.launch.machines.len(), "order": order });
            by.did(Did::new("launch").on(&order.select).after(after)).await;
        }
        Ok(asked)
    })
}

impl Step for LaunchLine {
    type Done = Asked;

    fn progress(progress: Progress) -> Self {
        Self::Progress(progress)
    }
    fn done(done: Asked) -> Self {
        Self::Done(Box::new(done))
    }
    fn failed(failure: ErrorDocument) -> Self {
        Self::Failed(failure)
    }
}

pub(super) async fn cancel(
    State(state): State<ApiState>,
    by: By,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<WholeLaunch>, Failure> {
    let id = number(id)?;
    let whole = state.launches.cancel(id, &by.caller.who).map_err(failure)?;
    by.did(Did::new("launch.cancel").on(id.to_string())).await;
    Ok(Json(whole))
}

pub(super) async fn undo(
    State(state): State<ApiState>,
    by: By,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<Asked>, Failure> {
    let id = number(id)?;
    by.later();
    let undoing = tokio::spawn(async move {
        let asked = state.appliance.undo(id, by.caller.who.clone()).await?;
        let after = json!({ "launch": asked.launch.launch.id, "machines": asked.launch.machines.len() });
        by.did(Did::new("launch.undo").on(id.to_string()).after(after)).await;
        Ok(Json(asked))
    });
    undoing.await.map_err(Failure::internal)?
}

/// Why there is no launch.
pub fn refused(error: &OrderError) -> Failure {
    let (kind, hint) = match error {
        OrderError::Selector(_) => (Kind::Invalid, selector::HINT),
        OrderError::Nothing(_) => (Kind::NotFound, selector::HINT),
        OrderError::What => (Kind::Invalid, "name --profile or --image"),
        OrderError::NoProfile { .. } => (Kind::NotFound, "nothing was changed"),
        OrderError::Number { .. } | OrderError::Url(_) => {
            (Kind::Invalid, "docs/launch.md has what may be said")
        }
        OrderError::Machines(_) => (Kind::Conflict, "nothing was changed"),
    };
    Failure::new(kind, error.to_string(), hint)
}

/// Why nothing was changed.
pub fn failure(error: LaunchError) -> Failure {
    let (kind, hint) = match &error {
        LaunchError::NoLaunch(_) => (Kind::NotFound, "`bridgehead launches` lists them"),
        LaunchError::Taken(_) => (
            Kind::Conflict,
            "a machine is in one launch at a time: wait for it, or `bridgehead launch cancel ID`; nothing was changed",
        ),
        LaunchError::GoesOn(_) => (Kind::Conflict, "wait for its end, or `bridgehead launch cancel ID`"),
        LaunchError::Over(_) | LaunchError::Nothing(_) => {
            (Kind::Conflict, "`bridgehead launch show ID` says how it ended")
        }
        LaunchError::Since(_) => (Kind::Conflict, "undo that one first, or launch what they shall boot"),
        LaunchError::Write(_) | LaunchError::Read(_) => return Failure::internal(error),
    };
    Failure::new(kind, error.to_string(), hint)
}

/// Which events.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only events with a larger id.
    #[serde(default)]
    after: u64,
    /// Only this launch's.
    launch: Option<u64>,
    /// Anything but 0: follow further events.
    #[serde(default)]
    follow: u8,
}

pub(super) async fn events(
    State(state): State<ApiState>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Lines<LaunchEvent>>, Failure> {
    let Query(wanted) = wanted.map_err(|e| {
        Failure::new(Kind::Invalid, e.body_text(), "the query takes after=ID, launch=ID and follow=1")
    })?;
    let place = (wanted.follow != 0).then(|| state.access.follow()).transpose()?;
    Ok(streams::rows(Of { launches: state.launches, launch: wanted.launch }, wanted.after, place))
}

/// Events of all launches, or of one.
#[derive(Clone)]
struct Of {
    launches: Launches,
    launch: Option<u64>,
}

impl Rows for Of {
    type Row = LaunchEvent;

    fn id(event: &LaunchEvent) -> u64 {
        event.id
    }
    fn since(&self, after: u64, limit: usize) -> Result<Vec<LaunchEvent>, ReadError> {
        self.launches.since(after, limit)
    }
    fn stored(&self) -> watch::Receiver<u64> {
        self.launches.watch()
    }
    fn is_wanted(&self, event: &LaunchEvent) -> bool {
        self.launch.is_none_or(|launch| launch == event.launch)
    }
}
