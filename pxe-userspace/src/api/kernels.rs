//! The kernels' requests.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::NoContent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::door::By;
use super::upload::{Sent, Upload};
use super::{ApiState, Failure, Kind};
use crate::operate::audit::Did;
use crate::provision::image::{KernelList, KernelOrigin, KernelRecord, NewKernel};

/// The body of `POST /api/kernels` without a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Named {
    #[serde(default)]
    name: Option<String>,
    source: OfImage,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct OfImage {
    image: String,
}

/// The query with a sent kernel.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Of {
    /// Its name in profiles.
    name: Option<String>,
    /// The name of its file or directory at the client.
    file: Option<String>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Json<KernelList> {
    Json(state.images.kernels())
}

/// Answers when the kernel is added, which takes seconds for a distribution's kernel.
pub(super) async fn add(
    State(state): State<ApiState>,
    by: By,
    of: Result<Query<Of>, QueryRejection>,
    sent: Result<Sent<Named>, JsonRejection>,
) -> Result<Json<KernelRecord>, Failure> {
    const HINT: &str = "send {\"source\": {\"image\": \"NAME:TAG\"}}, or a package as \
                        application/vnd.debian.binary-package, or a directory as application/x-tar";
    let Query(of) = of
        .map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes name=NAME and file=NAME"))?;
    let (new, upload) = match sent.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))? {
        Sent::Document(named) => {
            let source = KernelOrigin::Image(named.source.image);
            (NewKernel { name: named.name, source, from: None }, None)
        }
        Sent::File(body) => {
            let upload = Upload::receive(&state.images.work(), of.file.as_deref(), body).await?;
            let from = Some(of.file.unwrap_or_else(|| "what was sent".to_owned()));
            (NewKernel { name: of.name, source: KernelOrigin::Path(upload.path()), from }, Some(upload))
        }
    };
    let before = state.images.kernels();
    by.later();
    // Continues when the client disconnects, because half a kernel is useless.
    let adding = tokio::spawn(async move {
        let added = state.images.add_kernel(new).await;
        let added = added.map_err(|failure| match &upload {
            Some(upload) => upload.told(failure),
            None => failure,
        })?;
        let before = before.kernels.iter().find(|kernel| kernel.name == added.name);
        by.did(Did::new("kernel.add").on(&added.name).before(before.map(digest)).after(digest(&added))).await;
        Ok(added)
    });
    adding.await.map_err(Failure::internal)?.map(Json)
}

fn digest(kernel: &KernelRecord) -> Value {
    json!({ "version": kernel.version, "sha256": kernel.kernel_blob.sha256 })
}

/// The body of `PUT /api/default-kernel`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Default {
    /// `None` is the stock one, and must be explicit, so that a forgotten name does not reset it.
    #[serde(deserialize_with = "Option::deserialize")]
    name: Option<String>,
}

pub(super) async fn set_default(
    State(state): State<ApiState>,
    by: By,
    default: Result<Json<Default>, JsonRejection>,
) -> Result<Json<KernelList>, Failure> {
    let Json(Default { name }) = default.map_err(|e| {
        Failure::new(Kind::Invalid, e.body_text(), "send {\"name\": \"KERNEL\"}, or null for the stock one")
    })?;
    let before = state.images.kernels().default;
    let images = state.images.clone();
    let done = tokio::task::spawn_blocking(move || images.default_kernel(name.as_deref())).await;
    done.map_err(Failure::internal)??;
    let list = state.images.kernels();
    by.did(Did::new("kernel.default").before(before).after(&list.default)).await;
    Ok(Json(list))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<NoContent, Failure> {
    let before = state.images.kernels().kernels.into_iter().find(|kernel| kernel.name == name);
    let (images, removed) = (state.images.clone(), name.clone());
    let done = tokio::task::spawn_blocking(move || images.remove_kernel(&removed)).await;
    done.map_err(Failure::internal)??;
    by.did(Did::new("kernel.rm").on(name).before(before.as_ref().map(digest))).await;
    Ok(NoContent)
}
