//! The document against the routes, and every route's answer against the document. The judge of schemas is `jsonschema`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::words;
use crate::api::door_tests::sample;
use crate::api::login;
use crate::api::routes::described_table;
use crate::api::tests::{Answer, Daemon, MAC, curl};
use crate::machines::timeline::{Happened, Stage, Who};

async fn document(daemon: &Daemon) -> Value {
    let answer = curl(daemon.api, "/api/openapi.json", &[]).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_has_one_operation_and_each_operation_its_route() {
    let daemon = Daemon::start().await;
    let document = document(&daemon).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut routes: BTreeMap<(String, String), Option<String>> = described_table(daemon.access.audit.clone())
        .into_iter()
        .map(|(method, path, role)| {
            ((method.as_str().to_lowercase(), path.replace("{*", "{")), Some(role.to_string()))
        })
        .collect();
    routes.insert(("get".into(), login::PATH.into()), None);
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let role = routes.remove(&(method.clone(), path.clone()));
            let role = role.unwrap_or_else(|| panic!("{method} {path} is no route"));
            assert_eq!(operation["x-least-role"].as_str(), role.as_deref(), "{method} {path}");
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(ids.insert(id.clone()), "{id} is called twice");
            assert!(
                operation["summary"].as_str().is_some_and(|words| words.ends_with('.')),
                "openapi/words.rs has no {id}"
            );
            let in_path = |parameter: &&Value| parameter["in"] == "path";
            let named = operation["parameters"].as_array().unwrap().iter().filter(in_path).count();
            assert_eq!(named, path.matches('{').count(), "{id}");
        }
    }
    assert!(routes.is_empty(), "without an operation: {routes:?}");
    assert_eq!(words::WORDS.len(), ids.len(), "openapi/words.rs has a route that there is none of");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_leads_somewhere_and_every_schema_is_one() {
    let daemon = Daemon::start().await;
    let document = document(&daemon).await;
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 100, "{}", references.len());
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is elsewhere"));
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let stages = &document["components"]["schemas"]["Stage"]["enum"];
    assert!(stages.as_array().unwrap().contains(&json!("stage1")), "{stages}");
    let parameters = document["paths"]["/api/nodes"]["get"]["parameters"].as_array().unwrap();
    let limit = parameters.iter().find(|parameter| parameter["name"] == "limit").unwrap();
    assert_eq!(limit["schema"]["type"], "integer", "a query has no null: {limit}");
    assert_eq!((&limit["schema"]["minimum"], &limit["schema"]["maximum"]), (&json!(1), &json!(10_000)));
    let node =
        &document["paths"]["/api/nodes"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!((&node["additionalProperties"], &node["required"]), (&json!(false), &json!(["name", "mac"])));
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every route is asked by root, and what it answers is what its operation says: status, content type, and the schema of
/// the document or of each line.
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_what_the_document_says() {
    let daemon = Daemon::start().await;
    let document = document(&daemon).await;
    daemon.timeline.record(Happened::new(Who::Mac(MAC), Stage::Discover));
    daemon.timeline.record(Happened::failed(Who::Mac(MAC), "the image's digest is wrong"));
    let mut judged = BTreeMap::new();
    for (method, route, _) in described_table(daemon.access.audit.clone()) {
        let (path, body) = sample(&method, route);
        let body = body.map(|body| body.to_string());
        let mut arguments = vec!["-X", method.as_str(), "-H", "Content-Type: application/json"];
        if let Some(body) = &body {
            arguments.extend(["-d", body]);
        }
        let answer = curl(daemon.api, &path, &arguments).await;
        let operation = &document["paths"][route.replace("{*", "{")][method.as_str().to_lowercase()];
        let name = format!("{method} {route}");
        judge(&document, operation, &answer).unwrap_or_else(|error| panic!("{name}: {error}"));
        judged.insert(name, answer.status);
    }
    let done = judged.values().filter(|status| **status < 300).count();
    assert!(done * 10 > judged.len() * 7, "most do what they are for: {judged:?}");
    for read in ["/api/status", "/api/nodes", "/api/nodes/{name}", "/api/nodes/{name}/why", "/api/events"] {
        assert_eq!(judged[&format!("GET {read}")], 200, "{read}");
    }
}

/// Whether the answer is one of those that the operation has.
fn judge(document: &Value, operation: &Value, answer: &Answer) -> Result<(), String> {
    let mut described = &operation["responses"][answer.status.to_string()];
    if let Some(reference) = described["$ref"].as_str() {
        described = document.pointer(reference.trim_start_matches('#')).ok_or("a reference to nothing")?;
    }
    if described.is_null() {
        return Err(format!("{} is not among its answers", answer.status));
    }
    let Some(content_type) = answer.header("content-type") else {
        return if described["content"].is_null() { Ok(()) } else { Err("no content type".into()) };
    };
    let media_type = content_type.split(';').next().unwrap_or_default();
    let content = &described["content"][media_type];
    match media_type {
        _ if content.is_null() => Err(format!("{content_type} is not among its content types")),
        "application/json" => holds(document, &content["schema"], &answer.json()),
        "application/x-ndjson" => {
            let text = String::from_utf8_lossy(&answer.body);
            text.lines().try_for_each(|line| {
                let line = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
                holds(document, &content["x-line-schema"], &line)
            })
        }
        _ => Ok(()),
    }
}

fn holds(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    // References lead from the root.
    let schema = json!({ "allOf": [schema], "components": document["components"] });
    let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect();
    if errors.is_empty() { Ok(()) } else { Err(format!("{}: {value}", errors.join(", "))) }
}
