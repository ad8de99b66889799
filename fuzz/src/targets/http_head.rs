//! The head of a request to the API: its host, the page that it comes from, and its conditions.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use bridgehead::api::fuzzing::{Judged, head};

/// The headers that we parse ourselves, without a library.
const NAMES: [&str; 8] = [
    "host",
    "origin",
    "sec-fetch-site",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
];

pub(crate) fn run(bytes: &[u8]) {
    let Some((target, lines)) = crate::shaped::<(&str, Vec<(u8, &[u8])>)>(bytes) else { return };
    let Ok(uri) = target.parse::<Uri>() else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_static(NAMES[usize::from(name) % NAMES.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let Judged { host, holds, unchanged } = head(&uri, &headers);
    if let Some(host) = host {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        assert!(
            ["localhost", "appliance.example", "10.77.0.1"].contains(&host.as_str()),
            "{host} is not ours"
        );
        assert!(headers.get_all("host").iter().count() < 2, "two hosts");
    }
    let any = |name: &str| headers.get(name).is_some_and(|value| value == "*");
    assert!(holds || !any("if-match"), "every file is one of all");
    assert!(unchanged || !any("if-none-match"), "every file is one of all");
}
