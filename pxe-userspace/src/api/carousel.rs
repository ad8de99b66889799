//! Requests for multicast rounds: whether there is one for an image, and what its receivers lack.

use std::time::Instant;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use pxe_contract::paths::ImagePart;
use pxe_contract::round::Reception;

use super::session::Speaker;
use super::{BootState, Failure, Kind, files};
use crate::provision::boot::Generated;

/// A report names some blocks.
pub(super) const BODY_MAX: usize = 16 * 1024;

/// `POST /carousel/SHA-256`: 200 with a round to listen to, 204 while HTTP is the better way.
pub(super) async fn ask(
    State(state): State<BootState>,
    Path(sha256): Path<String>,
    speaker: Speaker,
    report: Result<Json<Reception>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(report) = report.map_err(|e| {
        Failure::new(Kind::Invalid, e.body_text(), "see `POST /carousel/SHA-256` in docs/api.md")
    })?;
    if !state.carousel.enabled() {
        let error = "[carousel] at-least is 0: images are sent by HTTP only";
        return Err(Failure::new(Kind::NotFound, error, "fetch it by HTTP"));
    }
    let path = Generated::Image { digest: sha256.clone(), part: ImagePart::Stage2 }.to_string();
    let Some(Generated::Image { digest, part: ImagePart::Stage2 }) = Generated::parse(&path) else {
        let error = format!("{sha256} is no SHA-256");
        return Err(Failure::new(Kind::NotFound, error, "it is 64 hexadecimal digits"));
    };
    let client = speaker.address;
    // Multicast goes to every port, so only machines that boot here may cause it.
    let machine = state.machines.by_address(client).ok_or_else(|| {
        let error = format!("{client} is no machine's address");
        Failure::new(Kind::Forbidden, error, "rounds are for machines with a lease")
    })?;
    speaker.is(&state, machine.mac)?;
    let image = files::open(&state, path, client).await?.blob;
    let asked = tokio::task::spawn_blocking(move || {
        state.carousel.ask(&digest, &image, client, &report, Instant::now())
    });
    let offer = asked.await.map_err(Failure::internal)?.map_err(Failure::internal)?;
    Ok(offer.map_or(StatusCode::NO_CONTENT.into_response(), |offer| Json(offer).into_response()))
}
