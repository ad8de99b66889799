//! The daemon's HTTP side: the JSON API, metrics and a page for people on one listener; files and
//! reports for nodes on another, on the bridge's own address.
//!
//! The rest of the daemon is reached through two traits, [`Appliance`] and [`Images`]; the documents of the answers
//! are in [`documents`].

mod arriving;
mod carousel;
pub mod client;
mod conditions;
mod console;
#[cfg(test)]
mod debugging_tests;
pub mod documents;
mod engine;
mod events;
mod failure;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hold;
mod images;
mod kernels;
mod listener;
mod metrics;
mod page;
mod places;
mod range;
mod rates;
mod read;
mod report;
mod rescue;
mod session;
mod shared;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod trace;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use futures_util::future::BoxFuture;
use pxe_contract::paths::{self, node};
use tokio::sync::mpsc;

use crate::host::trace::{TraceError, Wanted};
use crate::machines::Machines;
use crate::machines::console::Consoles;
use crate::machines::holds::Holds;
use crate::machines::rescue::Rescues;
use crate::machines::timeline::Timeline;
use crate::nodes::trust::Trust;
use crate::nodes::workload::fleet::Fleet;
use crate::provision::image::{ImageSource, KernelList, KernelRecord, NewKernel};
use crate::provision::storage::Storage;
use crate::serve::carousel::Carousel;
use crate::serve::files::Files;
use documents::{Collected, FileEntry, Image, Lease, Profile, Progress, Reloaded, Status, Workload};

pub use failure::{Failure, Kind};
pub use listener::{serve, serve_tls};
pub use metrics::{KernelMeasures, Measures};
pub use places::{Connections, PER_NODE};
pub use rates::Rates;

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
    /// Applies a changed configuration file.
    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, Failure>>;
}

/// The store of imported images.
pub trait Images: Send + Sync + 'static {
    fn list(&self) -> Result<Vec<Image>, Failure>;
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
    /// Bytes of files that went out over HTTP.
    pub http_sent: Arc<AtomicU64>,
    pub trust: Trust,
    pub carousel: Carousel,
    pub rates: Rates,
}

/// What the API needs.
#[derive(Clone)]
pub struct ApiState {
    pub boot: BootState,
    pub appliance: Arc<dyn Appliance>,
    pub images: Arc<dyn Images>,
}

/// Routes of the listener on the bridge's address.
pub fn boot_router(state: BootState) -> Router {
    let own_initrd = format!("/{}", paths::Generated::Node("{mac}"));
    Router::new()
        .merge(files::routes())
        .route(&own_initrd, get(session::initrd))
        .route(node::SESSION, post(session::begin).layer(DefaultBodyLimit::max(session::BODY_MAX)))
        .route(node::REPORT, post(report::report).layer(DefaultBodyLimit::max(report::BODY_MAX)))
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
        .with_state(state)
}

/// Routes of the `[api] listen` listener.
pub fn api_router(state: ApiState) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics::metrics))
        .route("/api/status", get(read::status))
        .route("/api/nodes", get(read::nodes))
        .route("/api/nodes/{name}", get(read::node))
        .route("/api/nodes/{name}/why", get(read::why))
        .route("/api/why", get(read::all_why))
        .route("/api/nodes/{name}/hold", post(hold::hold).delete(hold::release))
        .route("/api/nodes/{name}/rescue", get(rescue::way_in))
        .route("/api/nodes/{name}/console", get(console::console))
        .route("/api/nodes/{name}/logs", get(console::logs))
        .route("/api/nodes/{name}/trace", get(trace::trace))
        .route("/api/leases", get(read::leases))
        .route("/api/files", get(read::files))
        .route("/api/profiles", get(read::profiles))
        .route("/api/workloads", get(read::workloads))
        .route("/api/events", get(events::events))
        .route("/api/images", get(images::list).post(images::add))
        .route("/api/images/gc", post(images::collect))
        // A reference has slashes in it.
        .route("/api/images/{*reference}", delete(images::remove))
        .route("/api/kernels", get(kernels::list).post(kernels::add))
        .route("/api/kernels/{name}", delete(kernels::remove))
        .route("/api/default-kernel", put(kernels::set_default))
        .route("/api/reload", post(read::reload))
        .merge(files::root_route().with_state(state.boot.clone()))
        .fallback(failure::no_such_route)
        .method_not_allowed_fallback(failure::method_not_allowed)
        .with_state(state)
}
