//! The daemon's HTTP side: the JSON API, metrics and a page for people on one listener; files and
//! reports for nodes on another, on the bridge's own address.
//!
//! The rest of the daemon is reached through two traits, [`Appliance`] and [`Images`]; the documents of the answers
//! are in [`documents`].

mod arriving;
mod audit;
mod carousel;
pub mod client;
mod conditions;
mod console;
#[cfg(test)]
mod debugging_tests;
pub mod documents;
mod door;
#[cfg(test)]
mod door_tests;
mod engine;
mod events;
mod facts;
mod failure;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod hold;
mod hosts;
mod images;
mod kernels;
mod launches;
#[cfg(test)]
mod launches_tests;
mod listener;
mod login;
mod metrics;
mod nodes;
#[cfg(test)]
mod nodes_tests;
mod openapi;
pub mod page;
pub mod people;
mod places;
mod power;
#[cfg(test)]
mod power_tests;
mod range;
mod rates;
mod read;
mod report;
mod rescue;
mod routes;
mod session;
mod shared;
mod storage;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokens;
mod trace;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use pxe_common::Mac;
use pxe_contract::paths::{self, node};
use tokio::sync::mpsc;

use crate::config::Node;
use crate::host::trace::{TraceError, Wanted};
use crate::machines::Machines;
use crate::machines::console::Consoles;
use crate::machines::facts::Known;
use crate::machines::holds::Holds;
use crate::machines::kept::{Done, Order, OrderError};
use crate::machines::rescue::Rescues;
use crate::machines::timeline::Timeline;
use crate::nodes::trust::Trust;
use crate::nodes::workload::fleet::Fleet;
use crate::operate::launch::Launches;
use crate::operate::power::Powers;
use crate::provision::image::{ImageSource, KernelList, KernelRecord, NewKernel};
use crate::provision::storage::Storage;
use crate::serve::carousel::Carousel;
use crate::serve::files::Files;
use documents::{Asked, Collected, FileEntry, Image, Lease, Profile, Progress, Reloaded, Status, Workload};

pub use crate::operate::launch::order::Order as LaunchOrder;
pub use door::Access;
pub use failure::{Failure, Kind};
pub use hosts::Hosts;
pub use launches::{failure as launch_failure, refused as launch_refused};
pub use listener::{serve, serve_tls};
pub use metrics::{KernelMeasures, Measures};
pub use places::{Connections, PER_NODE};
pub use rates::Rates;
pub use routes::api_router;

/// The daemon's state and its reload. Methods may read from disk: they are called where that blocks nobody.
pub trait Appliance: Send + Sync + 'static {
    fn status(&self) -> Status;
    /// The numbers behind `/metrics`.
    fn measures(&self) -> Measures;
    fn leases(&self) -> Result<Vec<Lease>, Failure>;
    /// The files below the files root.
    fn files(&self) -> Result<Vec<FileEntry>, Failure>;
    fn profiles(&self) -> Vec<Profile>;
    fn workloads(&self) -> Vec<Workload>;
    /// Starts a packet trace, which arrives in pieces.
    fn trace(&self, wanted: Wanted) -> Result<mpsc::Receiver<Bytes>, TraceError>;
    /// Machines that are kept beside those of the file, by name.
    fn kept(&self) -> Vec<Arc<Node>>;
    /// The machine, if it is declared anywhere.
    fn node(&self, mac: Mac) -> Option<Arc<Node>>;
    /// Changes them. All of it is done, and on disk, or nothing.
    fn order(&self, order: Order) -> BoxFuture<'_, Result<Done, OrderError>>;
    /// Begins a launch, or says what it would be. Steps of bringing its image in are sent to `progress`, whose receiver may
    /// have been dropped.
    fn launch(
        &self,
        order: LaunchOrder,
        dry: bool,
        by: String,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Asked, Failure>>;
    /// Begins a launch that brings back what was before another.
    fn undo(&self, id: u64, by: String) -> BoxFuture<'_, Result<Asked, Failure>>;
    /// Applies a changed configuration file.
    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, Failure>>;
}

/// The store of imported images.
pub trait Images: Send + Sync + 'static {
    fn list(&self) -> Result<Vec<Image>, Failure>;
    /// Where sent files are kept until they are imported.
    fn work(&self) -> PathBuf;
    /// Imports an image; its steps are sent to `progress`, whose receiver may have been dropped.
    fn add(
        &self,
        source: ImageSource,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Image, Failure>>;
    fn remove(&self, reference: String) -> BoxFuture<'_, Result<(), Failure>>;
    /// Deletes blobs that nothing refers to.
    fn collect(&self) -> BoxFuture<'_, Result<Collected, Failure>>;
    fn kernels(&self) -> KernelList;
    fn add_kernel(&self, new: NewKernel) -> BoxFuture<'_, Result<KernelRecord, Failure>>;
    /// Sets the kernel for images without their own; `None` is the stock one.
    fn default_kernel(&self, name: Option<&str>) -> Result<(), Failure>;
    fn remove_kernel(&self, name: &str) -> Result<(), Failure>;
}

/// What nodes need.
#[derive(Clone)]
pub struct BootState {
    pub files: Arc<dyn Files>,
    pub machines: Machines,
    pub timeline: Timeline,
    pub consoles: Consoles,
    /// The output of their workloads.
    pub logs: Consoles,
    pub holds: Holds,
    pub rescues: Rescues,
    pub storage: Storage,
    pub fleet: Fleet,
    /// Bytes of files sent over HTTP.
    pub http_sent: Arc<AtomicU64>,
    pub trust: Trust,
    pub carousel: Carousel,
    pub rates: Rates,
    pub facts: Known,
    pub fact_rates: Rates,
    /// Whether a machine boots more than its facts.
    pub is_something: Arc<dyn Fn(Mac) -> bool + Send + Sync>,
}

/// What the API needs.
#[derive(Clone)]
pub struct ApiState {
    pub boot: BootState,
    pub appliance: Arc<dyn Appliance>,
    pub images: Arc<dyn Images>,
    pub access: Access,
    pub powers: Powers,
    pub live: page::Live,
    pub launches: Launches,
}

/// Routes of the listener on the bridge's address.
pub fn boot_router(state: BootState) -> Router {
    let own_initrd = format!("/{}", paths::Generated::Node("{mac}"));
    Router::new()
        .merge(files::routes())
        .route(&own_initrd, get(session::initrd))
        .route(node::SESSION, post(session::begin).layer(DefaultBodyLimit::max(session::BODY_MAX)))
        .route(node::REPORT, post(report::report).layer(DefaultBodyLimit::max(report::BODY_MAX)))
        .route(node::FACTS, post(facts::take).layer(DefaultBodyLimit::max(facts::BODY_MAX)))
        .route(node::ENROLLED, post(facts::enrolled).layer(DefaultBodyLimit::max(report::BODY_MAX)))
        .route(node::HELD, post(hold::stopped).layer(DefaultBodyLimit::max(report::BODY_MAX)))
        .route(node::FAILED, post(hold::failed).layer(DefaultBodyLimit::max(report::BODY_MAX)))
        .route(node::CONSOLE, post(console::take_console).layer(DefaultBodyLimit::max(console::BODY_MAX)))
        .route(node::LOGS, post(console::take_logs).layer(DefaultBodyLimit::max(console::BODY_MAX)))
        .route(node::ENGINE, post(engine::papers).layer(DefaultBodyLimit::max(engine::BODY_MAX)))
        .route(node::STORAGE_KEYS, post(storage::keys).layer(DefaultBodyLimit::max(storage::BODY_MAX)))
        .route(
            &paths::round("{sha256}"),
            post(carousel::ask).layer(DefaultBodyLimit::max(carousel::BODY_MAX)),
        )
        .fallback(failure::no_such_route)
        .method_not_allowed_fallback(failure::method_not_allowed)
        .layer(middleware::from_fn(arriving::whole))
        .layer(middleware::map_response(failure::as_document))
        .with_state(state)
}
