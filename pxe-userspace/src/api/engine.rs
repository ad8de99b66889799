//! Certificates for the Docker engine of a node: one for the key that the node made at this boot, and that of the CA
//! whose clients the engine is to obey. Nothing in it is secret.

use axum::Json;
use axum::extract::{FromRequest as _, Request, State};
use pxe_common::Mac;
use pxe_contract::engine::{PapersAnswer, PapersRequest};

use super::session::Speaker;
use super::{BootState, Failure, Kind, report};
use crate::base::text;

pub(super) const BODY_MAX: usize = 8 * 1024;

pub(super) async fn papers(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<Json<PapersAnswer>, Failure> {
    let invalid = |error| Failure::new(Kind::Invalid, error, "docs/api.md shows a request for papers");
    let Json(PapersRequest::<Mac> { mac, request }) =
        tokio::time::timeout(report::ARRIVES_WITHIN, Json::from_request(request, &()))
            .await
            .map_err(|_| invalid("the request did not arrive in time".to_owned()))?
            .map_err(|rejection| invalid(rejection.body_text()))?;
    speaker.is(&state, mac)?;
    if speaker.shown().is_none() {
        let hint = "a node asks by HTTPS, with the certificate that its boot got for its token";
        return Err(Failure::new(Kind::Forbidden, "papers are for the session of a boot", hint));
    }
    let Some(name) = state.fleet.node_of(mac) else {
        let error = format!("{mac} is no declared node that runs a Docker engine");
        return Err(Failure::new(
            Kind::Forbidden,
            error,
            "declare it with [[node]], and a profile with run = \"docker\"",
        ));
    };
    let request =
        text::unhex(&request).ok_or_else(|| invalid("the PKCS #10 request is not hexadecimal".into()))?;
    let papers =
        state.fleet.papers(&request, &name, speaker.address).map_err(|error| invalid(error.to_string()))?;
    tracing::info!(node = name, "its Docker engine has a certificate for this boot");
    Ok(Json(PapersAnswer { authority: papers.authority, certificate: papers.certificate }))
}
