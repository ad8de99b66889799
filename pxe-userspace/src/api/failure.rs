//! Errors as documents with a status code.

use axum::Json;
use axum::body::to_bytes;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use pxe_contract::failure::ErrorDocument;

/// Why a request could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {hint}")]
pub struct Failure {
    pub kind: Kind,
    pub error: String,
    /// What the client can do.
    pub hint: String,
}

/// The kind of a failure, which determines the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// The client is not authenticated.
    Unknown,
    /// Not for this client.
    Forbidden,
    /// For another host.
    Misdirected,
    /// What was named isn't there.
    NotFound,
    /// It is not possible in the present state: an image is in use.
    Conflict,
    /// Something this depends on doesn't answer: Docker.
    Unavailable,
    /// It should have worked.
    Internal,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Invalid,
        Self::Unknown,
        Self::Forbidden,
        Self::Misdirected,
        Self::NotFound,
        Self::Conflict,
        Self::Unavailable,
        Self::Internal,
    ];

    pub fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What it means, for who reads of it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Invalid => "The request makes no sense.",
            Self::Unknown => "There is no valid token.",
            Self::Forbidden => "The role is insufficient, or this is for nobody.",
            Self::Misdirected => "The request is for another host.",
            Self::NotFound => "What was named is not there.",
            Self::Conflict => "It is not possible in the present state.",
            Self::Unavailable => "What this depends on does not answer, or too many follow something.",
            Self::Internal => "It should have worked.",
        }
    }
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
        if self.kind == Kind::Internal {
            tracing::error!(error = self.error, "a request failed");
        }
        (self.kind.status(), Json(self.document())).into_response()
    }
}

/// The longest foreign error message, in bytes.
const WORDS_MAX: usize = 4096;

/// Turns axum's own errors, such as for a path that is not UTF-8, into documents like all others.
pub(super) async fn as_document(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if !is_error || content_type.is_some_and(|kind| kind == "application/json") {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let words = to_bytes(body, WORDS_MAX).await.unwrap_or_default();
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    let error = if words.is_empty() { status.to_string().to_lowercase() } else { words };
    let hint = "docs/api.md has what there is, and how it is asked".to_owned();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::CONTENT_TYPE);
    (head, Json(ErrorDocument { error, hint })).into_response()
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
