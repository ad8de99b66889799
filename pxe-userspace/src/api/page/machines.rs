//! The list of machines, with filters and pages.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use pxe_contract::stage::Stage;

use super::frame::{Again, Context, Follows, Place, page, part};
use super::rows::{Row, key, path, state as state_of};
use super::words::{machines as count, said};
use crate::api::nodes::{self, Found, Wanted};
use crate::api::{ApiState, Failure, Kind};
use crate::base::text::{percent, word};
use crate::machines::Machine;
use crate::operate::access::Role;

/// Machines of a page, unless it says another number.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1_000;

const ORIGINS: [(&str, &str); 4] =
    [("file", "the file"), ("kept", "the database"), ("rule", "a rule"), ("none", "nowhere")];

pub(in crate::api) async fn machines(
    State(state): State<ApiState>,
    context: Context,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(wanted) = wanted
        .map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "begin with the whole list: /machines"))?;
    // A form sends its empty fields, too.
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let wanted = Wanted {
        select: given(wanted.select),
        stage: given(wanted.stage),
        origin: given(wanted.origin),
        ..wanted
    };
    let limit = wanted.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let asked = wanted.clone();
    let all = state.boot.machines.clone();
    let found = tokio::task::spawn_blocking(move || nodes::find(&all, &asked, limit));
    let found = found.await.map_err(Failure::internal)?;
    let list = match &found {
        Ok(found) => list(&context, &wanted, found),
        // The filter stays, to be corrected.
        Err(failure) => {
            html! { p.problem role="alert" { (said(&failure.error)) } p.quiet { (said(&failure.hint)) } }
        }
    };
    let body = html! {
        h1 { "Machines" }
        (filters(&wanted))
        (part("list", &list))
    };
    let by_stage = wanted.stage.is_some();
    let again = if by_stage { Again::Changes } else { Again::Others };
    let follows = Follows { of: None, again: Some(again) };
    Ok(page(&context, Some(Place::Machines), "Machines", Some(&follows), &body))
}

fn filters(wanted: &Wanted) -> Markup {
    let stages = Stage::ALL.into_iter().filter(|stage| *stage != Stage::Warning).map(word);
    html! {
        search {
            form.filters action="/machines" method="get" {
                label { span { "Which" }
                    input name="select" value=[wanted.select.as_deref()] autocomplete="off" spellcheck="false"
                        placeholder="n[1-40], label=gpu, profile=web" aria-describedby="select-hint";
                }
                label { span { "Stage" } select name="stage" {
                    option value="" { "any" }
                    @for stage in stages.chain(["none".to_owned()]) {
                        option value=(stage) selected[wanted.stage.as_ref() == Some(&stage)] {
                            @if stage == "none" { "not seen" } @else { (stage) }
                        }
                    }
                } }
                label { span { "Declared in" } select name="origin" {
                    option value="" { "any" }
                    @for (origin, words) in ORIGINS {
                        option value=(origin) selected[wanted.origin.as_deref() == Some(origin)] { (words) }
                    }
                } }
                button type="submit" { "Filter" }
                @if wanted.select.is_some() || wanted.stage.is_some() || wanted.origin.is_some() {
                    a href="/machines" { "All machines" }
                }
            }
            p.hint id="select-hint" {
                "Names, " code { "n[1-40]" } ", MAC addresses, " code { "label=L" } ", " code { "profile=P" } ", several with commas."
            }
        }
    }
}

fn list(context: &Context, wanted: &Wanted, Found { page, next, all }: &Found) -> Markup {
    let now = Timestamp::now();
    html! {
        .above {
            p role="status" {
                (count(*all))
                @if page.len() < *all { ", " (page.len()) " of them here" }
            }
            @if context.may(Role::Operator) && !page.is_empty() {
                a.button href={ "/launches?select=" (percent(wanted.select.as_deref().unwrap_or("all"), "")) "#new" } {
                    "Launch "
                    @if wanted.select.is_some() { "these" } @else { "all" } "…"
                }
            }
        }
        @if page.is_empty() {
            p.empty {
                @if wanted.stage.is_some() || wanted.origin.is_some() {
                    "No machine is so. " a href="/machines" { "All machines" }
                } @else {
                    "No machine was seen or declared. Power one on, with the boot segment first in its boot order."
                }
            }
        } @else {
            .scroll tabindex="0" role="region" aria-label="Machines" {
                table {
                    thead { tr {
                        th scope="col" { "Machine" }
                        th scope="col" { "State" }
                        th scope="col" { "Since (UTC)" }
                        th scope="col" { "Address" }
                        th scope="col" { "Profile" }
                        th scope="col" { "Labels" }
                        th scope="col" { "MAC address" }
                    } }
                    tbody { @for machine in page { (line(machine, &Row::of(machine, now))) } }
                }
            }
        }
        @if wanted.cursor.is_some() || next.is_some() {
            nav.pages aria-label="Pages of the list" {
                @if wanted.cursor.is_some() {
                    @let first = Wanted { cursor: None, ..wanted.clone() };
                    a href={ "/machines?" (query(&first)) } { "First page" }
                }
                @if let Some(next) = next {
                    a rel="next" href={ "/machines?" (nodes::next_page(wanted, next)) } { "Next page" }
                }
            }
        }
    }
}

fn line(machine: &Machine, row: &Row) -> Markup {
    html! {
        tr data-m=(key(machine.mac)) {
            th scope="row" { a href=(path(machine)) data-f="n" { (row.name) } }
            td { (state_of(row)) }
            td data-f="t" { (row.since) }
            td data-f="a" { (row.address) }
            td data-f="p" { (row.profile) }
            td { @for label in &machine.labels { span.label { (said(label)) } " " } }
            td { code { (machine.mac) } }
        }
        @if let Some(problem) = &machine.problem {
            tr.note { td colspan="7" { (said(&machine.label())) ": " (said(problem)) } }
        }
    }
}

fn query(wanted: &Wanted) -> String {
    let parts = [("select", &wanted.select), ("stage", &wanted.stage), ("origin", &wanted.origin)];
    let parts =
        parts.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", percent(value.as_ref()?, ""))));
    parts.collect::<Vec<_>>().join("&")
}
