//! Internals of this module for `fuzz/`.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, Uri, Version};
use jiff::Timestamp;

use super::conditions;
use super::hosts::{self, Hosts};
use super::range::Wanted;

/// What a request's head comes to.
#[derive(Debug)]
pub struct Judged {
    /// Whom it is for, where it may be asked.
    pub host: Option<String>,
    /// Its conditions hold, for some file.
    pub holds: bool,
    /// The client has that file.
    pub unchanged: bool,
}

/// Judges a head of HTTP/1.1 to an appliance of one name and one address.
pub fn head(uri: &Uri, headers: &HeaderMap) -> Judged {
    let (address, etag) = ([10, 77, 0, 1].into(), "\"ab-1\"");
    let ours = Hosts { addresses: vec![address], names: vec!["appliance.example".to_owned()] };
    let own = ours.judge(Version::HTTP_11, uri, headers, address).ok().flatten();
    let allowed = hosts::source(headers, own.as_ref()).is_ok();
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let modified = Some(Timestamp::UNIX_EPOCH);
    if let Some(validator) = header(axum::http::header::IF_RANGE) {
        conditions::is_current(validator, etag, modified);
    }
    Judged {
        host: own.filter(|_| allowed).map(|own| own.host().to_owned()),
        holds: conditions::hold(&header, etag, modified),
        unchanged: conditions::is_unchanged(&header, etag, modified),
    }
}

/// The part that a Range header asks for.
pub fn range(header: &str, len: u64) -> Option<Range<u64>> {
    match Wanted::parse(header, len) {
        Wanted::Part(part) => Some(part),
        Wanted::Whole | Wanted::Unsatisfiable => None,
    }
}
