//! What a request brings: every argument that a handler may have, and how it is described.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, Extension, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{Operation, of_bytes};
use crate::api::door::By;
use crate::api::upload::{FILES, Sent};

/// An argument of a handler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what it takes from a request",
    note = "queries and bodies are `Result<Query<T>, QueryRejection>` and `Result<Json<T>, JsonRejection>`, where T \
            derives JsonSchema: docs/api.md, \"Adding a route\""
)]
pub(in crate::api) trait Part {
    fn describe(operation: &mut Operation<'_>);
}

/// Arguments that no client sends as such.
macro_rules! unseen {
    ($([$($of:tt)*] $part:ty;)*) => {$(
        impl<$($of)*> Part for $part {
            fn describe(_: &mut Operation<'_>) {}
        }
    )*};
}

unseen! {
    [S] State<S>;
    [T] Extension<T>;
    [] By;
    [] Method;
    [] HeaderMap;
    [] ConnectInfo<SocketAddr>;
}

impl<T> Part for Path<T> {
    fn describe(operation: &mut Operation<'_>) {
        for name in operation.names() {
            let (name, words) = match name.strip_prefix('*') {
                Some(name) => (name, "It may have slashes in it."),
                None if operation.path.starts_with("/api/nodes/") => {
                    (name, "A machine's name, or its MAC address.")
                }
                None => (name, "Its name."),
            };
            operation.parameters.push(json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": words,
                "schema": { "type": "string", "minLength": 1 },
            }));
        }
    }
}

/// A number, which is all that a path has.
impl Part for Result<Path<u64>, PathRejection> {
    fn describe(operation: &mut Operation<'_>) {
        for name in operation.names() {
            operation.parameters.push(json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": "Its number.",
                "schema": { "type": "integer", "format": "uint64", "minimum": 0 },
            }));
        }
    }
}

impl<T: JsonSchema> Part for Result<Query<T>, QueryRejection> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.read::<T>().to_value();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let mut schema = schema.clone();
            without_null(&mut schema);
            let words = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            operation.parameters.push(json!({
                "name": name,
                "in": "query",
                "required": required.contains(&json!(name)),
                "description": words.unwrap_or_default().as_str().unwrap_or_default(),
                "schema": schema,
            }));
        }
    }
}

/// A query has no null: what has no value is left out.
fn without_null(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if fields.get("default") == Some(&Value::Null) {
        fields.remove("default");
    }
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
}

impl<T: JsonSchema> Part for Result<Json<T>, JsonRejection> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.read::<T>();
        operation.takes(true, json!({ "application/json": { "schema": schema } }));
    }
}

impl<T: JsonSchema> Part for Result<Option<Json<T>>, JsonRejection> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.read::<T>();
        operation.takes(false, json!({ "application/json": { "schema": schema } }));
    }
}

impl<T: JsonSchema> Part for Result<Sent<T>, JsonRejection> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.read::<T>();
        let mut content = json!({ "application/json": { "schema": schema } });
        for file in FILES {
            content[file] = of_bytes();
        }
        operation.takes(true, content);
    }
}

/// A body that is a table.
pub(in crate::api) struct Table(pub(in crate::api) Bytes);

impl<S: Send + Sync> FromRequest<S> for Table {
    type Rejection = BytesRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, BytesRejection> {
        Bytes::from_request(request, state).await.map(Self)
    }
}

impl Part for Result<Table, BytesRejection> {
    fn describe(operation: &mut Operation<'_>) {
        operation.takes(true, json!({ "text/csv": of_bytes() }));
    }
}
