//! Answers that are streams of documents, one a line.

use futures_util::future::BoxFuture;
use pxe_contract::failure::ErrorDocument;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::Failure;
use super::documents::Progress;
use super::events::{Line, ndjson};
use super::openapi::{Lines, Written};
use crate::store::ReadError;

/// Rows of one query.
const PAGE: usize = 512;

/// A line that says how something goes, or how it ended.
pub(super) trait Step: Serialize + JsonSchema + Send + 'static {
    type Done;
    fn progress(progress: Progress) -> Self;
    fn done(done: Self::Done) -> Self;
    fn failed(failure: ErrorDocument) -> Self;
}

/// The steps of some work, and what came of it. The work is done to its end, also if the client disconnects.
pub(super) fn steps<S: Step>(
    work: BoxFuture<'static, Result<S::Done, Failure>>,
    mut steps: mpsc::Receiver<Progress>,
) -> Written<Lines<S>>
where
    S::Done: Send,
{
    let (lines, body) = mpsc::channel(16);
    tokio::spawn(async move {
        let forward = async {
            while let Some(step) = steps.recv().await {
                let _ = lines.send(ndjson(&S::progress(step))).await;
            }
        };
        let (done, ()) = tokio::join!(work, forward);
        let last = done.map_or_else(|failure| S::failed(failure.document()), S::done);
        let _ = lines.send(ndjson(&last)).await;
    });
    Written::lines(ReceiverStream::new(body))
}

/// What has ids that grow, in the store, and is read a page at a time.
pub(super) trait Rows: Clone + Send + 'static {
    type Row: Serialize + JsonSchema + Send + Sync + 'static;
    fn id(row: &Self::Row) -> u64;
    /// Those with an id above `after`, oldest first, at most `limit`. Blocks.
    fn since(&self, after: u64, limit: usize) -> Result<Vec<Self::Row>, ReadError>;
    /// The newest stored id.
    fn stored(&self) -> watch::Receiver<u64>;
    fn is_wanted(&self, _row: &Self::Row) -> bool {
        true
    }
}

/// Those that are stored after `after`; with a follower's place, further ones until the client disconnects.
pub(super) fn rows<R: Rows>(
    rows: R,
    after: u64,
    place: Option<OwnedSemaphorePermit>,
) -> Written<Lines<R::Row>> {
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(send(rows, after, place, lines));
    Written::lines(ReceiverStream::new(body))
}

async fn send<R: Rows>(
    rows: R,
    mut after: u64,
    place: Option<OwnedSemaphorePermit>,
    lines: mpsc::Sender<Line>,
) {
    let mut stored = rows.stored();
    loop {
        stored.mark_unchanged();
        loop {
            let reader = rows.clone();
            let page = tokio::task::spawn_blocking(move || reader.since(after, PAGE)).await;
            let page = match page.map_err(|e| e.to_string()).and_then(|page| page.map_err(|e| e.to_string()))
            {
                Ok(page) => page,
                Err(error) => return tracing::error!(error, "what a client follows could not be read"),
            };
            for row in &page {
                after = R::id(row);
                if rows.is_wanted(row) && lines.send(ndjson(row)).await.is_err() {
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
