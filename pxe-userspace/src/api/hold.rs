//! Holding machines in stage 1 and releasing them; also those that stopped because their boot failed.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::rescue::Standing;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::Deserialize;

use super::door::By;
use super::session::Speaker;
use super::{ApiState, BootState, Failure, Kind, read};
use crate::machines::{Hold, Machine};
use crate::operate::audit::Did;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Options {
    /// Anything but 0: only the next boot.
    #[serde(default)]
    once: u8,
}

pub(super) async fn hold(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Json<Machine>, Failure> {
    let Query(options) =
        options.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes once=1"))?;
    let machine = read::find(&state.boot.machines, &name)?;
    let hold = if options.once == 0 { Hold::UntilReleased } else { Hold::Once };
    change(state, by, "node.hold", machine.clone(), move |state| {
        let profile =
            state.appliance.profiles().into_iter().find(|p| Some(&p.name) == machine.profile.as_ref());
        if let Some(profile) = profile.filter(|p| p.kernel.is_some()) {
            let error =
                format!("profile {} names a kernel by hand, which has no stage 1 to stop in", profile.name);
            return Err(Failure::new(Kind::Conflict, error, "machines that boot an image can be held"));
        }
        state.boot.holds.hold(machine.mac, hold).map_err(Failure::internal)?;
        read::find(&state.boot.machines, &machine.mac.to_string())
    })
    .await
}

pub(super) async fn release(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<Json<Machine>, Failure> {
    let machine = read::find(&state.boot.machines, &name)?;
    let mac = machine.mac;
    change(state, by, "node.release", machine.clone(), move |state| {
        state.boot.holds.release(mac).map_err(Failure::internal)?;
        if machine.stage == Some(Stage::Failed) {
            state.boot.rescues.release(mac, Timestamp::now());
        }
        read::find(&state.boot.machines, &mac.to_string())
    })
    .await
}

/// Makes the change on a thread where waiting for the disk blocks nobody.
async fn change(
    state: ApiState,
    by: By,
    what: &str,
    before: Machine,
    change: impl FnOnce(&ApiState) -> Result<Machine, Failure> + Send + 'static,
) -> Result<Json<Machine>, Failure> {
    let after = tokio::task::spawn_blocking(move || change(&state)).await.map_err(Failure::internal)??;
    by.did(Did::new(what).on(after.label()).before(before.hold).after(after.hold)).await;
    Ok(Json(after))
}

/// A held machine polls: 200 while it is to wait, 204 when it is to go on.
pub(super) async fn stopped(
    State(state): State<BootState>,
    speaker: Speaker,
    body: Result<Json<Standing<Mac>>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let mac = heard(&state, &speaker, body)?.0;
    Ok(answer(state.holds.stopped(mac)))
}

/// A machine whose boot failed polls: 200 while it is to wait, 204 when it is to boot again.
pub(super) async fn failed(
    State(state): State<BootState>,
    speaker: Speaker,
    body: Result<Json<Standing<Mac>>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    Ok(answer(heard(&state, &speaker, body)?.1))
}

/// The machine that polls, and whether it is to wait as far as rescues are concerned.
fn heard(
    state: &BootState,
    speaker: &Speaker,
    body: Result<Json<Standing<Mac>>, JsonRejection>,
) -> Result<(Mac, bool), Failure> {
    let Json(Standing { mac, host_key, logged_in }) =
        body.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "see `POST /node/held` in docs/api.md"))?;
    speaker.is(state, mac)?;
    Ok((mac, state.rescues.stands(mac, host_key, logged_in.unwrap_or(false), Timestamp::now())))
}

fn answer(stay: bool) -> StatusCode {
    if stay { StatusCode::OK } else { StatusCode::NO_CONTENT }
}
