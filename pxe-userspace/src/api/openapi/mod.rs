//! `GET /api/openapi.json`: OpenAPI 3.1 of every route, from the types of the handlers.
//!
//! [`Routes::on`](super::routes) takes a handler only if it is [`Described`]: each of its arguments is a [`Part`] of a
//! request ([`parts`]), and what it returns is an [`Answer`] ([`answers`]). So the document can't lack a route, nor name
//! another body than the handler reads and writes. Schemas come from `schemars`, which reads serde's own attributes.

mod answers;
mod parts;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Extension;
use axum::http::{Method, header};
use axum::response::{IntoResponse as _, Response};
use schemars::generate::{Contract, SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::Kind;
use super::door::is_reading;
use crate::base::schema;
use crate::base::text::word;
use crate::config::API_SOCKET;
use crate::operate::access::Role;

pub(super) use answers::{
    Answer, Csv, Empty, JsonOrLines, JsonText, Lines, Metrics, NDJSON, Pages, Pcapng, Served, ToPage, Written,
};
pub(super) use parts::{Part, Table};

/// The document. Cloning it is cheap.
#[derive(Clone)]
pub(super) struct Document(Arc<str>);

pub(super) async fn document(
    Extension(Document(text)): Extension<Document>,
) -> Written<JsonText<BTreeMap<String, Value>>> {
    Written::new(([(header::CONTENT_TYPE, "application/json")], text.to_string()).into_response())
}

/// A handler whose arguments and answer describe themselves.
#[diagnostic::on_unimplemented(
    message = "this handler does not say what it takes or what it answers",
    note = "each argument has to be a `Part`, and the answer an `Answer`: docs/api.md, \"Adding a route\""
)]
pub(super) trait Described<Parts> {
    fn describe(&self, operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($part:ident)*) => {
        impl<F, Fut, $($part,)*> Described<(Fut, $($part,)*)> for F
        where
            F: Fn($($part,)*) -> Fut,
            Fut: Future<Output: Answer>,
            $($part: Part,)*
        {
            fn describe(&self, operation: &mut Operation<'_>) {
                $($part::describe(operation);)*
                <Fut::Output as Answer>::describe(operation);
            }
        }
    };
}

described!();
described!(A);
described!(A B);
described!(A B C);
described!(A B C D);
described!(A B C D E);
described!(A B C D E G);

/// One route's description, while its handler describes itself.
pub(super) struct Operation<'a> {
    schemas: &'a mut Schemas,
    path: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    responses: Map<String, Value>,
}

/// The generators. What is read and what is written can differ in the same type: a value may be left out in one of them.
struct Schemas {
    /// Of requests. They are written where they are used.
    read: SchemaGenerator,
    /// Of answers, below `/components/schemas`.
    written: SchemaGenerator,
}

impl Operation<'_> {
    fn read<T: JsonSchema>(&mut self) -> Schema {
        self.schemas.read.subschema_for::<T>()
    }

    fn written<T: JsonSchema>(&mut self) -> Schema {
        self.schemas.written.subschema_for::<T>()
    }

    /// A body that the request has to bring, or may bring, by media type.
    fn takes(&mut self, required: bool, content: Value) {
        self.body = Some(json!({ "required": required, "content": content }));
    }

    fn answers(&mut self, status: u16, description: &str, content: Option<Value>) {
        let mut answer = json!({ "description": description });
        if let Some(content) = content {
            answer["content"] = content;
        }
        self.responses.insert(status.to_string(), answer);
    }

    /// Answers with the common document of failures.
    fn fails(&mut self, kind: Kind) {
        let answer = json!({ "$ref": format!("#/components/responses/{kind:?}") });
        self.responses.insert(kind.status().as_u16().to_string(), answer);
    }

    /// Names in braces of the route's path. Those with a star match slashes, too.
    fn names(&self) -> Vec<&'static str> {
        let parts = self.path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        parts.map(|(name, _)| name).collect()
    }
}

/// The document while routes are added.
pub(super) struct Openapi {
    schemas: Schemas,
    paths: Map<String, Value>,
}

impl Openapi {
    pub(super) fn new() -> Self {
        let settings = |contract, inline| {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
                settings.contract = contract;
                settings.inline_subschemas = inline;
            })
        };
        let read = settings(Contract::Deserialize, true).into_generator();
        let written = settings(Contract::Serialize, false).into_generator();
        Self { schemas: Schemas { read, written }, paths: Map::new() }
    }

    /// Adds a route. `role` is `None` where none is needed.
    pub(super) fn add<P, H: Described<P>>(
        &mut self,
        role: Option<Role>,
        method: &Method,
        path: &'static str,
        handler: &H,
    ) {
        let mut operation = Operation {
            schemas: &mut self.schemas,
            path,
            parameters: Vec::new(),
            body: None,
            responses: Map::new(),
        };
        handler.describe(&mut operation);
        let takes_something = !operation.parameters.is_empty() || operation.body.is_some();
        for kind in Kind::ALL {
            let possible = match kind {
                Kind::Unknown => role.is_some(),
                // Where nothing is named, everything is there.
                Kind::NotFound => takes_something,
                Kind::Conflict => takes_something || !is_reading(method),
                Kind::Invalid | Kind::Forbidden | Kind::Misdirected | Kind::Unavailable | Kind::Internal => {
                    true
                }
            };
            if possible {
                operation.fails(kind);
            }
        }
        let Operation { parameters, body, responses, .. } = operation;
        let (id, room) = name_of::<H>();
        let mut described = json!({
            "operationId": id,
            "tags": [room],
            "summary": words::of(method.as_str(), path),
            "parameters": parameters,
            "responses": responses,
        });
        if let Some(body) = body {
            described["requestBody"] = body;
        }
        if let Some(role) = role {
            described["x-least-role"] = word(role).into();
            // The roles of a scheme that is not OAuth's: OpenAPI 3.1, section 4.8.30.
            described["security"] = json!([{ "bearer": [word(role)] }, { "browser": [word(role)] }]);
        } else {
            described["security"] = json!([]);
        }
        let path = path.replace("{*", "{");
        let of_path = self.paths.entry(path).or_insert_with(|| json!({}));
        of_path[method.as_str().to_ascii_lowercase()] = described;
    }

    pub(super) fn document(self) -> Document {
        Document(self.into_value().to_string().into())
    }

    fn into_value(self) -> Value {
        let Self { mut schemas, paths } = self;
        let failure = schemas.written.subschema_for::<schema::Failure>();
        let content = json!({ "application/json": { "schema": failure } });
        let responses: Map<String, Value> = Kind::ALL
            .into_iter()
            .map(|kind| (format!("{kind:?}"), json!({ "description": kind.words(), "content": content })))
            .collect();
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Bridgehead",
                "version": env!("CARGO_PKG_VERSION"),
                "description": ABOUT,
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "servers": [{ "url": "/", "description": "Where this document came from." }],
            "x-unix-socket": API_SOCKET,
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "By TCP: a token that `bridgehead token add NAME --role ROLE` prints.",
                    },
                    "browser": {
                        "type": "apiKey",
                        "in": "cookie",
                        "name": "bridgehead",
                        "description": "By TCP: the cookie of a browser that opened the link of `bridgehead login`; \
                                        over TLS it is called `__Host-bridgehead`.",
                    },
                },
                "responses": responses,
                "schemas": schemas.written.take_definitions(true),
            },
        });
        without_links(&mut document);
        document
    }
}

const ABOUT: &str = "The API of a Bridgehead appliance. Names are kebab-case, times RFC 3339 with microseconds, sizes in \
    bytes, durations in seconds. On the UNIX socket (`x-unix-socket`) the kernel says who asks, and whoever may open it \
    may do everything; by TCP a token or a login is needed. `x-least-role` of an operation is the least role that may \
    call it. Answers of `application/x-ndjson` have one document a line, whose schema is `x-line-schema`.";

/// The handler's room and name: `nodes.list`, `nodes`.
fn name_of<H>() -> (String, String) {
    let path: Vec<&str> = std::any::type_name::<H>().split("::").collect();
    let name = path.last().copied().unwrap_or_default();
    let room = path.iter().rev().nth(1).copied().unwrap_or_default();
    (format!("{room}.{name}"), room.to_owned())
}

/// Descriptions are written for rustdoc, whose links lead nowhere here.
fn without_links(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`").replace("\n", " ");
                    }
                    Value::Object(_) | Value::Array(_) => without_links(value),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_links),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The type of a body that is text or bytes, as JSON Schema has it.
fn of_bytes() -> Value {
    json!({ "schema": { "type": "string" } })
}

/// What a response is once its type is named.
fn typed(response: impl axum::response::IntoResponse, media_type: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media_type)], response).into_response()
}
