//! Stopping machines in stage 1, and letting them go on.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use pxe_common::Mac;
use serde::Deserialize;

use super::session::Speaker;
use super::{ApiState, BootState, Failure, Kind, read};
use crate::machines::{Hold, Machine};
use crate::text;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Options {
    /// Anything but 0: only the next boot.
    #[serde(default)]
    once: u8,
}

pub(super) async fn hold(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Json<Machine>, Failure> {
    let Query(options) =
        options.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes once=1"))?;
    let machine = read::find(&state.boot.machines, &name)?;
    let hold = if options.once == 0 { Hold::UntilReleased } else { Hold::Once };
    change(state, move |state| {
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
    Path(name): Path<String>,
) -> Result<Json<Machine>, Failure> {
    let mac = read::find(&state.boot.machines, &name)?.mac;
    change(state, move |state| {
        state.boot.holds.release(mac).map_err(Failure::internal)?;
        read::find(&state.boot.machines, &mac.to_string())
    })
    .await
}

/// Where writing to the disk holds nobody up.
async fn change(
    state: ApiState,
    change: impl FnOnce(&ApiState) -> Result<Machine, Failure> + Send + 'static,
) -> Result<Json<Machine>, Failure> {
    tokio::task::spawn_blocking(move || change(&state)).await.map_err(Failure::internal)?.map(Json)
}

/// The body of `POST /node/held`.
#[derive(Debug, Deserialize)]
pub(super) struct Stopped {
    #[serde(with = "text::mac")]
    mac: Mac,
}

/// 200 while the node is to stay where it stopped, 204 when it is to go on.
pub(super) async fn stopped(
    State(state): State<BootState>,
    speaker: Speaker,
    body: Result<Json<Stopped>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let Json(Stopped { mac }) =
        body.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "see `POST /node/held` in docs/api.md"))?;
    speaker.is(&state, mac)?;
    let stay = tokio::task::spawn_blocking(move || state.holds.stopped(mac)).await;
    let stay = stay.map_err(Failure::internal)?.map_err(Failure::internal)?;
    Ok(if stay { StatusCode::OK } else { StatusCode::NO_CONTENT })
}
