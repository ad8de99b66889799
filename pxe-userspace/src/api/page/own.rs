//! The JSON API as the page asks it, inside the daemon: with the caller's own role, so a page shows nothing that its viewer
//! could not ask for.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use pxe_contract::failure::ErrorDocument;
use serde_json::Value;
use tower_service::Service as _;

use crate::api::door::By;
use crate::api::{Failure, Kind};
use crate::operate::access::Caller;

/// The largest document that a page is made of.
const DOCUMENT_MAX: usize = 32 << 20;

/// The API's routes, for the layer that gives them to pages.
#[derive(Clone)]
pub(in crate::api) struct OwnApi(pub(in crate::api) Router);

/// The API, and who asks.
pub(in crate::api) struct Own {
    api: Router,
    caller: Caller,
}

impl Own {
    /// A document; `None` where there is none at that path.
    pub(super) async fn get(&mut self, path: &str) -> Result<Option<Value>, Failure> {
        let mut request = Request::get(path).body(Body::empty()).map_err(Failure::internal)?;
        request.extensions_mut().insert(self.caller.clone());
        let response = self.api.call(request).await.unwrap_or_else(|never| match never {});
        let status = response.status();
        let body = to_bytes(response.into_body(), DOCUMENT_MAX).await.map_err(Failure::internal)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map(Some).map_err(Failure::internal);
        }
        let document: ErrorDocument = serde_json::from_slice(&body).map_err(Failure::internal)?;
        let kind = match status {
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::BAD_REQUEST => Kind::Invalid,
            StatusCode::FORBIDDEN => Kind::Forbidden,
            StatusCode::CONFLICT => Kind::Conflict,
            StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
            _ => Kind::Internal,
        };
        Err(Failure::new(kind, document.error, document.hint))
    }
}

impl<S: Sync> FromRequestParts<S> for Own {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Ok(By { caller, .. }) = By::from_request_parts(parts, state).await;
        let api = parts.extensions.get::<OwnApi>();
        let OwnApi(api) = api.cloned().ok_or_else(|| Failure::internal("the page has no API"))?;
        Ok(Self { api, caller })
    }
}
