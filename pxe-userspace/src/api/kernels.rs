//! The kernels' requests.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::{ApiState, Failure, Kind};
use crate::provision::image::{KernelList, KernelRecord, NewKernel};

pub(super) async fn list(State(state): State<ApiState>) -> Json<KernelList> {
    Json(state.images.kernels())
}

/// Answers when it is there: seconds, for a distribution's kernel.
pub(super) async fn add(
    State(state): State<ApiState>,
    new: Result<Json<NewKernel>, JsonRejection>,
) -> Result<Json<KernelRecord>, Failure> {
    let Json(new) = new.map_err(|e| {
        let hint =
            "send {\"source\": {\"path\": \"/ABSOLUTE/PATH\"}} or {\"source\": {\"image\": \"NAME:TAG\"}}";
        Failure::new(Kind::Invalid, e.body_text(), hint)
    })?;
    // Half a kernel is of no use: it goes on when the client leaves.
    match tokio::spawn(async move { state.images.add_kernel(new).await }).await {
        Ok(added) => added.map(Json),
        Err(error) => Err(Failure::internal(error)),
    }
}

/// The body of `PUT /api/default-kernel`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Default {
    /// None is the stock one.
    name: Option<String>,
}

pub(super) async fn set_default(
    State(state): State<ApiState>,
    default: Result<Json<Default>, JsonRejection>,
) -> Result<Json<KernelList>, Failure> {
    let Json(Default { name }) = default.map_err(|e| {
        Failure::new(Kind::Invalid, e.body_text(), "send {\"name\": \"KERNEL\"}, or null for the stock one")
    })?;
    let images = state.images.clone();
    let done = tokio::task::spawn_blocking(move || images.default_kernel(name.as_deref())).await;
    done.map_err(Failure::internal)??;
    Ok(Json(state.images.kernels()))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let done = tokio::task::spawn_blocking(move || state.images.remove_kernel(&name)).await;
    done.map_err(Failure::internal)?.map(|()| StatusCode::NO_CONTENT)
}
