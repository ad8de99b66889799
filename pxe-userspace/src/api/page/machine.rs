//! One machine: what it is, how its boot goes and why, what it prints, and what can be done to it.

use axum::extract::{Path, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

use super::document::document;
use super::frame::{Again, Context, Follows, Place, page, part};
use super::own::Own;
use super::rows::{self, EventRow, Row, key, state as state_of};
use super::stream::{tail, uptime};
use super::words::{exactly, said, when};
use crate::api::{ApiState, Failure, read};
use crate::base::table::or_dash;
use crate::base::text::{percent, word};
use crate::machines::console::Line;
use crate::machines::diagnosis::{Cause, Why};
use crate::machines::{Hold, Machine};
use crate::operate::access::Role;

/// Events that the page shows.
const EVENTS: usize = 100;

pub(in crate::api) async fn machine(
    State(state): State<ApiState>,
    context: Context,
    mut own: Own,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let machine = read::find(&state.boot.machines, &name)?;
    let (timeline, mac) = (state.boot.timeline.clone(), machine.mac);
    let events = tokio::task::spawn_blocking(move || timeline.of(mac, 0, EVENTS));
    let events = events.await.map_err(Failure::internal)?.map_err(Failure::internal)?;
    let events: Vec<EventRow> = events.iter().map(EventRow::of).collect();
    let facts = own.get(&format!("/api/nodes/{}/facts", percent(&machine.label(), ":"))).await?;
    let why = state.boot.timeline.why(mac);
    let console = tail(&state.boot.consoles, mac).await;
    let log = tail(&state.boot.logs, mac).await;
    let now = Timestamp::now();
    let row = Row::of(&machine, now);
    let body = html! {
        h1 { (row.name) }
        (part("now", &html! {
            p.now data-m=(key(mac)) { (state_of(&row)) span.quiet { " since " span data-f="t" { (row.since) } " UTC" } }
        }))
        @if context.may(Role::Operator) {
            section.actions aria-label="What can be done" {
                (part("actions", &actions(&context, &machine)))
                output.said {}
            }
        }
        .panes {
            section.pane aria-labelledby="is-title" {
                h2 id="is-title" { "Machine" }
                (part("is", &declared(&machine)))
            }
            section.pane aria-labelledby="why-title" {
                h2 id="why-title" { "Why" }
                (part("why", &whys(why.as_ref(), now)))
            }
        }
        section.pane aria-labelledby="events-title" {
            h2 id="events-title" { "Timeline" }
            (rows::events(&events, false, EVENTS))
        }
        section.pane aria-labelledby="console-title" {
            h2 id="console-title" { "Console" }
            (screen("console", &console, "Nothing was heard from its kernel and stage 1 yet."))
        }
        section.pane aria-labelledby="log-title" {
            h2 id="log-title" { "Log of its workload" }
            (screen("log", &log, "Its workload has written nothing."))
        }
        @if let Some(facts) = facts.filter(|facts| !facts.is_null()) { (facts_of(&facts)) }
    };
    let follows = Follows { of: Some(machine.mac.to_string()), again: Some(Again::Changes) };
    Ok(page(&context, Some(Place::Machines), &row.name, Some(&follows), &body))
}

fn declared(machine: &Machine) -> Markup {
    html! {
        dl.fields {
            dt { "MAC address" } dd { code { (machine.mac) } }
            dt { "Address" }
            dd {
                (or_dash(machine.address))
                @if let Some(reserved) = machine.reserved.filter(|r| Some(*r) != machine.address) {
                    " (" (reserved) " is reserved for it)"
                }
            }
            dt { "Profile" } dd { (or_dash(machine.profile.as_deref().map(said))) }
            dt { "Declared in" } dd { (said(&or_dash(machine.origin.as_ref()))) }
            dt { "Firmware" } dd { (or_dash(machine.firmware)) }
            @if let Some(uuid) = &machine.uuid { dt { "UUID" } dd { code { (said(uuid)) } } }
            @if !machine.labels.is_empty() {
                dt { "Labels" } dd { @for label in &machine.labels { span.label { (said(label)) } " " } }
            }
            @for (name, value) in &machine.keys { dt { (said(name)) } dd { (said(value)) } }
        }
        @if let Some(problem) = &machine.problem { p.problem { (said(problem)) } }
    }
}

fn whys(why: Option<&Why>, now: Timestamp) -> Markup {
    let Some(why) = why else {
        return html! { p.quiet { "No boot was seen: power it on, with the boot segment first in its boot order." } };
    };
    let stage = why.stage.map_or_else(|| "the start".to_owned(), word);
    let words = match (why.failed, why.done) {
        (true, _) => format!("failed after {stage}"),
        (false, true) => format!("has booted, up to {stage}"),
        (false, false) => format!("is at {stage}"),
    };
    html! {
        p {
            "The boot of " time datetime=(exactly(why.began)) { (when(why.began, now)) } " " b { (words) }
            ", last heard of at " time datetime=(exactly(why.last)) { (when(why.last, now)) } "."
        }
        @if why.causes.is_empty() { p.quiet { "Nothing is wrong, as far as can be seen from here." } }
        @for one in &why.causes { (cause(one)) }
    }
}

fn cause(cause: &Cause) -> Markup {
    html! {
        .cause {
            h3 { (said(&cause.words)) " " code.quiet { (word(cause.kind)) } }
            @if !cause.evidence.is_empty() {
                ul.evidence { @for seen in &cause.evidence {
                    li {
                        @if let Some(time) = seen.time {
                            time datetime=(exactly(time)) { (time.strftime("%H:%M:%S%.3f")) } " "
                        }
                        (said(&seen.words))
                    }
                } }
            }
            p.remedy { (said(&cause.remedy)) }
        }
    }
}

/// A console's last lines, which further ones are added to.
fn screen(name: &str, lines: &[Line], nothing: &str) -> Markup {
    let boot = lines.last().map(|line| line.boot.as_str()).unwrap_or_default();
    html! {
        p.quiet id={ (name) "-none" } data-none[!lines.is_empty()] { (nothing) }
        .screen id={ (name) "-lines" } data-screen=(name) data-boot=(boot) data-none[lines.is_empty()]
            role="log" tabindex="0" aria-labelledby={ (name) "-title" } {
            @for line in lines {
                div { span.t { (uptime(line)) } " " (said(&line.text)) }
            }
        }
    }
}

fn facts_of(facts: &Value) -> Markup {
    html! {
        section.pane aria-labelledby="facts-title" {
            h2 id="facts-title" { "Hardware, as it says itself" }
            (part("facts", &document(facts)))
        }
    }
}

fn actions(context: &Context, machine: &Machine) -> Markup {
    let name = percent(&machine.label(), ":");
    let node = |what: &str| format!("/api/nodes/{name}/{what}");
    let label = said(&machine.label());
    let waits = machine.hold.is_some() || machine.stage == Some(pxe_contract::stage::Stage::Failed);
    html! {
            .buttons {
                @if waits {
                    (button("DELETE", &node("hold"), "Release", None))
                }
                @if machine.hold.is_none() {
                    (button("POST", &node("hold?once=1"), "Hold the next boot", None))
                    (button("POST", &node("hold"), "Hold every boot", None))
                } @else if machine.hold == Some(Hold::Once) {
                    (button("POST", &node("hold"), "Hold every boot", None))
                }
                (button("GET", &node("rescue"), "How to log in to it", None))
                (button("POST", &node("rekey"), "Release its keys",
                    Some(&format!("Release the keys of {label}'s volumes? Say yes only if you know that this machine boots now."))))
                @if machine.origin.is_none() && context.may(Role::Admin) {
                    (button("POST", &node("adopt"), "Keep it as declared", None))
                }
                a.button href={ "/launches?select=" (percent(&machine.label(), "")) "#new" } { "Launch…" }
            }
            .buttons.power role="group" aria-label="Power" {
                @for (action, boot, words, sure) in [
                    ("on", None, "Power on", None),
                    ("off", None, "Power off", Some("Switch it off at once, without asking its system?")),
                    ("cycle", None, "Power cycle", Some("Switch it off and on again, without asking its system?")),
                    ("cycle", Some("pxe"), "Cycle into network boot",
                        Some("Switch it off and on again, to boot from the network once?")),
                ] {
                    form.inline data-method="POST" data-path="/api/power" data-lines
                        data-confirm=[sure.map(|sure| format!("{label}: {sure}"))] {
                        input type="hidden" name="select" value=(machine.label());
                        input type="hidden" name="action" value=(action);
                        @if let Some(boot) = boot { input type="hidden" name="boot" value=(boot); }
                        button type="submit" { (words) }
                    }
                }
                form.inline data-method="GET" data-lines
                    data-path={ "/api/power?select=" (percent(&machine.label(), "")) } {
                    button type="submit" { "Power status" }
                }
            }
    }
}

/// A button that asks the API for something, whose answer is shown below all of them.
fn button(method: &str, path: &str, words: &str, sure: Option<&str>) -> Markup {
    html! {
        form.inline data-method=(method) data-path=(path) data-confirm=[sure] {
            button type="submit" { (words) }
        }
    }
}
