//! What all pages share: head, navigation, footer, and who looks.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use maud::{DOCTYPE, Markup, html};

use super::assets::url;
use super::live::Position;
use super::mark::symbols;
use crate::api::ApiState;
use crate::api::door::By;
use crate::operate::access::{Caller, Role};

/// Scripts and styles are files of ours, nothing is inline, and text does not become markup (`require-trusted-types-for`).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// Pages of the navigation, with the least role of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Machines,
    Launches,
    Images,
    Audit,
    Tokens,
}

impl Place {
    const ALL: [Self; 6] =
        [Self::Overview, Self::Machines, Self::Launches, Self::Images, Self::Audit, Self::Tokens];

    fn is(self) -> (&'static str, &'static str, Role) {
        match self {
            Self::Overview => ("/", "Overview", Role::Viewer),
            Self::Machines => ("/machines", "Machines", Role::Viewer),
            Self::Launches => ("/launches", "Launches", Role::Viewer),
            Self::Images => ("/images", "Images", Role::Viewer),
            Self::Audit => ("/audit", "Audit", Role::Admin),
            Self::Tokens => ("/tokens", "Tokens", Role::Admin),
        }
    }
}

/// Who looks, and from where on the stream tells what changes.
pub(in crate::api) struct Context {
    pub(super) caller: Caller,
    position: Position,
}

impl Context {
    pub(super) fn may(&self, role: Role) -> bool {
        self.caller.role >= role
    }
}

impl FromRequestParts<ApiState> for Context {
    type Rejection = Infallible;

    /// Before anything of the page is read.
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Infallible> {
        let By { caller, .. } = By::from_request_parts(parts, state).await?;
        Ok(Self { caller, position: state.live.position() })
    }
}

/// What keeps a page up to date.
#[derive(Clone, Debug, Default)]
pub(super) struct Follows {
    /// Only changes of this machine, with its console.
    pub(super) of: Option<String>,
    /// What a patch can't say: when to fetch the page's live parts again.
    pub(super) again: Option<Again>,
}

/// When the live parts of a page are fetched again, at most once a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// When machines come or go.
    Others,
    /// And when one that is shown, or could be, changes.
    Changes,
}

/// A whole page.
pub(super) fn page(
    context: &Context,
    place: Option<Place>,
    title: &str,
    follows: Option<&Follows>,
    body: &Markup,
) -> Response {
    let again = follows.and_then(|follows| follows.again).map(|again| match again {
        Again::Others => "others",
        Again::Changes => "changes",
    });
    let position = follows.map(|_| context.position.to_string());
    let of = follows.and_then(|follows| follows.of.as_deref());
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, true))
            body data-after=[position] data-of=[of] data-again=[again] {
                a.skip href="#main" { "Skip to the content" }
                (symbols())
                header.top {
                    a.brand href="/" { img src=(url("icon.svg")) alt="" width="20" height="20"; "Bridgehead" }
                    nav aria-label="Pages" { ul {
                        @for link in Place::ALL {
                            @let (path, name, least) = link.is();
                            @if context.may(least) {
                                li { a href=(path) aria-current=[(place == Some(link)).then_some("page")] { (name) } }
                            }
                        }
                    } }
                    p.link id="link" role="status" { }
                    (who(context))
                }
                main id="main" tabindex="-1" { (body) }
            }
        }
    };
    with_policy(markup)
}

fn who(context: &Context) -> Markup {
    html! {
        .who {
            span { (context.caller.who) ", " (context.caller.role) }
            form.inline data-method="DELETE" data-path="/api/login" data-then="/" {
                button.plain type="submit" { "Log out" }
            }
        }
    }
}

pub(super) fn head(title: &str, with_script: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · Bridgehead" }
            link rel="icon" type="image/svg+xml" href=(url("icon.svg"));
            link rel="stylesheet" href=(url("page.css"));
            @if with_script { script type="module" src=(url("page.js")) {} }
        }
    }
}

pub(super) fn with_policy(markup: Markup) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (
            HeaderName::from_static("permissions-policy"),
            HeaderValue::from_static("camera=(), microphone=(), geolocation=()"),
        ),
    ];
    (headers, markup.into_string()).into_response()
}

/// A part of a page that is fetched again where a patch does not say enough.
pub(super) fn part(id: &str, body: &Markup) -> Markup {
    html! { div id=(id) data-live { (body) } }
}
