//! The audit, as a stream of lines.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;

use super::openapi::{Lines, Written};
use super::streams::{self, Rows};
use super::{ApiState, Failure, Kind};
use crate::operate::audit::{Audit, Entry};
use crate::store::ReadError;

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
    Ok(streams::rows(state.access.audit.clone(), wanted.after, place))
}

impl Rows for Audit {
    type Row = Entry;

    fn id(entry: &Entry) -> u64 {
        entry.id
    }
    fn since(&self, after: u64, limit: usize) -> Result<Vec<Entry>, ReadError> {
        Audit::since(self, after, limit)
    }
    fn stored(&self) -> watch::Receiver<u64> {
        self.watch()
    }
}
