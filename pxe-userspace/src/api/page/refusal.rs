//! Errors as pages, for browsers. Whoever asks for JSON, or for nothing in particular, gets the document.

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use maud::{DOCTYPE, html};
use pxe_contract::failure::ErrorDocument;

use super::frame::{head, with_policy};

/// The longest document of an error.
const DOCUMENT_MAX: usize = 64 * 1024;

/// Whether somebody opens the address in a browser, and reads the answer.
pub(in crate::api) fn is_asked_for(request: &Request) -> bool {
    let accepts = request.headers().get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    request.method() == Method::GET && accepts.into_iter().any(|accept| accept.contains("text/html"))
}

/// A page in place of an error's document.
pub(in crate::api) async fn refusal(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut head_of, body) = response.into_parts();
    let document = to_bytes(body, DOCUMENT_MAX).await.unwrap_or_default();
    let document = serde_json::from_slice(&document)
        .unwrap_or_else(|_| ErrorDocument { error: status.to_string(), hint: String::new() });
    let page = written(status, &document);
    head_of.headers.remove(header::CONTENT_LENGTH);
    head_of.headers.remove(header::CONTENT_TYPE);
    let mut page = page.into_response();
    *page.status_mut() = status;
    head_of.headers.extend(page.headers_mut().drain().filter_map(|(name, value)| Some((name?, value))));
    *page.headers_mut() = head_of.headers;
    page
}

fn written(status: StatusCode, document: &ErrorDocument) -> Response {
    let (title, words, hint) = match status {
        StatusCode::UNAUTHORIZED => ("Log in", "This browser is not logged in.", None),
        StatusCode::NOT_FOUND => ("Not here", &*document.error, Some(&document.hint)),
        StatusCode::FORBIDDEN => ("Not for you", &*document.error, Some(&document.hint)),
        _ => ("It did not work", &*document.error, Some(&document.hint)),
    };
    with_policy(html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, false))
            body.alone {
                main id="main" {
                    h1 { (title) }
                    p { (words) }
                    @match hint {
                        Some(hint) => {
                            p.quiet { (hint) }
                            p { a href="/" { "To the overview" } }
                        }
                        None => {
                            p { "On the appliance, as root or in the group " code { "bridgehead" } ":" }
                            pre.command { "bridgehead login" }
                            p { "Open the link that it prints, in this browser. It is valid once; "
                                code { "--role operator" } " and " code { "--role admin" } " let you do more than look." }
                        }
                    }
                }
            }
        }
    })
}
