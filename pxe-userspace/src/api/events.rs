//! The timeline as a stream of lines.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::openapi::{Lines, Written};
use super::{ApiState, Failure, Kind, read};
use crate::machines::timeline::{Event, Timeline};

/// Rows of one query, so that memory is bounded, however long the timeline is.
const PAGE: usize = 512;

/// How long the timeline's writer may take to store an event, before the reader goes on without it.
const WRITER_LAG: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only events with a larger id.
    #[serde(default)]
    after: u64,
    /// Only this machine's, by name or MAC.
    node: Option<String>,
    /// Anything but 0: follow further events.
    #[serde(default)]
    follow: u8,
}

impl Wanted {
    fn covers(&self, event: &Event) -> bool {
        self.node.as_deref().is_none_or(|node| {
            event.node.as_deref() == Some(node)
                || node.parse().is_ok_and(|mac: pxe_common::Mac| mac == event.mac)
        })
    }
}

pub(super) async fn events(
    State(state): State<ApiState>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Lines<Event>>, Failure> {
    let Query(wanted) = wanted.map_err(|e| {
        Failure::new(Kind::Invalid, e.body_text(), "the query takes after=ID, node=NAME and follow=1")
    })?;
    if let Some(node) = &wanted.node {
        // A machine that was never seen can be waited for by its MAC.
        let is_awaited = wanted.follow != 0 && node.parse::<pxe_common::Mac>().is_ok();
        if !is_awaited {
            read::find(&state.boot.machines, node)?;
        }
    }
    let place = (wanted.follow != 0).then(|| state.access.follow()).transpose()?;
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(send(state.boot.timeline, wanted, place, lines));
    Ok(Written::lines(tokio_stream::wrappers::ReceiverStream::new(body)))
}

pub(super) type Line = Result<Bytes, Infallible>;

/// A document on a line of its own.
pub(super) fn ndjson(document: &impl Serialize) -> Line {
    let mut line = serde_json::to_vec(document).expect("documents have only text keys");
    line.push(b'\n');
    Ok(line.into())
}

/// The client has disconnected.
struct Gone;

async fn send(
    timeline: Timeline,
    wanted: Wanted,
    _place: Option<OwnedSemaphorePermit>,
    lines: mpsc::Sender<Line>,
) {
    // When the client disconnects the stream ends, and there is nobody to tell.
    let _: Result<(), Gone> = send_all(&timeline, &wanted, &lines).await;
}

async fn send_all(timeline: &Timeline, wanted: &Wanted, lines: &mpsc::Sender<Line>) -> Result<(), Gone> {
    let mut after = wanted.after;
    loop {
        // First the subscription, then the stored events up to it: so each event is sent exactly once.
        let (last, mut live) = timeline.follow();
        after = past(timeline, after, last, wanted, lines).await?;
        if wanted.follow == 0 {
            return Ok(());
        }
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                () = lines.closed() => return Err(Gone),
            };
            match event {
                Ok(event) if event.id <= after => {}
                Ok(event) => {
                    after = event.id;
                    line(&event, wanted, lines).await?;
                }
                // This client reads more slowly than events occur: it gets the rest from the disk.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }
}

/// Sends what is stored after `after`, at least up to `last`, and returns where it ended.
async fn past(
    timeline: &Timeline,
    mut after: u64,
    last: u64,
    wanted: &Wanted,
    lines: &mpsc::Sender<Line>,
) -> Result<u64, Gone> {
    let patience = tokio::time::Instant::now() + WRITER_LAG;
    loop {
        let reader = timeline.clone();
        let page = tokio::task::spawn_blocking(move || reader.since(after, PAGE)).await;
        let page = match page.map_err(|e| e.to_string()).and_then(|page| page.map_err(|e| e.to_string())) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(error, "the timeline could not be read");
                return Err(Gone);
            }
        };
        for event in &page {
            after = event.id;
            line(event, wanted, lines).await?;
        }
        if page.is_empty() {
            if after >= last || tokio::time::Instant::now() > patience {
                return Ok(after.max(last));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn line(event: &Event, wanted: &Wanted, lines: &mpsc::Sender<Line>) -> Result<(), Gone> {
    if wanted.covers(event) {
        lines.send(ndjson(event)).await.map_err(|_| Gone)?;
    }
    Ok(())
}
