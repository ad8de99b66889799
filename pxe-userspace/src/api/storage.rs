//! The keys of a node's encrypted volumes, for the token of its boot. The answer and the request's body are the
//! only places that have them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{ConnectInfo, FromRequest as _, Request, State};
use axum::http::header;
use axum::response::IntoResponse;
use pxe_common::Mac;
use serde::{Deserialize, Serialize};

use super::{BootState, Failure, Kind, files};
use crate::diagnosis::Note;
use crate::storage::ReleaseError;
use crate::text;
use crate::timeline::Who;

/// The body of `POST /node/storage-keys`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Asked {
    #[serde(with = "text::mac")]
    mac: Mac,
    token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    /// Hexadecimal, by volume.
    keys: BTreeMap<String, String>,
}

pub(super) const BODY_MAX: usize = 1024;

const ARRIVES_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn keys(
    State(state): State<BootState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<impl IntoResponse, Failure> {
    let invalid = || Failure::new(Kind::Invalid, "this is no request for keys", "docs/api.md shows one");
    // A rejection would quote what it could not read.
    let asked = tokio::time::timeout(ARRIVES_WITHIN, Json::<Asked>::from_request(request, &())).await;
    let Ok(Ok(Json(Asked { mac, token }))) = asked else { return Err(invalid()) };
    let address = files::ipv4(peer.ip());
    let storage = state.storage.clone();
    let released = tokio::task::spawn_blocking(move || storage.release(mac, address, &token, Instant::now()));
    match released.await.map_err(Failure::internal)? {
        Ok(keys) => {
            tracing::info!(%mac, %address, volumes = ?keys.keys().collect::<Vec<_>>(), "released the keys of volumes");
            Ok(([(header::CACHE_CONTROL, "no-store")], Json(Answer { keys })))
        }
        Err(error @ ReleaseError::Token(_)) => {
            tracing::warn!(%mac, %address, "keys of volumes were asked for without a good token");
            let note = Note::Refused {
                what: "token",
                why: format!("{address} asked with a token that is not good"),
            };
            state.timeline.note(Who::Mac(mac), note);
            Err(Failure::new(Kind::Forbidden, error.to_string(), "boot the machine again"))
        }
        Err(error @ ReleaseError::Key(_)) => Err(Failure::internal(error)),
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
