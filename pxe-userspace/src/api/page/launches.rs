//! Launches: those there were, one of them, and the form that starts one.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::document::document;
use super::frame::{Again, Context, Follows, Place, page, part};
use super::mark::{Mark, mark};
use super::own::Own;
use super::words::{machines as count, said, when};
use crate::api::{ApiState, Failure, Images, Kind};
use crate::base::text::percent;
use crate::operate::access::Role;

/// Fields of a launch that the page has places of their own for.
const PLACED: [&str; 9] = ["id", "asked", "by", "select", "what", "phase", "verdict", "seen", "machines"];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::api) struct For {
    /// The machines that the form begins with.
    select: Option<String>,
}

pub(in crate::api) async fn launches(
    State(state): State<ApiState>,
    context: Context,
    mut own: Own,
    begin: Result<Query<For>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(begin) =
        begin.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes select=SELECTOR"))?;
    let (store, appliance) = (state.images.clone(), state.appliance.clone());
    let choices = tokio::task::spawn_blocking(move || {
        let images = Images::list(&*store)?.into_iter().map(|image| image.record.reference).collect();
        let profiles = appliance.profiles().into_iter().map(|profile| profile.name).collect();
        Ok::<(Vec<String>, Vec<String>), Failure>((images, profiles))
    });
    let (images, profiles) = choices.await.map_err(Failure::internal)??;
    let launches = own.get("/api/launches").await?;
    let body = html! {
        h1 { "Launches" }
        (part("launches", &list(launches.as_ref())))
        @if launches.is_some() && context.may(Role::Operator) {
            section.pane aria-labelledby="new-title" id="new" {
                h2 id="new-title" { "A new launch" }
                (form(begin.select.as_deref(), &images, &profiles))
            }
        }
    };
    let follows = Follows { of: None, again: Some(Again::Changes) };
    Ok(page(&context, Some(Place::Launches), "Launches", Some(&follows), &body))
}

fn list(launches: Option<&Value>) -> Markup {
    let Some(launches) = launches else {
        return html! { p.empty { "This appliance has no launches." } };
    };
    let launches: Vec<&Value> = launches.as_array().map(Vec::as_slice).unwrap_or_default().iter().collect();
    html! {
        @if launches.is_empty() { p.empty { "Nothing was launched yet." } } @else {
            .scroll tabindex="0" role="region" aria-label="Launches" {
                table {
                    thead { tr {
                        th scope="col" { "Launch" } th scope="col" { "What" } th scope="col" { "Machines" }
                        th scope="col" { "Asked (UTC)" } th scope="col" { "By" } th scope="col" { "State" }
                    } }
                    tbody { @for launch in launches {
                        @let id = text(launch, "id");
                        tr {
                            th scope="row" { a href={ "/launches/" (percent(&id, "")) } { "Launch " (id) } }
                            td { (text(launch, "what")) }
                            td.wide { (text(launch, "select")) }
                            td { (time(launch, "asked")) }
                            td { (text(launch, "by")) }
                            td { (verdict(launch)) }
                        }
                    } }
                }
            }
        }
    }
}

/// The form's fields are the API's.
fn form(select: Option<&str>, images: &[String], profiles: &[String]) -> Markup {
    html! {
        form.fields.launch data-method="POST" data-path="/api/launches" data-stream data-then="/launches/{id}" {
            label.long { span { "Machines" }
                input name="select" value=[select] required autocomplete="off" spellcheck="false"
                    placeholder="n[1-40], label=gpu, all"; }
            label { span { "Image" }
                input name="image" list="images" autocomplete="off" spellcheck="false" placeholder="hello-metal:latest";
                datalist id="images" { @for image in images { option value=(image) {} } }
            }
            label { span { "or profile" } select name="profile" {
                option value="" { "none" }
                @for profile in profiles { option value=(profile) { (profile) } }
            } }
            details {
                summary { "How it goes about it" }
                .more {
                    label { span { "At a time" } input name="at-a-time" data-as="number" type="number" min="1"; }
                    label { span { "Canary: so many go first" } input name="canary" data-as="number" type="number" min="0"; }
                    label { span { "Stop when more failed than" } input name="max-failed" placeholder="3 or 5%"; }
                    label { span { "Tries" } input name="tries" data-as="number" type="number" min="1"; }
                    label { span { "Healthy when this answers" } input name="healthy" placeholder="http://{address}/"; }
                    label { span { "Over after" } input name="deadline" data-as="duration" placeholder="2h"; }
                }
            }
            .buttons {
                button type="submit" data-path="/api/launches?dry-run=true" data-shows { "Try it dry" }
                button.main type="submit" data-confirm="Launch? Machines that run something else are restarted." { "Launch" }
            }
            p.hint { "A dry run says what would happen to each machine, and does nothing." }
            output {}
        }
    }
}

pub(in crate::api) async fn launch(
    context: Context,
    mut own: Own,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let launch = own.get(&format!("/api/launches/{}", percent(&id, ""))).await?;
    let launch = launch.ok_or_else(|| {
        Failure::new(
            Kind::NotFound,
            format!("there is no launch {id}"),
            "the list of launches has those there are",
        )
    })?;
    let title = format!("Launch {}", text(&launch, "id"));
    let body = html! {
        h1 { (title) }
        @if context.may(Role::Operator) {
            section.actions aria-label="What can be done" {
                (part("does", &actions(&launch)))
                output.said {}
            }
        }
        (part("launch", &one(&launch)))
    };
    let follows = Follows { of: None, again: Some(Again::Changes) };
    Ok(page(&context, Some(Place::Launches), &title, Some(&follows), &body))
}

fn actions(launch: &Value) -> Markup {
    let id = percent(&text(launch, "id"), "");
    html! {
        .buttons {
            @if text(launch, "phase") == "ended" {
                form.inline data-method="POST" data-path={ "/api/launches/" (id) "/undo" } data-then="/launches/{id}"
                    data-confirm="Bring these machines back to what they were before? They are restarted." {
                    button type="submit" { "Undo" }
                }
            } @else {
                form.inline data-method="POST" data-path={ "/api/launches/" (id) "/cancel" }
                    data-confirm="End this launch? Machines that were begun are left as they are." {
                    button type="submit" { "Cancel" }
                }
            }
        }
    }
}

fn one(launch: &Value) -> Markup {
    let members: Vec<&Value> = launch
        .get("machines")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .collect();
    let terms: serde_json::Map<String, Value> = launch
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !PLACED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    html! {
        p.now { (verdict(launch)) }
        p { b { (text(launch, "what")) } " on " code { (text(launch, "select")) } ", asked by " (text(launch, "by"))
            " at " (time(launch, "asked")) " UTC" }
        (progress(&members))
        @if !members.is_empty() {
            .scroll tabindex="0" role="region" aria-label="Machines of the launch" {
                table {
                    thead { tr {
                        th scope="col" { "Machine" } th scope="col" { "State" } th scope="col" { "Stage" }
                        th scope="col" { "Tries" } th scope="col" { "Since (UTC)" } th scope="col" { "Cause" }
                    } }
                    tbody { @for member in &members { tr {
                        th scope="row" {
                            a href={ "/machines/" (percent(&text(member, "name"), ":")) } { (text(member, "name")) }
                            @if member.get("canary") == Some(&Value::Bool(true)) { " (canary)" }
                        }
                        td { span.state { (mark(mark_of(&text(member, "state")))) span { (text(member, "state").replace('-', " ")) } } }
                        td { (text(member, "stage")) }
                        td { (text(member, "tries")) }
                        td { (time(member, "since")) }
                        td.wide { (text(member, "cause")) }
                    } } }
                }
            }
        }
        section.pane aria-labelledby="terms-title" { h2 id="terms-title" { "Terms" } (document(&Value::Object(terms))) }
    }
}

/// How many machines are in which state, most of all interesting to who waits.
fn progress(members: &[&Value]) -> Markup {
    let states = ["waiting", "powering", "booting", "healthy", "failed", "set-aside"];
    let of = |state: &str| members.iter().filter(|member| text(member, "state") == state).count();
    html! {
        ul.counts {
            @for state in states {
                @let number = of(state);
                li data-none[number == 0] { (mark(mark_of(state))) b { (number) } " " (state.replace('-', " ")) }
            }
            li { "of " (count(members.len())) }
        }
    }
}

fn mark_of(state: &str) -> Mark {
    match state {
        "waiting" => Mark::Waiting,
        "powering" => Mark::Address,
        "booting" => Mark::Kernel,
        "healthy" => Mark::Running,
        "failed" => Mark::Held,
        "set-aside" => Mark::Failed,
        _ => Mark::None,
    }
}

fn verdict(launch: &Value) -> Markup {
    let verdict = launch.get("verdict");
    let outcome = verdict.map(|verdict| text(verdict, "outcome")).unwrap_or_default();
    let its = match outcome.as_str() {
        "healthy" => Mark::Running,
        "" => Mark::Kernel,
        _ => Mark::Failed,
    };
    let words = verdict.map(|verdict| text(verdict, "words")).filter(|words| !words.is_empty());
    html! { span.state { (mark(its)) span { (words.unwrap_or_else(|| text(launch, "phase"))) } } }
}

/// A field's value as text, nothing where there is none.
fn text(of: &Value, field: &str) -> String {
    match of.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => said(text),
        Some(other) => said(&other.to_string()),
    }
}

fn time(of: &Value, field: &str) -> Markup {
    let at = of.get(field).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    html! { @if let Some(at) = at { time datetime=(super::words::exactly(at)) { (when(at, Timestamp::now())) } } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn launches_are_a_table_and_words_say_how_they_ended() {
        let launches = json!([
            { "id": 2, "asked": "2026-01-05T10:00:02.104233Z", "by": "root", "select": "<all>", "what": "image a:1",
              "phase": "running", "tries": 3 },
            { "id": 1, "asked": "2026-01-05T09:00:02Z", "by": "ci", "select": "n1", "what": "image a:1", "phase": "ended",
              "verdict": { "outcome": "failed", "words": "1 of 2 is set aside", "time": "2026-01-05T09:30:00Z" } },
        ]);
        let list = list(Some(&launches)).into_string();
        for part in ["href=\"/launches/2\"", "&lt;all&gt;", "running", "1 of 2 is set aside", "#m-failed"] {
            assert!(list.contains(part), "{part}: {list}");
        }
        assert!(super::list(None).into_string().contains("has no launches"));
        let member = json!({ "name": "n1", "state": "set-aside" });
        assert!(progress(&[&member]).into_string().contains("<b>1</b> set aside"));
    }
}
