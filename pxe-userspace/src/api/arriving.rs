//! Reads the whole body of a request, within a time limit, before its handler runs.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::{Failure, Kind, console, report};

/// Reads the body from the connection, for the handler. A route may have a smaller limit than this one.
pub(super) async fn whole(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let arrives = to_bytes(body, console::BODY_MAX + 1);
    let error = match tokio::time::timeout(report::ARRIVES_WITHIN, arrives).await {
        Ok(Ok(bytes)) => return next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(error)) => format!("the request's body can't be had: {error}"),
        Err(_) => "the request did not arrive in time".to_owned(),
    };
    Failure::new(Kind::Invalid, error, "docs/api.md shows what is sent").into_response()
}
