//! The page for browsers: documents that the daemon writes whole, and a little script that puts in what changes.
//!
//! Read it in this order: `frame` (what all pages share), the pages themselves (`overview`, `machines`,
//! `machine`, `launches`, `images`, `people`), then what keeps them up to date: `live` (changes, rendered once
//! for everybody) and `stream` (one viewer's stream of them). `mark`, `racks` and `chart` draw.
//!
//! Nothing here changes anything. Buttons ask the JSON API, with the browser's login, and the API says who may. Docs:
//! docs/page.md and docs/decisions/027-page.md.

mod assets;
mod chart;
mod document;
mod frame;
pub(super) mod images;
pub(super) mod launches;
mod live;
pub(super) mod machine;
pub(super) mod machines;
mod mark;
pub(super) mod overview;
mod own;
pub(super) mod people;
mod racks;
mod refusal;
mod rows;
mod site;
pub(super) mod stream;
#[cfg(test)]
mod tests;
mod words;

pub use live::{Live, watch};

pub(super) use assets::{PATH as ASSET, asset, is_asset};
pub(super) use own::OwnApi;
pub(super) use refusal::{is_asked_for, refusal};
