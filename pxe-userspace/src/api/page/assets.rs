//! Style, script and icon of the pages. They are part of the program, and their URL has their digest: a browser keeps them
//! until there are others.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{Uri, header};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

use crate::api::{Failure, failure};
use crate::base::text::hex;

/// Where they are.
pub(in crate::api) const PATH: &str = "/assets/{digest}/{name}";

const PREFIX: &str = "/assets/";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, content type, contents.
const FILES: [(&str, &str, &str); 6] = [
    ("page.css", STYLE, include_str!("../../../assets/page/page.css")),
    ("page.js", SCRIPT, include_str!("../../../assets/page/page.js")),
    ("live.js", SCRIPT, include_str!("../../../assets/page/live.js")),
    ("lines.js", SCRIPT, include_str!("../../../assets/page/lines.js")),
    ("forms.js", SCRIPT, include_str!("../../../assets/page/forms.js")),
    ("icon.svg", "image/svg+xml", include_str!("../../../assets/page/icon.svg")),
];

/// Of all of them, because one script names another without a digest.
static DIGEST: LazyLock<String> = LazyLock::new(|| {
    let all =
        FILES.iter().fold(Sha256::new(), |all, (name, _, text)| all.chain_update(name).chain_update(text));
    hex(&all.finalize()[..8])
});

/// Where a file is.
pub(super) fn url(name: &str) -> String {
    debug_assert!(FILES.iter().any(|(known, ..)| *known == name), "{name}");
    format!("{PREFIX}{}/{name}", *DIGEST)
}

/// Whether a path can be one of them.
pub(in crate::api) fn is_asset(path: &str) -> bool {
    path.starts_with(PREFIX)
}

pub(in crate::api) async fn asset(
    Path((digest, name)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Failure> {
    let file = FILES.iter().find(|(known, ..)| digest == *DIGEST && *known == name);
    let Some((_, kind, text)) = file else { return Err(failure::no_such_route(uri).await) };
    let headers =
        [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((headers, *text).into_response())
}
