//! A machine's packet trace, as it is captured.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use futures_util::StreamExt as _;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;

use super::door::By;
use super::openapi::{Pcapng, Written};
use super::{ApiState, Failure, Kind, read};
use crate::host::trace::{SNAP_LENGTH_MAX, TraceError, Wanted};
use crate::operate::audit::Did;

/// Bytes that hold an Ethernet header and those of IP and UDP.
const SNAP_LENGTH_MIN: usize = 64;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Options {
    /// Anything but 0: continue after the boot's end.
    #[serde(default)]
    follow: u8,
    /// Bytes kept of each frame.
    #[schemars(range(min = SNAP_LENGTH_MIN, max = SNAP_LENGTH_MAX))]
    snap_length: Option<usize>,
}

pub(super) async fn trace(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Written<Pcapng>, Failure> {
    const HINT: &str = "the query takes follow=1 and snap-length=BYTES";
    let Query(options) = options.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let snap_length = options.snap_length.unwrap_or(SNAP_LENGTH_MAX);
    if !(SNAP_LENGTH_MIN..=SNAP_LENGTH_MAX).contains(&snap_length) {
        let error = format!("snap-length={snap_length}: not from {SNAP_LENGTH_MIN} to {SNAP_LENGTH_MAX}");
        return Err(Failure::new(Kind::Invalid, error, HINT));
    }
    // A machine that was never seen can be waited for by its MAC.
    let mac = match name.parse::<Mac>() {
        Ok(mac) => mac,
        Err(_) => read::find(&state.boot.machines, &name)?.mac,
    };
    let wanted = Wanted { mac, follow: options.follow != 0, snap_length };
    let pieces = state.appliance.trace(wanted)?;
    by.did(Did::new("node.trace").on(mac.to_string())).await;
    let pieces = ReceiverStream::new(pieces).map(Ok::<_, std::convert::Infallible>);
    Ok(Written::<Pcapng>::of(Body::from_stream(pieces)))
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::TooMany => Self::new(Kind::Conflict, error.to_string(), "end one of them"),
            TraceError::Socket(_) => {
                Self::new(Kind::Unavailable, error.to_string(), "the daemon needs CAP_NET_RAW")
            }
        }
    }
}
