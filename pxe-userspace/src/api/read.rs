//! Reading requests, and reload.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use pxe_common::Mac;

use super::documents::{FileEntry, Lease, Profile, Reloaded, Status, Workload};
use super::door::By;
use super::openapi::{JsonText, Written};
use super::{ApiState, Appliance, Failure, Kind};
use crate::machines::diagnosis::Why;
use crate::machines::{Machine, Machines};
use crate::operate::audit::Did;

type Answer<T> = Result<Json<T>, Failure>;

pub(super) async fn status(State(state): State<ApiState>) -> Answer<Status> {
    whole_status(state).await.map(Json)
}

/// The appliance's status with this listener's own counters.
pub(super) async fn whole_status(state: ApiState) -> Result<Status, Failure> {
    let http_sent = state.boot.http_sent.load(Ordering::Relaxed);
    let Json(mut status) = ask(state, |a| Ok(a.status())).await?;
    status.counters.insert("http.sent-bytes".into(), http_sent);
    Ok(status)
}

pub(super) async fn node(State(state): State<ApiState>, Path(name): Path<String>) -> Answer<Machine> {
    find(&state.boot.machines, &name).map(Json)
}

pub(super) async fn why(State(state): State<ApiState>, Path(name): Path<String>) -> Answer<Why> {
    let machine = find(&state.boot.machines, &name)?;
    state.boot.timeline.why(machine.mac).map(Json).ok_or_else(|| {
        let error = format!("nothing was seen of a boot of {}", machine.label());
        Failure::new(Kind::NotFound, error, "power it on, with the boot segment first in its boot order")
    })
}

pub(super) async fn all_why(State(state): State<ApiState>) -> Result<Written<JsonText<Vec<Why>>>, Failure> {
    // For ten thousand machines this takes a while to compute and to serialise.
    let all = tokio::task::spawn_blocking(move || Json(state.boot.timeline.all_why()).into_response());
    all.await.map_err(Failure::internal).map(Written::new)
}

/// The machine that goes by this name or MAC.
pub(super) fn find(machines: &Machines, name: &str) -> Result<Machine, Failure> {
    let by_mac = name.parse::<Mac>().ok().and_then(|mac| machines.get(mac));
    by_mac.or_else(|| machines.by_name(name)).ok_or_else(|| {
        let error = format!("no machine is called `{name}`, by name or MAC address");
        Failure::new(Kind::NotFound, error, "`bridgehead nodes` lists them")
    })
}

pub(super) async fn leases(State(state): State<ApiState>) -> Answer<Vec<Lease>> {
    ask(state, |a| a.leases()).await
}

pub(super) async fn files(State(state): State<ApiState>) -> Answer<Vec<FileEntry>> {
    ask(state, |a| a.files()).await
}

pub(super) async fn profiles(State(state): State<ApiState>) -> Answer<Vec<Profile>> {
    ask(state, |a| Ok(a.profiles())).await
}

pub(super) async fn workloads(State(state): State<ApiState>) -> Answer<Vec<Workload>> {
    ask(state, |a| Ok(a.workloads())).await
}

pub(super) async fn reload(State(state): State<ApiState>, by: By) -> Answer<Reloaded> {
    let done = state.appliance.reload().await?;
    by.did(Did::new("reload").after(&done)).await;
    Ok(Json(done))
}

async fn ask<T: Send + 'static>(
    state: ApiState,
    question: impl FnOnce(&dyn Appliance) -> Result<T, Failure> + Send + 'static,
) -> Answer<T> {
    let appliance: Arc<dyn Appliance> = state.appliance;
    tokio::task::spawn_blocking(move || question(&*appliance)).await.map_err(Failure::internal)?.map(Json)
}
