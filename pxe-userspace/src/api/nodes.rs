//! Machines: which there are, and those that are declared here and kept in the database.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse as _;
use schemars::JsonSchema;
use serde::Deserialize;

use super::documents::NodesChanged;
use super::door::By;
use super::openapi::{Csv, Pages, Table, Written};
use super::{ApiState, Failure, Kind, read};
use crate::base::text::{percent, word};
use crate::config::facts::Hardware;
use crate::config::{Node, Origin};
use crate::machines::kept::selector::{self, Nothing, Selectable, Selector, SelectorError};
use crate::machines::kept::{Done, Order, OrderError, Patch, table};
use crate::machines::{Machine, Machines, Place};
use crate::operate::audit::Did;

/// Machines of one page.
const PAGE_MAX: usize = 10_000;

/// Machines that a change tells of one by one in the audit. Of more, it says how many.
const TOLD_MAX: usize = 64;

/// Which machines, and how many of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    /// Names, MAC addresses, `n[1-40]`, `label=L`, `profile=P`, `all`; several of them with commas.
    pub(super) select: Option<String>,
    /// A stage, or `none`.
    pub(super) stage: Option<String>,
    /// `file`, `kept`, `rule`, or `none`.
    pub(super) origin: Option<String>,
    /// Machines of a page; without it, all of them.
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub(super) limit: Option<usize>,
    /// Where the page before ended, as its Link header has it.
    pub(super) cursor: Option<String>,
}

impl Selectable for &Machine {
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
    fn mac(&self) -> pxe_common::Mac {
        self.mac
    }
    fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }
    fn has_label(&self, label: &str) -> bool {
        self.labels.iter().any(|its| its == label)
    }
    fn hardware(&self) -> Option<&Hardware> {
        self.facts.as_deref()
    }
}

pub(super) async fn list(
    State(state): State<ApiState>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Pages<Machine>>, Failure> {
    const HINT: &str =
        "the query takes select=SELECTOR, stage=STAGE, origin=file|kept|rule|none, limit=N and cursor=C";
    let invalid = |error: String| Failure::new(Kind::Invalid, error, HINT);
    let Query(wanted) = wanted.map_err(|e| invalid(e.body_text()))?;
    let limit = match wanted.limit {
        None => usize::MAX,
        Some(limit @ 1..=PAGE_MAX) => limit,
        Some(limit) => return Err(invalid(format!("a page of {limit}: 1 to {PAGE_MAX}"))),
    };
    // Ten thousand take a while to be written.
    let answer = tokio::task::spawn_blocking(move || {
        let Found { page, next, .. } = find(&state.boot.machines, &wanted, limit)?;
        let answer = Written::new(Json(page).into_response());
        let link = next.map(|place| format!("</api/nodes?{}>; rel=\"next\"", next_page(&wanted, &place)));
        let link = link.and_then(|link| HeaderValue::from_str(&link).ok());
        Ok(answer.header(header::LINK, link))
    });
    answer.await.map_err(Failure::internal)?
}

/// A page of the machines that somebody wants.
pub(super) struct Found {
    pub(super) page: Vec<Machine>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<Place>,
    /// Machines on all pages.
    pub(super) all: usize,
}

/// The first `limit` of them behind the cursor.
pub(super) fn find(machines: &Machines, wanted: &Wanted, limit: usize) -> Result<Found, Failure> {
    const HINT: &str = "the Link header of a page has the next";
    let after = wanted.cursor.as_deref().map(str::parse::<Place>).transpose();
    let after = after.map_err(|()| Failure::new(Kind::Invalid, "the cursor is none of ours", HINT))?;
    let selector = wanted.select.as_deref().map(parse).transpose()?;
    let chosen = selector.map(|selector| {
        machines.look(|all| {
            let chosen = selector.choose(all)?;
            Ok::<_, Nothing>(chosen.iter().map(|machine| machine.mac).collect::<HashSet<_>>())
        })
    });
    let chosen = chosen.transpose().map_err(|nothing| missing(&nothing))?;
    let fits = |asked: &Option<String>, is: Option<String>| match asked {
        None => true,
        Some(asked) => is.as_deref().unwrap_or("none") == asked,
    };
    let is_wanted = |machine: &Machine| {
        chosen.as_ref().is_none_or(|chosen| chosen.contains(&machine.mac))
            && (wanted.stage.is_none() || fits(&wanted.stage, machine.stage.map(word)))
            && fits(&wanted.origin, machine.origin.as_ref().map(|origin| kind(origin).to_owned()))
    };
    let all = machines.look(|all| all.filter(|machine| is_wanted(machine)).count());
    let (page, next) = machines.page(after.as_ref(), limit, is_wanted);
    Ok(Found { page, next, all })
}

fn kind(origin: &Origin) -> &'static str {
    match origin {
        Origin::File(_) => "file",
        Origin::Kept => "kept",
        Origin::Rule(_) => "rule",
    }
}

/// The query of the page that begins there.
pub(super) fn next_page(wanted: &Wanted, after: &Place) -> String {
    let others = [("select", &wanted.select), ("stage", &wanted.stage), ("origin", &wanted.origin)];
    let others = others.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
    let limit = wanted.limit.map(|limit| ("limit", limit.to_string()));
    let query = others.chain(limit).chain([("cursor", after.to_string())]);
    let query: Vec<String> = query.map(|(key, value)| format!("{key}={}", percent(&value, ""))).collect();
    query.join("&")
}

pub(super) fn parse(text: &str) -> Result<Selector, Failure> {
    text.parse()
        .map_err(|error: SelectorError| Failure::new(Kind::Invalid, error.to_string(), selector::HINT))
}

pub(super) fn missing(nothing: &Nothing) -> Failure {
    Failure::new(Kind::NotFound, nothing.to_string(), selector::HINT)
}

pub(super) async fn add(
    State(state): State<ApiState>,
    by: By,
    node: Result<Json<Node>, JsonRejection>,
) -> Result<Json<Machine>, Failure> {
    const HINT: &str = "send {\"name\": \"NAME\", \"mac\": \"MAC\"} and what else docs/api.md has";
    let Json(node) = node.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let mac = node.mac;
    order(&state, by, "node.add", Order::Add(Box::new(node))).await?;
    read::find(&state.boot.machines, &mac.to_string()).map(Json)
}

/// The body of `POST /api/nodes/{name}/adopt`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Adopted {
    name: Option<String>,
}

pub(super) async fn adopt(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
    adopted: Result<Json<Adopted>, JsonRejection>,
) -> Result<Json<Machine>, Failure> {
    let hint = "send {} or {\"name\": \"NAME\"}";
    let Json(adopted) = adopted.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), hint))?;
    let machine = read::find(&state.boot.machines, &name).map_err(|failure| Failure {
        hint: "only a machine that was seen is adopted; `bridgehead node add` takes others".to_owned(),
        ..failure
    })?;
    order(&state, by, "node.adopt", Order::Adopt(machine.mac, adopted.name)).await?;
    read::find(&state.boot.machines, &machine.mac.to_string()).map(Json)
}

/// Which machines a change is of.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Selected {
    /// Names, MAC addresses, `n[1-40]`, `label=L`, `profile=P`, `all`; several of them with commas.
    select: String,
}

impl Selected {
    /// By names and the like: what machines told of themselves is known here.
    fn selector(
        selected: Result<Query<Self>, QueryRejection>,
        state: &ApiState,
    ) -> Result<Selector, Failure> {
        let Query(selected) = selected
            .map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes select=SELECTOR"))?;
        let selector = parse(&selected.select)?;
        if !selector.goes_by_facts() {
            return Ok(selector);
        }
        let machines = &state.boot.machines;
        let by_mac = machines.look(|all| selector.without_facts(all.filter(|m| m.origin.is_some())));
        by_mac.map_err(|nothing| missing(&nothing))
    }
}

pub(super) async fn set(
    State(state): State<ApiState>,
    by: By,
    selected: Result<Query<Selected>, QueryRejection>,
    patch: Result<Json<Patch>, JsonRejection>,
) -> Result<Json<NodesChanged>, Failure> {
    let selector = Selected::selector(selected, &state)?;
    let hint = "send what is to be different, such as {\"profile\": \"web\", \"keys\": {\"rack\": \"a1\"}}";
    let Json(patch) = patch.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), hint))?;
    order(&state, by, "node.set", Order::Set(selector, Box::new(patch))).await.map(Json)
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    by: By,
    selected: Result<Query<Selected>, QueryRejection>,
) -> Result<Json<NodesChanged>, Failure> {
    let selector = Selected::selector(selected, &state)?;
    order(&state, by, "node.rm", Order::Remove(selector)).await.map(Json)
}

pub(super) async fn import(
    State(state): State<ApiState>,
    by: By,
    table: Result<Table, BytesRejection>,
) -> Result<Json<NodesChanged>, Failure> {
    let hint = format!("a table has {} MiB at most", table::TABLE_MAX >> 20);
    let Table(table) = table.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), hint))?;
    order(&state, by, "node.import", Order::Import(table.into())).await.map(Json)
}

pub(super) async fn export(State(state): State<ApiState>) -> Result<Written<Csv>, Failure> {
    let written = tokio::task::spawn_blocking(move || table::write(&state.appliance.kept()));
    written.await.map_err(Failure::internal).map(Written::<Csv>::of)
}

/// What was begun is done and told in the audit, whether or not the asker stays.
async fn order(state: &ApiState, by: By, what: &'static str, order: Order) -> Result<NodesChanged, Failure> {
    let appliance = state.appliance.clone();
    let ordered = tokio::spawn(async move {
        let done = appliance.order(order).await.map_err(|error| refused(&error))?;
        by.later();
        for did in told(what, &done) {
            by.did(did).await;
        }
        Ok(NodesChanged::from(&done))
    });
    ordered.await.map_err(Failure::internal)?
}

/// What was done, machine by machine where they are few.
fn told(what: &str, done: &Done) -> Vec<Did> {
    let nodes = |of: &[Arc<Node>]| of.iter().map(|node| Node::clone(node)).collect::<Vec<_>>();
    let (before, after) = (nodes(&[&done.before[..], &done.forgotten].concat()), nodes(&done.after));
    if before.len().max(after.len()) > TOLD_MAX {
        let changed = NodesChanged::from(done);
        let counts = serde_json::json!({
            "added": changed.added.len(), "changed": changed.changed.len(), "removed": changed.removed.len(),
        });
        return vec![Did::new(what).on(format!("{} machines", changed.len())).after(counts)];
    }
    let among = |nodes: &[Node], name: &str| -> Option<Node> {
        nodes.iter().find(|node| node.name.eq_ignore_ascii_case(name)).cloned()
    };
    let gone = before.iter().filter(|node| among(&after, &node.name).is_none());
    let gone = gone.map(|node| Did::new(what).on(&node.name).before(node));
    let now = after.iter().map(|node| {
        let did = Did::new(what).on(&node.name).after(node);
        match among(&before, &node.name) {
            Some(before) => did.before(before),
            None => did,
        }
    });
    gone.chain(now).collect()
}

fn refused(error: &OrderError) -> Failure {
    let conflict = if error.is_conflict() { Kind::Conflict } else { Kind::Invalid };
    match error {
        OrderError::Nothing(nothing) => missing(nothing),
        OrderError::Faults(faults) => match faults.as_slice() {
            [fault] => Failure::new(conflict, &fault.what, &fault.right),
            _ => Failure::new(conflict, error.to_string(), "nothing was changed"),
        },
        OrderError::Lines(_) => {
            Failure::new(conflict, error.to_string(), "correct them, and send the table again")
        }
        OrderError::Elsewhere(_) => Failure::new(conflict, error.to_string(), "nothing was changed"),
        OrderError::Several(_) => Failure::new(conflict, error.to_string(), "name one machine"),
        OrderError::Full => Failure::new(conflict, error.to_string(), "remove some that are gone"),
        OrderError::Write(_) => Failure::internal(error),
    }
}
