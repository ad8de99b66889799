//! What handlers answer, and how it is described.

use std::convert::Infallible;
use std::marker::PhantomData;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{Html, IntoResponse, NoContent, Response};
use futures_util::Stream;
use schemars::JsonSchema;
use serde_json::json;

use super::{Operation, of_bytes, typed};
use crate::api::Failure;
use crate::base::schema;

/// What a handler returns.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what it answers",
    note = "return Json<T> where T derives JsonSchema, NoContent, or Written<…>: docs/api.md, \"Adding a route\""
)]
pub(in crate::api) trait Answer {
    fn describe(operation: &mut Operation<'_>);
}

impl<T: JsonSchema> Answer for Json<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.written::<T>();
        operation.answers(200, "Done.", Some(json!({ "application/json": { "schema": schema } })));
    }
}

impl Answer for NoContent {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(204, "Done.", None);
    }
}

impl Answer for Html<String> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(200, "A page.", Some(json!({ "text/html": of_bytes() })));
    }
}

impl<T: Answer> Answer for Result<T, Failure> {
    /// Failures are the same for all: see [`Openapi::add`](super::Openapi::add).
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

impl<T: Answer, const N: usize> Answer for ([(HeaderName, &'static str); N], T) {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

/// A response that was written already, and what is in it.
pub(in crate::api) struct Written<K>(Response, PhantomData<K>);

impl<K> Written<K> {
    pub(in crate::api) fn new(response: Response) -> Self {
        Self(response, PhantomData)
    }

    pub(in crate::api) fn header(mut self, name: HeaderName, value: Option<HeaderValue>) -> Self {
        self.0.headers_mut().extend(value.map(|value| (name, value)));
        self
    }
}

impl<K> IntoResponse for Written<K> {
    fn into_response(self) -> Response {
        self.0
    }
}

impl<K: Content> Answer for Written<K> {
    fn describe(operation: &mut Operation<'_>) {
        K::describe(operation);
    }
}

/// What is in a response.
pub(in crate::api) trait Content {
    fn describe(operation: &mut Operation<'_>);
}

/// A JSON document that was serialised on another thread.
pub(in crate::api) struct JsonText<T>(PhantomData<T>);

impl<T: JsonSchema> Content for JsonText<T> {
    fn describe(operation: &mut Operation<'_>) {
        Json::<T>::describe(operation);
    }
}

/// A JSON array that may be the first of several pages.
pub(in crate::api) struct Pages<T>(PhantomData<T>);

impl<T: JsonSchema> Content for Pages<T> {
    fn describe(operation: &mut Operation<'_>) {
        Json::<Vec<T>>::describe(operation);
        operation.responses["200"]["headers"] = json!({ "Link": {
            "description": "The next page (RFC 8288), where there is one.",
            "schema": { "type": "string" },
        } });
    }
}

/// JSON documents, one a line.
pub(in crate::api) struct Lines<T>(PhantomData<T>);

/// The media type of lines.
pub(in crate::api) const NDJSON: &str = "application/x-ndjson";

impl<T: JsonSchema> Content for Lines<T> {
    fn describe(operation: &mut Operation<'_>) {
        let line = operation.written::<T>();
        let lines = json!({ "schema": { "type": "string" }, "x-line-schema": line });
        operation.answers(200, "One document a line.", Some(json!({ NDJSON: lines })));
    }
}

/// A JSON document or, for those who accept lines, the steps to it.
pub(in crate::api) struct JsonOrLines<T, L>(PhantomData<(T, L)>);

impl<T: JsonSchema, L: JsonSchema> Content for JsonOrLines<T, L> {
    fn describe(operation: &mut Operation<'_>) {
        let (document, line) = (operation.written::<T>(), operation.written::<L>());
        let lines = json!({ "schema": { "type": "string" }, "x-line-schema": line });
        let content = json!({ "application/json": { "schema": document }, NDJSON: lines });
        operation.answers(200, "Done, or one document a line on the way.", Some(content));
    }
}

impl<T> Written<Lines<T>> {
    /// Lines as they come, each with its end.
    pub(in crate::api) fn lines(
        lines: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
    ) -> Self {
        Self::new(typed(Body::from_stream(lines), NDJSON))
    }
}

/// Contents of one media type. Its parameters are in the header only.
macro_rules! contents {
    ($($(#[$words:meta])* $name:ident = $media_type:literal, $title:literal;)*) => {$(
        $(#[$words])*
        pub(in crate::api) struct $name;

        impl Content for $name {
            fn describe(operation: &mut Operation<'_>) {
                let media_type = $media_type.split(';').next().unwrap_or_default();
                operation.answers(200, $title, Some(json!({ media_type: of_bytes() })));
            }
        }

        impl Written<$name> {
            pub(in crate::api) fn of(body: impl IntoResponse) -> Self {
                Self::new(typed(body, $media_type))
            }
        }
    )*};
}

contents! {
    /// Packets.
    Pcapng = "application/x-pcapng", "Packets, as they are captured.";
    /// A table with a line of column names (RFC 4180).
    Csv = "text/csv; charset=utf-8; header=present", "A table.";
}

/// Metrics, in the format that the client prefers.
pub(in crate::api) struct Metrics;

impl Content for Metrics {
    fn describe(operation: &mut Operation<'_>) {
        let formats = json!({ "text/plain": of_bytes(), "application/openmetrics-text": of_bytes() });
        operation.answers(200, "What is measured.", Some(formats));
    }
}

/// A file, or a part of it.
pub(in crate::api) struct Served;

impl Content for Served {
    fn describe(operation: &mut Operation<'_>) {
        let file = json!({ "application/octet-stream": of_bytes(), "application/efi": of_bytes() });
        operation.answers(200, "The file.", Some(file.clone()));
        operation.answers(206, "The part of it that Range asks for.", Some(file));
        operation.answers(304, "The client has it already, by If-None-Match or If-Modified-Since.", None);
        let failure = json!({ "application/json": { "schema": operation.written::<schema::Failure>() } });
        operation.answers(
            412,
            "It is not the one that If-Match or If-Unmodified-Since names.",
            Some(failure.clone()),
        );
        operation.answers(416, "It is shorter than Range begins.", Some(failure));
    }
}

/// Nothing but headers.
pub(in crate::api) struct Empty;

impl Content for Empty {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(204, "Done.", None);
    }
}

/// A browser that was let in goes on to the page.
pub(in crate::api) struct ToPage;

impl Content for ToPage {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(303, "The browser is logged in. It goes on to the page.", None);
    }
}
