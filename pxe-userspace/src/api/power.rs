//! Machines' power: switching it, asking for it, and who the appliance is before BMCs.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::documents::PowerResult;
use super::door::By;
use super::events::ndjson;
use super::nodes::{missing, parse};
use super::{ApiState, Failure, Kind, read};
use crate::config::Node;
use crate::machines::Machine;
use crate::machines::kept::selector::Nothing;
use crate::operate::audit::Did;
use crate::operate::power::credentials::{AddError, Known};
use crate::operate::power::pins::NewPin;
use crate::operate::power::{Action, BootOnce, From, Mode, PowerError, Verb};

/// Whose power is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Asked {
    select: String,
}

/// The body of `POST /api/power`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Ordered {
    select: String,
    action: Verb,
    /// What they boot next, once.
    #[serde(default)]
    boot: Option<From>,
}

pub(super) async fn status(
    State(state): State<ApiState>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(asked) =
        asked.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes select=SELECTOR"))?;
    let machines = chosen(&state, &asked.select).await?;
    Ok(answer(state, None, machines, Verb::Status, None))
}

pub(super) async fn order(
    State(state): State<ApiState>,
    by: By,
    ordered: Result<Json<Ordered>, JsonRejection>,
) -> Result<Response, Failure> {
    const HINT: &str = "send {\"select\": \"SELECTOR\", \"action\": \"on\"}: on, off or cycle, and where wanted \
                        \"boot\": \"pxe\" or \"http\"";
    let Json(ordered) = ordered.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let invalid = |error: &str| Err(Failure::new(Kind::Invalid, error, HINT));
    match (ordered.action, ordered.boot) {
        (Verb::Status, _) => return invalid("the status is asked for by GET /api/power?select=SELECTOR"),
        (Verb::Off, Some(_)) => return invalid("what is switched off boots nothing"),
        (Verb::On | Verb::Cycle, _) | (Verb::Off, None) => {}
    }
    let machines = chosen(&state, &ordered.select).await?;
    by.later();
    Ok(answer(state, Some(by), machines, ordered.action, ordered.boot))
}

/// The machines that are meant, as they are shown.
async fn chosen(state: &ApiState, select: &str) -> Result<Vec<Machine>, Failure> {
    let selector = parse(select)?;
    let machines = state.boot.machines.clone();
    let chosen = tokio::task::spawn_blocking(move || {
        machines.look(|all| {
            let chosen = selector.choose(all)?;
            Ok::<_, Nothing>(chosen.into_iter().cloned().collect::<Vec<_>>())
        })
    });
    chosen.await.map_err(Failure::internal)?.map_err(|nothing| missing(&nothing))
}

/// Streams [`PowerResult`]s, one a line, as they come. What was begun is done, and told in the audit, whether or not the
/// asker stays.
fn answer(
    state: ApiState,
    by: Option<By>,
    machines: Vec<Machine>,
    verb: Verb,
    boot: Option<From>,
) -> Response {
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(async move {
        let state = &state;
        let acting = machines.into_iter().map(|machine| async move {
            let node = state.appliance.node(machine.mac);
            act(state, node, machine, verb, boot).await
        });
        // The handle has the limit of how many at a time.
        let mut results: futures_util::stream::FuturesUnordered<_> = acting.collect();
        let mut telling = Vec::new();
        while let Some(result) = results.next().await {
            if let Some(by) = by.clone() {
                let did = Did::new(&format!("power.{verb}")).on(result.label()).after(result.told());
                telling.push(tokio::spawn(async move { by.did(did).await }));
            }
            let _ = lines.send(ndjson(&result)).await;
        }
        for told in telling {
            let _ = told.await;
        }
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn act(
    state: &ApiState,
    node: Option<Arc<Node>>,
    machine: Machine,
    verb: Verb,
    boot: Option<From>,
) -> PowerResult {
    // As its firmware was seen; of one that was never seen, UEFI.
    let mode = if machine.firmware.is_some() && !machine.is_uefi() { Mode::Bios } else { Mode::Uefi };
    let boot = boot.map(|from| BootOnce { from, mode });
    let action = match verb {
        Verb::On => Action::On { boot },
        Verb::Off => Action::Off,
        Verb::Cycle => Action::Cycle { boot },
        Verb::Status => Action::Status,
    };
    let done = match node {
        Some(node) => state.powers.act(&node, action).await,
        None => Err(PowerError::NoPower),
    };
    PowerResult::of(&machine, verb, done)
}

/// The body of `POST /api/nodes/{name}/trust`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Trusted {
    /// SHA-256 of the certificate that it must have.
    #[serde(default)]
    fingerprint: Option<String>,
}

pub(super) async fn trust(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
    trusted: Result<Json<Trusted>, JsonRejection>,
) -> Result<Json<NewPin>, Failure> {
    let hint = "send {} or {\"fingerprint\": \"SHA-256\"}";
    let Json(trusted) = trusted.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), hint))?;
    let machine = read::find(&state.boot.machines, &name)?;
    let Some(node) = state.appliance.node(machine.mac) else {
        return Err(refused(&PowerError::NoPower));
    };
    let pin = state.powers.trust(&node, trusted.fingerprint.as_deref()).await.map_err(|e| refused(&e))?;
    by.did(Did::new("power.trust").on(machine.label()).before(&pin.before).after(&pin)).await;
    Ok(Json(pin))
}

fn refused(error: &PowerError) -> Failure {
    Failure::new(Kind::Conflict, error.to_string(), "docs/power.md says what each cause means")
}

/// The body of `PUT /api/power/credentials/{name}`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct NewCredentials {
    user: String,
    #[serde(deserialize_with = "zeroizing")]
    password: Zeroizing<String>,
}

fn zeroizing<'de, D: Deserializer<'de>>(d: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(d).map(Zeroizing::new)
}

pub(super) async fn credentials(State(state): State<ApiState>) -> Result<Json<Vec<Known>>, Failure> {
    let listed = tokio::task::spawn_blocking(move || state.powers.credentials().list());
    listed.await.map_err(Failure::internal)?.map(Json).map_err(Failure::internal)
}

pub(super) async fn add_credentials(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
    new: Result<Json<NewCredentials>, JsonRejection>,
) -> Result<Json<Known>, Failure> {
    const HINT: &str = "send {\"user\": \"USER\", \"password\": \"PASSWORD\"}";
    // serde's words may repeat what was sent.
    let Json(new) = new.map_err(|_| Failure::new(Kind::Invalid, "that is no user and password", HINT))?;
    let credentials = state.powers.credentials().clone();
    let added = tokio::task::spawn_blocking(move || {
        let before = credentials.list()?.into_iter().find(|known| known.name == name);
        let known = credentials.add(&name, &new.user, &new.password, Timestamp::now())?;
        Ok((before, known))
    });
    let (before, known) =
        added.await.map_err(Failure::internal)?.map_err(|error: AddError| match &error {
            AddError::Name(_) | AddError::User | AddError::Password => {
                Failure::new(Kind::Invalid, error.to_string(), "`bridgehead power credentials add --help`")
            }
            AddError::Full => Failure::new(Kind::Conflict, error.to_string(), "remove some that nobody uses"),
            AddError::Sealing(_) | AddError::Read(_) | AddError::Write(_) => Failure::internal(error),
        })?;
    by.did(Did::new("power.credentials.add").on(&known.name).before(before).after(&known)).await;
    Ok(Json(known))
}

pub(super) async fn remove_credentials(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let (credentials, wanted) = (state.powers.credentials().clone(), name.clone());
    let removed = tokio::task::spawn_blocking(move || credentials.remove(&wanted));
    match removed.await.map_err(Failure::internal)?.map_err(Failure::internal)? {
        Some(known) => {
            by.did(Did::new("power.credentials.rm").on(name).before(known)).await;
            Ok(StatusCode::NO_CONTENT)
        }
        None => {
            let error = format!("no credentials are called {}", crate::config::nodes::quoted(&name));
            Err(Failure::new(Kind::NotFound, error, "`bridgehead power credentials list` has them"))
        }
    }
}
