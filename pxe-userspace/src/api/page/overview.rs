//! The overview: how many machines are how far, where they stand, what is sent, what needs attention.

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::html;

use super::frame::{Again, Context, Follows, Place, page, part};
use super::racks::{self, Drawn};
use super::rows::{self, EventRow, Row};
use super::site::{Counts, Health, Site};
use crate::api::{ApiState, Failure, read};

/// Events that the page shows.
const EVENTS: usize = 12;

pub(in crate::api) async fn overview(
    State(state): State<ApiState>,
    context: Context,
) -> Result<Response, Failure> {
    let status = read::whole_status(state.clone()).await?;
    let health = Health::of(&status);
    let now = Timestamp::now();
    let (counts, drawn) = state.boot.machines.look(|all| {
        let machines: Vec<_> = all.collect();
        let drawn: Vec<Drawn> = machines.iter().map(|m| Drawn::of(m, Row::of(m, now))).collect();
        (Counts::of(machines.iter().copied()), drawn)
    });
    let timeline = state.boot.timeline.clone();
    let last = timeline.follow().0;
    let events =
        tokio::task::spawn_blocking(move || timeline.since(last.saturating_sub(EVENTS as u64), EVENTS));
    let mut events: Vec<EventRow> = events
        .await
        .map_err(Failure::internal)?
        .map_err(Failure::internal)?
        .iter()
        .map(EventRow::of)
        .collect();
    events.reverse();
    let Site { chart, .. } = state.live.site();
    let site = Site { counts, health, chart };
    let body = html! {
        h1 { "Overview" }
        (part("alerting", &site.health.alerts()))
        .panes {
            section.pane aria-labelledby="stages-title" {
                h2 id="stages-title" { "Machines by stage" }
                (part("counts", &html! { (site.counts.markup()) (site.health.markup()) }))
            }
            section.pane aria-labelledby="sent-title" {
                h2 id="sent-title" { "Throughput" }
                (part("chart", &site.chart.markup()))
            }
        }
        section.pane aria-labelledby="picture-title" {
            h2 id="picture-title" { "Where they are" }
            (part("picture", &racks::picture(drawn)))
        }
        section.pane aria-labelledby="events-title" {
            h2 id="events-title" { "Latest events" }
            (rows::events(&events, true, EVENTS))
        }
        p.quiet {
            "bridgehead " (status.version) " on " code { (status.bridge.name) } " " (status.bridge.address)
            @for port in &status.ports { ", " code { (port.name) } " " (crate::base::text::word(port.tier)) }
            ", running since " time datetime=(super::words::exactly(status.started)) {
                (super::words::when(status.started, now)) " UTC"
            }
        }
    };
    let follows = Follows { of: None, again: Some(Again::Others) };
    Ok(page(&context, Some(Place::Overview), &site.summary(), Some(&follows), &body))
}
