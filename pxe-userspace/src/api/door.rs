//! Authentication of the API: who asks, and from where. After it, each route demands its least role (`routes`).

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::as_document;
use super::hosts::{self, Hosts, Source};
use super::people::Came;
use super::{Failure, Kind, login, page};
use crate::operate::access::{Caller, Logins, Tokens};
use crate::operate::audit::{Audit, Did};

/// The most streams (`follow=1`) at a time.
const FOLLOWERS_MAX: usize = 128;

/// For every answer but pages, which have one of their own: a document or a file that is served needs neither scripts nor
/// styles.
const POLICY: &str = "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// For every answer.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The data that authentication needs. Cloning it is cheap.
#[derive(Clone)]
pub struct Access {
    pub tokens: Tokens,
    pub logins: Logins,
    pub audit: Audit,
    /// The names under which the API may be reached over TCP.
    pub hosts: Arc<Hosts>,
    /// Addresses of the page, `http://127.0.0.1:7480`; empty without TCP.
    pub pages: Arc<[String]>,
    followers: Arc<Semaphore>,
}

impl Access {
    pub fn new(tokens: Tokens, logins: Logins, audit: Audit, hosts: Hosts, pages: Vec<String>) -> Self {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { tokens, logins, audit, hosts: Arc::new(hosts), pages: pages.into(), followers }
    }

    /// Takes one of the places for streams, to be held as long as the stream.
    pub(super) fn follow(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.followers.clone().try_acquire_owned().map_err(|_| {
            let error = format!("{FOLLOWERS_MAX} others follow something already");
            Failure::new(Kind::Unavailable, error, "end one of them, or ask without follow=1")
        })
    }
}

/// Admits a request, with its [`Caller`], or refuses it. Adds the security headers for browsers to the answer.
pub(super) async fn enter(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let is_browser = page::is_asked_for(&request);
    let mut response = match admit(&access, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            as_document(next.run(request).await).await
        }
        Err(refused) => {
            let asks_for_token = refused.kind == Kind::Unknown;
            let mut response = refused.into_response();
            if asks_for_token {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // An unauthenticated client does not keep its connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    if is_browser {
        response = page::refusal(response).await;
    }
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The caller; `None` only for a browser that opens its login link, or fetches what pages look like.
fn admit(access: &Access, request: &Request) -> Result<Option<Caller>, Failure> {
    let came = request.extensions().get::<Came>().expect("the listener says how each request came");
    let headers = request.headers();
    let (local, peer, tls, known) = match came {
        Came::Socket { uid } => {
            hosts::source(headers, None)?;
            return Ok(Some(Caller::local(*uid)));
        }
        Came::Tcp { local, peer, tls, known } => (local, peer, tls, known),
    };
    let own = access.hosts.judge(request.version(), request.uri(), headers, local.ip())?;
    let source = hosts::source(headers, own.as_ref())?;
    let now = Timestamp::now();
    let caller = if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        // If there is a token, the cookie is not tried.
        bearer(authorization).and_then(|token| access.tokens.judge(token, now))
    } else if let Some(caller) =
        login::cookie(headers, *tls).and_then(|cookie| access.logins.judge(cookie, now))
    {
        if !is_reading(request.method()) && source != Source::OwnPage {
            let error = "a browser's change has to come from the API's own page";
            return Err(Failure::new(Kind::Forbidden, error, "a program sends a token"));
        }
        Some(caller)
    } else {
        None
    };
    match caller {
        Some(caller) => {
            known.set();
            Ok(Some(Caller { from: Some(peer.ip().to_canonical()), ..caller }))
        }
        None if request.uri().path() == login::PATH => Ok(None),
        // They are in every copy of the program, and the page that says how to log in looks like the others.
        None if is_reading(request.method()) && page::is_asset(request.uri().path()) => Ok(None),
        // A short answer is enough without a token.
        None => Err(Failure::new(Kind::Unknown, "a token is needed", "see `bridgehead token add`")),
    }
}

fn bearer(authorization: &HeaderValue) -> Option<&str> {
    let (scheme, token) = authorization.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a request changes nothing.
pub(super) fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Who makes a change, for the audit.
#[derive(Clone)]
pub(super) struct By {
    pub(super) caller: Caller,
    audit: Audit,
    told: Arc<std::sync::atomic::AtomicBool>,
}

impl By {
    pub(super) fn new(caller: Caller, audit: Audit) -> Self {
        Self { caller, audit, told: Arc::default() }
    }

    /// Records a change. It is on disk when this returns.
    pub(super) async fn did(&self, did: Did) {
        self.later();
        let (audit, caller) = (self.audit.clone(), self.caller.clone());
        let kept = tokio::task::spawn_blocking(move || audit.record(&caller, did, Timestamp::now()));
        if let Err(error) = kept.await {
            tracing::error!(%error, "an entry of the audit was not kept");
        }
    }

    /// The change will be recorded later, when it is made.
    pub(super) fn later(&self) {
        self.told.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) fn was_told(&self) -> bool {
        self.told.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().expect("each route that asks for a role has one").clone())
    }
}

/// All values of a header, as text.
pub(super) fn texts<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}
