//! The tokens' requests.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::NoContent;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::documents::NewToken;
use super::door::By;
use super::{ApiState, Failure, Kind};
use crate::operate::access::{AddTokenError, Role, Token};
use crate::operate::audit::Did;

/// The body of `POST /api/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WantedToken {
    pub name: String,
    pub role: Role,
    /// Seconds; without it, the token is valid for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Json<Vec<Token>> {
    Json(state.access.tokens.list())
}

pub(super) async fn add(
    State(state): State<ApiState>,
    by: By,
    wanted: Result<Json<WantedToken>, JsonRejection>,
) -> Result<Json<NewToken>, Failure> {
    const HINT: &str = "send {\"name\": \"NAME\", \"role\": \"viewer\", \"lifetime\": SECONDS}";
    let Json(wanted) = wanted.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let now = Timestamp::now();
    let expires = match wanted.lifetime {
        None => None,
        Some(0) => return Err(Failure::new(Kind::Invalid, "a lifetime of 0 s", HINT)),
        Some(seconds) => {
            let end = now.checked_add(Duration::from_secs(seconds));
            Some(end.map_err(|_| Failure::new(Kind::Invalid, "that is beyond all calendars", HINT))?)
        }
    };
    let tokens = state.access.tokens.clone();
    let made = tokio::task::spawn_blocking(move || tokens.add(&wanted.name, wanted.role, expires, now)).await;
    let (token, secret) = made.map_err(Failure::internal)?.map_err(|error| match &error {
        AddTokenError::Name(_) => Failure::new(Kind::Invalid, error.to_string(), "name who will use it"),
        AddTokenError::Taken(_) => {
            Failure::new(Kind::Conflict, error.to_string(), "remove that one first, or name another")
        }
        AddTokenError::Write(_) => Failure::internal(error),
    })?;
    by.did(Did::new("token.add").on(&token.name).after(&token)).await;
    Ok(Json(NewToken { token: token.clone(), secret: secret.to_string() }))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<NoContent, Failure> {
    let access = state.access.clone();
    let wanted = name.clone();
    let removed = tokio::task::spawn_blocking(move || {
        let removed = access.tokens.remove(&wanted);
        // Logins made with it end, too.
        access.logins.end(&wanted);
        removed
    });
    match removed.await.map_err(Failure::internal)?.map_err(Failure::internal)? {
        Some(token) => {
            by.did(Did::new("token.rm").on(name).before(token)).await;
            Ok(NoContent)
        }
        None => {
            let error = format!("there is no token {name}");
            Err(Failure::new(Kind::NotFound, error, "`bridgehead token list` has them"))
        }
    }
}
