//! The image store's requests.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::documents::{Collected, Image, ImageLine};
use super::events::ndjson;
use super::{ApiState, Failure, Kind};
use crate::provision::image::ImageSource;

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<Image>>, Failure> {
    let images = state.images;
    tokio::task::spawn_blocking(move || images.list()).await.map_err(Failure::internal)?.map(Json)
}

/// Streams an [`ImageLine`] a line. The import goes on when the client leaves: half an image is
/// of no use to anyone.
pub(super) async fn add(
    State(state): State<ApiState>,
    source: Result<Json<ImageSource>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(source) = source.map_err(|e| {
        let hint = "send {\"reference\": \"NAME:TAG\"} or {\"path\": \"/ABSOLUTE/PATH\"}";
        Failure::new(Kind::Invalid, e.body_text(), hint)
    })?;
    let (lines, body) = mpsc::channel(16);
    tokio::spawn(async move {
        let (progress, mut steps) = mpsc::channel(16);
        let forward = async {
            while let Some(step) = steps.recv().await {
                let _ = lines.send(ndjson(&ImageLine::Progress(step))).await;
            }
        };
        let (image, ()) = tokio::join!(state.images.add(source, progress), forward);
        let last = match image {
            Ok(image) => ImageLine::Done(Box::new(image)),
            Err(failure) => ImageLine::Failed(failure.document()),
        };
        let _ = lines.send(ndjson(&last)).await;
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
) -> Result<StatusCode, Failure> {
    state.images.remove(reference).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn collect(State(state): State<ApiState>) -> Result<Json<Collected>, Failure> {
    state.images.collect().await.map(Json)
}
