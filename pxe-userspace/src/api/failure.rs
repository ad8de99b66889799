//! Errors as documents with a status code.

use axum::Json;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use pxe_contract::failure::ErrorDocument;

/// Why a request could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {hint}")]
pub struct Failure {
    pub kind: Kind,
    pub error: String,
    /// What the asker can do.
    pub hint: String,
}

/// What a client should make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// Not for this client.
    Forbidden,
    /// What was named isn't there.
    NotFound,
    /// It can't be done as things are: an image is in use.
    Conflict,
    /// Something this depends on doesn't answer: Docker.
    Unavailable,
    /// It should have worked.
    Internal,
}

impl Failure {
    pub fn new(kind: Kind, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, error: error.into(), hint: hint.into() }
    }

    /// An error that no client can do anything about.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(Kind::Internal, error.to_string(), "the daemon's log says more")
    }

    pub fn document(&self) -> ErrorDocument {
        ErrorDocument { error: self.error.clone(), hint: self.hint.clone() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => {
                tracing::error!(error = self.error, "a request failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, Json(self.document())).into_response()
    }
}

pub(super) async fn no_such_route(uri: Uri) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!("there is nothing at {}", uri.path()),
        "docs/api.md lists what there is",
    )
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let error = format!("{} takes no {method}", uri.path());
    let hint = "the Allow header says what it takes".to_owned();
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorDocument { error, hint })).into_response()
}
