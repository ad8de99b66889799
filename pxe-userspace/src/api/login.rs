//! Logins of browsers: a link that is valid once, and a cookie.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::IntoResponse as _;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use super::documents::Invitation;
use super::door::{By, texts};
use super::openapi::{Empty, ToPage, Written};
use super::people::Came;
use super::{ApiState, Failure, Kind};
use crate::operate::access::{Role, SESSION_LIFETIME};
use crate::operate::audit::Did;

/// Where a link leads.
pub(super) const PATH: &str = "/login";

/// A cookie with the first of these names can only be set over TLS, and not by another program on the host.
const COOKIES: [&str; 2] = ["__Host-bridgehead", "bridgehead"];

/// The body of `POST /api/login`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Wanted {
    role: Option<Role>,
}

pub(super) async fn invite(
    State(state): State<ApiState>,
    by: By,
    wanted: Result<Option<Json<Wanted>>, JsonRejection>,
) -> Result<Json<Invitation>, Failure> {
    let wanted = wanted
        .map_err(|e| Failure::new(Kind::Invalid, e.body_text(), "send {\"role\": \"viewer\"}, or nothing"))?;
    // A browser sends its cookies to every program that listens on the same host, so the least role is safer.
    let role = wanted.and_then(|Json(wanted)| wanted.role).unwrap_or(Role::Viewer);
    if role > by.caller.role {
        let error = format!("{} is {}, and lets nobody in as {role}", by.caller.who, by.caller.role);
        return Err(Failure::new(Kind::Forbidden, error, "name a lesser role"));
    }
    if state.access.pages.is_empty() {
        let hint = "[api] listen = \"127.0.0.1:7480\" has one";
        return Err(Failure::new(
            Kind::Conflict,
            "the page is served by TCP, and there is no listener",
            hint,
        ));
    }
    let invited = state.access.logins.invite(&by.caller, role, Timestamp::now());
    let links =
        state.access.pages.iter().map(|page| format!("{page}{PATH}?code={}", *invited.code)).collect();
    by.did(Did::new("login.invite").after(role)).await;
    Ok(Json(Invitation { role, links, expires: invited.expires }))
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Shown {
    code: String,
}

/// Trades the code for a cookie, and redirects to the page.
pub(super) async fn enter(
    State(state): State<ApiState>,
    shown: Result<Query<Shown>, QueryRejection>,
    method: Method,
    Extension(came): Extension<Came>,
) -> Result<Written<ToPage>, Failure> {
    let hint = "`bridgehead login` prints another";
    let refused = || Failure::new(Kind::Forbidden, "this link was used, or is too old", hint);
    let Query(Shown { code }) = shown.map_err(|_| refused())?;
    // A HEAD request does not use up the link.
    if method != Method::GET {
        return Ok(Written::new(StatusCode::NO_CONTENT.into_response()));
    }
    let logins = state.access.logins.clone();
    let entered = tokio::task::spawn_blocking(move || logins.enter(&code, Timestamp::now())).await;
    let (caller, secret) = entered.map_err(Failure::internal)?.ok_or_else(refused)?;
    let Came::Tcp { tls, peer, .. } = came else { return Err(refused()) };
    let caller = crate::operate::access::Caller { from: Some(peer.ip().to_canonical()), ..caller };
    let role = caller.role;
    By::new(caller, state.access.audit.clone()).did(Did::new("login.enter").after(role)).await;
    let (name, secure) = if tls { (COOKIES[0], "; Secure") } else { (COOKIES[1], "") };
    let age = SESSION_LIFETIME.as_secs();
    let cookie = format!("{name}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}", *secret);
    let cookie = HeaderValue::from_str(&cookie).map_err(Failure::internal)?;
    let headers = [(header::SET_COOKIE, cookie), (header::LOCATION, HeaderValue::from_static("/"))];
    Ok(Written::new((StatusCode::SEE_OTHER, headers).into_response()))
}

/// Ends the browser's session.
pub(super) async fn leave(
    State(state): State<ApiState>,
    by: By,
    headers: HeaderMap,
    Extension(came): Extension<Came>,
) -> Result<Written<Empty>, Failure> {
    let tls = matches!(came, Came::Tcp { tls: true, .. });
    let gone = cookie(&headers, tls).map(str::to_owned);
    let logins = state.access.logins.clone();
    let left = tokio::task::spawn_blocking(move || gone.iter().for_each(|secret| logins.leave(secret)));
    left.await.map_err(Failure::internal)?;
    by.did(Did::new("login.leave")).await;
    let (name, secure) = if tls { (COOKIES[0], "; Secure") } else { (COOKIES[1], "") };
    let cookie = format!("{name}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0{secure}");
    let cookie = HeaderValue::from_str(&cookie).map_err(Failure::internal)?;
    Ok(Written::new((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()))
}

/// The session's secret that a browser sends.
pub(super) fn cookie(headers: &HeaderMap, tls: bool) -> Option<&str> {
    let wanted = if tls { COOKIES[0] } else { COOKIES[1] };
    let pairs = texts(headers, &header::COOKIE).flat_map(|line| line.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == wanted).then_some(value))
}
