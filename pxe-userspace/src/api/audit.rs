//! The audit, as a stream of lines.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::events::{Line, ndjson};
use super::openapi::{Lines, Written};
use super::{ApiState, Failure, Kind};
use crate::operate::audit::{Audit, Entry};

/// Entries of one query.
const PAGE: usize = 256;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only entries with a larger id.
    #[serde(default)]
    after: u64,
    /// Anything but 0: follow further changes.
    #[serde(default)]
    follow: u8,
}

pub(super) async fn audit(
    State(state): State<ApiState>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Written<Lines<Entry>>, Failure> {
    let Query(wanted) = wanted
        .map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "the query takes after=ID and follow=1"))?;
    let place = (wanted.follow != 0).then(|| state.access.follow()).transpose()?;
    let (lines, body) = mpsc::channel(16);
    tokio::spawn(send(state.access.audit.clone(), wanted.after, place, lines));
    Ok(Written::lines(ReceiverStream::new(body)))
}

/// Runs until all is sent; with a follower's place, until the client disconnects.
async fn send(audit: Audit, mut after: u64, place: Option<OwnedSemaphorePermit>, lines: mpsc::Sender<Line>) {
    let mut stored = audit.watch();
    loop {
        stored.mark_unchanged();
        loop {
            let reader = audit.clone();
            let page = tokio::task::spawn_blocking(move || reader.since(after, PAGE)).await;
            let page = match page.map_err(|e| e.to_string()).and_then(|page| page.map_err(|e| e.to_string()))
            {
                Ok(page) => page,
                Err(error) => return tracing::error!(error, "the audit could not be read"),
            };
            for entry in &page {
                after = entry.id;
                if lines.send(ndjson(entry)).await.is_err() {
                    return;
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        if place.is_none() {
            return;
        }
        tokio::select! {
            changed = stored.changed() => if changed.is_err() { return },
            () = lines.closed() => return,
        }
    }
}
