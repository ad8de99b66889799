//! Workloads: containers on the appliance itself, on the bridge that the machines boot from, and on the nodes that have
//! a Docker engine. They are started, watched, restarted by policy and stopped here; the engines run them.
//!
//! `schedule` chooses the nodes, [`fleet`] tracks which nodes answer, `transfer` copies images to them; `container` is
//! the same for any engine.
//!
//! A workload's failure (no engine, no image) affects only that workload: it is shown and retried.

mod address;
mod board;
mod container;
pub mod fleet;
mod identity;
mod schedule;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pxe_contract::backoff::Backoff;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::board::{Board, Key, short_of, status_of};
use self::container::{Found, NetworkSpec, Place, Spec};
use self::fleet::Fleet;
use crate::base::text;
use crate::config::{Config, Restart};
use crate::nodes::engine::Engine;

pub use self::board::{Health, WorkloadState, WorkloadStatus};
pub use self::container::WorkloadError;

/// A container that ran this long was healthy; its next failure counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// Pauses before a container that exited or failed is restarted.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How often the assignments are checked without an event: a node may have been away for too long.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Time for the engine to stop a container; the engine gives the workload 10 seconds.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A handle on the workloads. Cloning it is cheap.
#[derive(Clone)]
pub struct Workloads(Arc<Inner>);

struct Inner {
    engine: Engine,
    owner: String,
    fleet: Fleet,
    config: watch::Receiver<Arc<Config>>,
    board: Board,
    running: tokio::sync::Mutex<BTreeMap<Key, Running>>,
    /// Held while the engine's network is looked up and created, because workloads start concurrently.
    ground: tokio::sync::Mutex<()>,
}

struct Running {
    spec: Spec,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Workloads {
    /// Starts the workloads that `config` declares, and removes what an earlier run of this appliance left. The bridge
    /// must exist. Returns at once; [`Workloads::list`] shows the progress.
    pub async fn start(config: watch::Receiver<Arc<Config>>, engine: Engine, fleet: Fleet) -> Self {
        let state_dir = config.borrow().state_dir.clone();
        let state_dir = state_dir.canonicalize().unwrap_or(state_dir);
        let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
        let owner = text::hex(&digest[..6]);
        let workloads = Self(Arc::new(Inner {
            engine,
            owner,
            fleet,
            config,
            board: Board::default(),
            running: Default::default(),
            ground: Default::default(),
        }));
        workloads.apply().await;
        tokio::spawn(tidy(workloads.0.clone()));
        tokio::spawn(follow(Arc::downgrade(&workloads.0)));
        workloads
    }

    /// The status of each workload, by name and node.
    pub fn list(&self) -> Vec<WorkloadStatus> {
        self.0.board.lock().values().cloned().collect()
    }

    /// Applies a changed configuration; unchanged workloads are not touched.
    pub async fn apply(&self) {
        let inner = Arc::downgrade(&self.0);
        self.0.fleet.declare(&self.config(), move |node, docker| {
            let inner = inner.clone();
            async move {
                if let Some(inner) = inner.upgrade() {
                    inner.tidy_node(&node, &docker).await;
                }
            }
        });
        self.0.reconcile().await;
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.0.config.borrow().clone()
    }

    /// Stops and removes every container on the appliance, and the engine's network on the bridge. Must be awaited
    /// before the bridge is removed. Containers on nodes keep running: the next start finds them.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut *self.0.running.lock().await);
        let (left, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|((_, node), _)| node.is_some());
        left.values().for_each(|running| running.task.abort());
        if !ended.is_empty() {
            end(ended).await;
            self.0.remove_network().await;
        }
    }
}

impl Inner {
    /// Starts the workloads that should run and do not, and stops those that run and should not.
    async fn reconcile(self: &Arc<Self>) {
        let mut running = self.running.lock().await;
        let config = self.config.borrow().clone();
        let (fleet, decided_for) = (self.fleet.clone(), config.clone());
        let decided = match tokio::task::spawn_blocking(move || fleet.schedule(&decided_for)).await {
            Ok(Ok(schedule)) => schedule,
            Ok(Err(error)) => {
                return tracing::error!(%error, "the nodes' assignments can't be kept; nothing is changed");
            }
            Err(error) => return tracing::error!(%error, "the nodes' assignments were not made"),
        };
        let current =
            running.iter().filter_map(|((name, _), r)| Some((name.clone(), r.spec.address()?))).collect();
        let addresses = address::assign(&config, &current);
        let network = NetworkSpec { bridge: config.network.bridge.clone(), address: config.network.address };
        let mut wanted: BTreeMap<Key, Spec> = BTreeMap::new();
        for workload in &config.workloads {
            let address = addresses.get(&workload.name).copied().flatten();
            let places = match &workload.on {
                None => vec![Place::Appliance { address, network: network.clone() }],
                Some(_) => {
                    let nodes = decided.placed.get(&workload.name).into_iter().flatten();
                    nodes.map(|node| Place::Node(node.clone())).collect()
                }
            };
            for place in places {
                let spec = Spec { workload: workload.clone(), place, owner: self.owner.clone() };
                wanted.insert((workload.name.clone(), spec.node().cloned()), spec);
            }
        }
        let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut *running).into_iter().partition(|(key, r)| wanted.get(key) == Some(&r.spec));
        *running = kept;
        let here = |(_, node): &Key| node.is_none();
        let none_left = !wanted.keys().any(here) && ended.keys().any(here);
        end(ended).await;
        if none_left {
            self.remove_network().await;
        }
        self.board.lock().retain(|key, _| wanted.contains_key(key));
        for (key, spec) in wanted {
            running.entry(key.clone()).or_insert_with(|| {
                self.board.lock().insert(key, status_of(&spec));
                let cancel = CancellationToken::new();
                let task = tokio::spawn(keep(self.clone(), spec.clone(), cancel.clone()));
                Running { spec, cancel, task }
            });
        }
        for (name, why) in decided.short {
            let Some(workload) = config.workloads.iter().find(|w| w.name == name) else { continue };
            self.board.lock().insert((name, None), short_of(workload, why));
        }
        drop(running);
        for node in config.docker_nodes() {
            self.settle(&node.name);
        }
    }

    /// A node's boot is complete when everything that it shall run is running.
    fn settle(&self, node: &str) {
        let board = self.board.lock();
        let here: Vec<_> = board.values().filter(|status| status.node.as_deref() == Some(node)).collect();
        let runs =
            |status: &&WorkloadStatus| matches!(status.state, WorkloadState::Running | WorkloadState::Exited);
        if here.iter().all(runs) {
            let names: Vec<&str> = here.iter().map(|status| status.name.as_str()).collect();
            self.fleet.settled(node, &names);
        }
    }

    /// Removes containers that should no longer run there from an engine that has just come up.
    async fn tidy_node(&self, node: &str, docker: &bollard::Docker) {
        let running = self.running.lock().await;
        let wanted = |name: &str| running.contains_key(&(name.to_owned(), Some(node.to_owned())));
        match tokio::time::timeout(STOP_WITHIN, container::tidy(docker, &self.owner, wanted)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(node, %error, "containers that are not wanted there may be left")
            }
            Err(_) => {
                tracing::warn!(node, "containers that are not wanted there may be left: its engine is slow")
            }
        }
    }

    async fn remove_network(&self) {
        let removed = async {
            let docker = self.engine.connect().await?;
            container::remove_network(&docker, &self.owner).await
        };
        match tokio::time::timeout(STOP_WITHIN, removed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the workloads' network stays; the next start reuses it");
            }
            Err(_) => tracing::warn!("the Docker engine does not answer; the workloads' network stays"),
        }
    }
}

/// Reassigns workloads when a node comes or goes.
async fn follow(inner: std::sync::Weak<Inner>) {
    loop {
        let Some(fleet) = inner.upgrade().map(|inner| inner.fleet.clone()) else { return };
        let _ = tokio::time::timeout(LOOK_EVERY, fleet.changed()).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.reconcile().await;
    }
}

async fn end(ended: BTreeMap<Key, Running>) {
    for running in ended.values() {
        running.cancel.cancel();
    }
    for ((name, _), running) in ended {
        if let Err(error) = running.task.await {
            tracing::error!(workload = name, %error, "a workload's task ended badly");
        }
    }
}

/// Once, at the start: a daemon that was killed leaves its containers running.
async fn tidy(inner: Arc<Inner>) {
    // Held all the time: a reload must not declare a workload that is being removed at the moment.
    let running = inner.running.lock().await;
    let tidied = async {
        let docker = inner.engine.connect().await?;
        let here = |name: &str| running.contains_key(&(name.to_owned(), None));
        container::tidy(&docker, &inner.owner, here).await?;
        if running.keys().all(|(_, node)| node.is_some()) {
            container::remove_network(&docker, &inner.owner).await?;
        }
        Ok::<(), WorkloadError>(())
    };
    // Without an engine, none of our containers run in it, either.
    match tokio::time::timeout(STOP_WITHIN, tidied).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "not looked for containers of an earlier run"),
        Err(_) => {
            tracing::warn!("the Docker engine does not answer; containers of an earlier run may be left")
        }
    }
}

/// Runs one workload according to its policy, until cancelled.
async fn keep(inner: Arc<Inner>, spec: Spec, cancel: CancellationToken) {
    let (name, node) = (&spec.workload.name, spec.node());
    let key = (name.clone(), node.cloned());
    let mut pauses = PAUSES;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => break,
            ended = run_once(&inner, &spec, &key) => ended,
        };
        if started.elapsed() >= WELL_AFTER {
            pauses.reset();
        }
        let again = match ended {
            Ok(code) => {
                tracing::info!(workload = name, node, code, "the workload ended");
                let again = restarts_after(spec.workload.restart, code);
                let state = if again { WorkloadState::Waiting } else { WorkloadState::Exited };
                inner.board.update(&key, |status| {
                    status.set(state);
                    status.exit_code = Some(code);
                    status.restarts += u64::from(again);
                });
                again
            }
            Err(error) => {
                if matches!(error, WorkloadError::NodeAway(_)) {
                    pauses.reset();
                }
                tracing::warn!(workload = name, node, %error, "the workload does not run");
                inner.board.update(&key, |status| {
                    status.set(WorkloadState::Waiting);
                    status.error = Some(error.to_string());
                });
                true
            }
        };
        if let Some(node) = node {
            inner.settle(node);
        }
        let pause = if again { pauses.pause() } else { Duration::MAX };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    inner.board.update(&key, |status| status.set(WorkloadState::Stopping));
    let stopped = async {
        let docker = match node {
            None => inner.engine.connect().await?,
            // If the engine does not answer, the container is removed when it does.
            Some(node) => match inner.fleet.node(node).and_then(|node| node.docker()) {
                Some(docker) => docker,
                None => return Err(WorkloadError::NodeAway(node.clone())),
            },
        };
        container::stop(&docker, &spec.container_name()).await
    };
    match tokio::time::timeout(STOP_WITHIN, stopped).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(workload = name, node, %error, "the workload's container stays"),
        Err(_) => {
            tracing::warn!(workload = name, node, "the Docker engine does not answer; the container stays")
        }
    }
    inner.board.lock().remove(&key);
}

/// Starts the workload's container, or finds it running, and returns its exit code at its end.
async fn run_once(inner: &Inner, spec: &Spec, key: &Key) -> Result<i64, WorkloadError> {
    let Some(name) = spec.node() else {
        let docker = inner.engine.connect().await?;
        let image = &spec.workload.image;
        let id = container::image_id(&docker, image).await?;
        let id = id.ok_or_else(|| WorkloadError::NoImage { image: image.clone() })?;
        return run_in(inner, &docker, spec, key, &id).await;
    };
    let away = || WorkloadError::NodeAway(name.clone());
    let node = inner.fleet.node(name).ok_or_else(away)?;
    if node.docker().is_none() {
        inner.board.update(key, |status| {
            status.set(WorkloadState::Waiting);
            status.error = Some(away().to_string());
        });
    }
    let docker = node.up().await;
    inner.board.update(key, |status| {
        status.set(WorkloadState::Starting);
        status.address = inner.fleet.address(name);
    });
    let ran = async {
        let id = {
            let _alone = node.loading.lock().await;
            transfer::bring(&inner.engine, &docker, &spec.workload.image).await?
        };
        run_in(inner, &docker, spec, key, &id).await
    };
    tokio::select! {
        ran = ran => ran,
        () = node.down() => Err(away()),
    }
}

async fn run_in(
    inner: &Inner,
    docker: &bollard::Docker,
    spec: &Spec,
    key: &Key,
    image_id: &str,
) -> Result<i64, WorkloadError> {
    let found = {
        let _alone = inner.ground.lock().await;
        let network = container::join(docker, spec).await?;
        container::find_or_create(docker, spec, image_id, &network).await?
    };
    let container = spec.container_name();
    match found {
        Found::Running => tracing::info!(workload = spec.workload.name, "the workload runs already"),
        // It exited while no daemon was watching.
        Found::Exited(code) if !restarts_after(spec.workload.restart, code) => return Ok(code),
        Found::Created | Found::Exited(_) => container::start(docker, &container).await?,
    }
    inner.board.update(key, |status| status.set(WorkloadState::Running));
    if let Some(node) = spec.node() {
        inner.settle(node);
    }
    container::watch(docker, &container, |health| {
        inner.board.update(key, |status| status.health = Some(health));
    })
    .await
}

fn restarts_after(policy: Restart, code: i64) -> bool {
    match policy {
        Restart::Always => true,
        Restart::OnFailure => code != 0,
        Restart::Never => false,
    }
}

#[cfg(test)]
mod tests;
