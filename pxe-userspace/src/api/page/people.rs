//! What people did, and who may: the audit, and tokens.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::frame::{Context, Place, page, part};
use super::words::{exactly, said, when};
use crate::api::{ApiState, Failure, Kind};
use crate::base::text::word;
use crate::operate::audit::Entry;

/// Entries of a page.
const PAGE: usize = 100;

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::api) struct Before {
    /// Only entries with a smaller id.
    before: Option<u64>,
}

pub(in crate::api) async fn audit(
    State(state): State<ApiState>,
    context: Context,
    before: Result<Query<Before>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(Before { before }) =
        before.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes before=ID"))?;
    let audit = state.access.audit.clone();
    let entries = tokio::task::spawn_blocking(move || audit.before(before.unwrap_or(u64::MAX), PAGE));
    let entries = entries.await.map_err(Failure::internal)?.map_err(Failure::internal)?;
    let now = Timestamp::now();
    let body = html! {
        h1 { "Audit" }
        p.quiet { "What was changed, by whom, before and after; the newest first." }
        @if entries.is_empty() {
            p.empty { "Nothing was changed yet." }
        } @else {
            .scroll tabindex="0" role="region" aria-label="Changes" {
                table {
                    thead { tr {
                        th scope="col" { "Time (UTC)" }
                        th scope="col" { "Who" }
                        th scope="col" { "What" }
                        th scope="col" { "On" }
                        th scope="col" { "Before" }
                        th scope="col" { "After" }
                    } }
                    tbody { @for entry in &entries { (line(entry, now)) } }
                }
            }
            nav.pages aria-label="Pages of the audit" {
                @if before.is_some() { a href="/audit" { "The newest" } }
                @if let Some(last) = entries.last().filter(|_| entries.len() == PAGE) {
                    a rel="next" href={ "/audit?before=" (last.id) } { "Older" }
                }
            }
        }
    };
    Ok(page(&context, Some(Place::Audit), "Audit", None, &body))
}

fn line(Entry { time, caller, did, .. }: &Entry, now: Timestamp) -> Markup {
    html! {
        tr {
            td { time datetime=(exactly(*time)) { (when(*time, now)) } }
            td {
                (said(&caller.who)) " "
                span.quiet { (word(caller.through)) @if let Some(from) = caller.from { " from " (from) } }
            }
            th scope="row" { code { (said(&did.what)) } }
            td { @if let Some(on) = &did.on { (said(on)) } }
            td.wide { (value(&did.before)) }
            td.wide { (value(&did.after)) }
        }
    }
}

fn value(value: &Value) -> Markup {
    match value {
        Value::Null => html! {},
        Value::String(text) => html! { (said(text)) },
        other => html! { code { (said(&other.to_string())) } },
    }
}

pub(in crate::api) async fn tokens(State(state): State<ApiState>, context: Context) -> Response {
    let tokens = state.access.tokens.list();
    let now = Timestamp::now();
    let list = html! {
        @if tokens.is_empty() {
            p.empty { "There are no tokens: programs use the API by its socket alone." }
        } @else {
            .scroll tabindex="0" role="region" aria-label="Tokens" {
                table {
                    thead { tr {
                        th scope="col" { "Name" }
                        th scope="col" { "Role" }
                        th scope="col" { "Added (UTC)" }
                        th scope="col" { "Expires (UTC)" }
                        th scope="col" { span.sr { "Remove" } }
                    } }
                    tbody { @for token in &tokens { tr {
                        th scope="row" { (said(&token.name)) }
                        td { (token.role) }
                        td { time datetime=(exactly(token.added)) { (when(token.added, now)) } }
                        td {
                            @match token.expires {
                                None => { "never" }
                                Some(end) => {
                                    time datetime=(exactly(end)) { (when(end, now)) }
                                    @if end <= now { " (ended)" }
                                }
                            }
                        }
                        td.does {
                            form.inline data-method="DELETE" data-path={ "/api/tokens/" (token.name) }
                                data-confirm={ "Remove the token " (token.name) "? Who uses it is locked out at once." } {
                                button.plain type="submit" aria-label={ "Remove token " (token.name) } { "Remove" }
                            }
                        }
                    } } }
                }
            }
        }
    };
    let body = html! {
        h1 { "Tokens" }
        p.quiet { "Who may use the API by TCP. A browser logs in with the link that " code { "bridgehead login" } " prints." }
        (part("tokens", &list))
        output.said {}
        section.pane aria-labelledby="new-title" {
            h2 id="new-title" { "A new token" }
            form.fields data-method="POST" data-path="/api/tokens" {
                label { span { "Name" } input name="name" required maxlength="64" autocomplete="off" pattern="[A-Za-z0-9._@\\-]+"; }
                label { span { "Role" } select name="role" {
                    option value="viewer" { "viewer: looks" }
                    option value="operator" { "operator: changes boots" }
                    option value="admin" { "admin: everything" }
                } }
                label { span { "Valid for days" }
                    input name="lifetime" data-as="days" type="number" min="1" max="36500" placeholder="for ever"; }
                button type="submit" { "Add" }
                p.hint { "The token is shown once, here, and kept as a hash." }
                output data-show="token" {}
            }
        }
    };
    page(&context, Some(Place::Tokens), "Tokens", None, &body)
}
