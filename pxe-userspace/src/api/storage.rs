//! The keys of a node's encrypted volumes, for the session of its boot. They are sent nowhere else.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header;
use axum::response::IntoResponse;
use pxe_common::Mac;
use pxe_contract::storage::{KeysAnswer, KeysRequest};
use zeroize::Zeroize;

use super::session::Speaker;
use super::{BootState, Failure, Kind};

pub(super) const BODY_MAX: usize = 1024;

pub(super) async fn keys(
    State(state): State<BootState>,
    speaker: Speaker,
    asked: Result<Json<KeysRequest<Mac>>, JsonRejection>,
) -> Result<impl IntoResponse, Failure> {
    let invalid = |_| Failure::new(Kind::Invalid, "this is no request for keys", "docs/api.md shows one");
    let Json(KeysRequest { mac }) = asked.map_err(invalid)?;
    speaker.is(&state, mac)?;
    // A boot without a session gets no keys; a boot with one gets them only within it.
    let none = || {
        let hint = "keys are for the session of a boot whose plan releases them: docs/storage.md";
        Failure::new(Kind::Forbidden, format!("there are no keys for this boot of {mac}"), hint)
    };
    let scope = state.trust.keys(mac).ok_or_else(none)?;
    let released = tokio::task::spawn_blocking(move || state.storage.release(&scope)).await;
    let keys = released.map_err(Failure::internal)?.map_err(Failure::internal)?;
    tracing::info!(%mac, volumes = ?keys.keys().collect::<Vec<_>>(), "released the keys of volumes");
    let mut answer = KeysAnswer {
        keys: keys.into_iter().map(|(volume, mut key)| (volume, std::mem::take(&mut *key))).collect(),
    };
    let body = serde_json::to_vec(&answer).map_err(Failure::internal)?;
    answer.keys.values_mut().for_each(Zeroize::zeroize);
    Ok(([(header::CACHE_CONTROL, "no-store"), (header::CONTENT_TYPE, "application/json")], body))
}
