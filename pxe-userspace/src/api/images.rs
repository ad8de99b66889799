//! The image store's requests.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::NoContent;
use pxe_contract::failure::ErrorDocument;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::documents::{Collected, Image, ImageLine, Progress};
use super::door::By;
use super::openapi::{Lines, Written};
use super::streams::{self, Step};
use super::upload::{Sent, Upload};
use super::{ApiState, Failure, Images, Kind};
use crate::operate::audit::Did;
use crate::provision::image::{ImageSource, canonical};

/// The body of `POST /api/images` without a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Named {
    reference: String,
}

/// The query with a sent file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Of {
    /// The file's name at the client.
    file: Option<String>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<Image>>, Failure> {
    listed(&state).await.map(Json)
}

/// Streams [`ImageLine`]s, one a line. The import continues when the client disconnects, because half an
/// image is useless.
pub(super) async fn add(
    State(state): State<ApiState>,
    by: By,
    of: Result<Query<Of>, QueryRejection>,
    sent: Result<Sent<Named>, JsonRejection>,
) -> Result<Written<Lines<ImageLine>>, Failure> {
    const HINT: &str = "send {\"reference\": \"NAME:TAG\"}, or the archive itself as application/x-tar";
    let Query(of) =
        of.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes file=NAME"))?;
    let (source, upload) = match sent.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))? {
        Sent::File(body) => {
            let upload = Upload::receive(&state.images.work(), of.file.as_deref(), body).await?;
            (ImageSource::Path(upload.path()), Some(upload))
        }
        Sent::Document(named) => (ImageSource::Reference(named.reference), None),
    };
    let before = listed(&state).await?;
    by.later();
    let (progress, steps) = mpsc::channel(16);
    let adding = Box::pin(async move {
        let image = state.images.add(source, progress).await;
        let image = image
            .map_err(|failure| upload.as_ref().map_or(failure.clone(), |upload| upload.told(failure)))?;
        let reference = image.record.reference.clone();
        let before = before.iter().find(|image| image.record.reference == reference);
        let did = Did::new("image.add").on(reference).before(before.map(digest)).after(digest(&image));
        by.did(did).await;
        Ok(image)
    });
    Ok(streams::steps::<ImageLine>(adding, steps))
}

impl Step for ImageLine {
    type Done = Image;

    fn progress(progress: Progress) -> Self {
        Self::Progress(progress)
    }
    fn done(image: Image) -> Self {
        Self::Done(Box::new(image))
    }
    fn failed(failure: ErrorDocument) -> Self {
        Self::Failed(failure)
    }
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    by: By,
    Path(reference): Path<String>,
) -> Result<NoContent, Failure> {
    let before = listed(&state).await?;
    let before = before.iter().find(|image| image.record.reference == canonical(&reference)).map(digest);
    state.images.remove(reference.clone()).await?;
    by.did(Did::new("image.rm").on(reference).before(before)).await;
    Ok(NoContent)
}

pub(super) async fn collect(State(state): State<ApiState>, by: By) -> Result<Json<Collected>, Failure> {
    let freed = state.images.collect().await?;
    by.did(Did::new("image.gc").after(freed)).await;
    Ok(Json(freed))
}

async fn listed(state: &ApiState) -> Result<Vec<Image>, Failure> {
    let images = state.images.clone();
    tokio::task::spawn_blocking(move || Images::list(&*images)).await.map_err(Failure::internal)?
}

fn digest(image: &Image) -> Value {
    json!({ "digest": image.record.digest })
}
