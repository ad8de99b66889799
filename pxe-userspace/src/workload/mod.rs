//! Workloads: containers on the appliance itself, on the bridge that the machines boot from.
//! Started, watched, restarted by policy and stopped here; the Docker engine runs them.
//!
//! What goes wrong with a workload (no engine, no image) is that workload's error, shown and tried
//! again, and nobody else's.

mod address;
mod container;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::container::{Found, NetworkSpec, Spec};
use crate::config::{Config, Restart};
use crate::engine::Engine;
use crate::text;

pub use self::container::WorkloadError;

/// A container that ran this long was well; its next failure is a first one.
const WELL_AFTER: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For the engine to stop a container, which itself gives the workload 10 seconds.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The workloads' handle. Cloning it is cheap.
#[derive(Clone)]
pub struct Workloads(Arc<Inner>);

struct Inner {
    engine: Engine,
    owner: String,
    board: Board,
    running: tokio::sync::Mutex<BTreeMap<String, Running>>,
    /// Held while the engine's network is looked for and made: workloads start side by side.
    ground: tokio::sync::Mutex<()>,
}

struct Running {
    spec: Spec,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// One workload, as `bridgehead workloads --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WorkloadStatus {
    pub name: String,
    pub image: String,
    pub state: WorkloadState,
    /// On the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// On the appliance's address: `HOST:CONTAINER/PROTOCOL`.
    pub ports: Vec<String>,
    pub restarts: u64,
    /// Of its last end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// When it came into this state.
    #[serde(serialize_with = "text::micros")]
    pub since: Timestamp,
    /// Why it does not run, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    Starting,
    Running,
    /// It ended or failed, and is started again after a pause.
    Waiting,
    /// It ended, and its restart policy leaves it at that.
    Exited,
    Stopping,
}

impl Workloads {
    /// Starts what `config` declares, and removes what an earlier run of this appliance left. The
    /// bridge must be there. Returns at once; [`Workloads::list`] tells how it goes.
    pub async fn start(config: &Config, engine: Engine) -> Self {
        let state_dir = config.state_dir.canonicalize().unwrap_or_else(|_| config.state_dir.clone());
        let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
        let owner = text::hex(&digest[..6]);
        let workloads = Self(Arc::new(Inner {
            engine,
            owner,
            board: Board::default(),
            running: Default::default(),
            ground: Default::default(),
        }));
        workloads.apply(config).await;
        tokio::spawn(tidy(workloads.0.clone()));
        workloads
    }

    /// How each workload is, by name.
    pub fn list(&self) -> Vec<WorkloadStatus> {
        self.0.board.lock().values().cloned().collect()
    }

    /// Takes over a changed configuration: what is unchanged in it goes on undisturbed.
    pub async fn apply(&self, config: &Config) {
        let mut running = self.0.running.lock().await;
        let current = running.iter().filter_map(|(name, r)| Some((name.clone(), r.spec.address?))).collect();
        let addresses = address::assign(config, &current);
        let network = NetworkSpec { bridge: config.network.bridge.clone(), address: config.network.address };
        let wanted: BTreeMap<String, Spec> = config
            .workloads
            .iter()
            .map(|workload| {
                let spec = Spec {
                    workload: workload.clone(),
                    address: addresses.get(&workload.name).copied().flatten(),
                    network: network.clone(),
                    owner: self.0.owner.clone(),
                };
                (workload.name.clone(), spec)
            })
            .collect();
        let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut *running)
            .into_iter()
            .partition(|(name, r)| wanted.get(name) == Some(&r.spec));
        *running = kept;
        let none_left = wanted.is_empty() && !ended.is_empty();
        end(ended).await;
        if none_left {
            self.0.remove_network().await;
        }
        self.0.board.lock().retain(|name, _| wanted.contains_key(name));
        for (name, spec) in wanted {
            running.entry(name).or_insert_with(|| {
                let cancel = CancellationToken::new();
                let task = tokio::spawn(keep(self.0.clone(), spec.clone(), cancel.clone()));
                Running { spec, cancel, task }
            });
        }
    }

    /// Stops and removes every container, and the engine's network on the bridge. To be awaited
    /// before the bridge goes.
    pub async fn stop(&self) {
        let ended = std::mem::take(&mut *self.0.running.lock().await);
        if !ended.is_empty() {
            end(ended).await;
            self.0.remove_network().await;
        }
    }
}

impl Inner {
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

async fn end(ended: BTreeMap<String, Running>) {
    for running in ended.values() {
        running.cancel.cancel();
    }
    for (name, running) in ended {
        if let Err(error) = running.task.await {
            tracing::error!(workload = name, %error, "a workload's task ended badly");
        }
    }
}

/// Once, at the start: a daemon that was killed leaves its containers running.
async fn tidy(inner: Arc<Inner>) {
    // Held all the time: a reload must not declare a workload that is just being removed.
    let running = inner.running.lock().await;
    let tidied = async {
        let docker = inner.engine.connect().await?;
        container::tidy(&docker, &inner.owner, |name| running.contains_key(name)).await?;
        if running.is_empty() {
            container::remove_network(&docker, &inner.owner).await?;
        }
        Ok::<(), WorkloadError>(())
    };
    // Without an engine nothing of ours runs in it, either.
    match tokio::time::timeout(STOP_WITHIN, tidied).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "not looked for containers of an earlier run"),
        Err(_) => {
            tracing::warn!("the Docker engine does not answer; containers of an earlier run may be left")
        }
    }
}

/// Keeps one workload as its policy says, until it is cancelled.
async fn keep(inner: Arc<Inner>, spec: Spec, cancel: CancellationToken) {
    let name = &spec.workload.name;
    inner.board.lock().insert(name.clone(), status_of(&spec));
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => break,
            ended = run_once(&inner, &spec) => ended,
        };
        failures = if started.elapsed() >= WELL_AFTER { 0 } else { failures + 1 };
        let again = match ended {
            Ok(code) => {
                tracing::info!(workload = name, code, "the workload ended");
                let again = restarts_after(spec.workload.restart, code);
                let state = if again { WorkloadState::Waiting } else { WorkloadState::Exited };
                inner.board.update(name, |status| {
                    status.set(state);
                    status.exit_code = Some(code);
                    status.restarts += u64::from(again);
                });
                again
            }
            Err(error) => {
                tracing::warn!(workload = name, %error, "the workload does not run");
                inner.board.update(name, |status| {
                    status.set(WorkloadState::Waiting);
                    status.error = Some(error.to_string());
                });
                true
            }
        };
        let pause = if again { pause_after(failures) } else { Duration::MAX };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    inner.board.update(name, |status| status.set(WorkloadState::Stopping));
    let stopped = async {
        let docker = inner.engine.connect().await?;
        container::stop(&docker, &spec.container_name()).await
    };
    match tokio::time::timeout(STOP_WITHIN, stopped).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(workload = name, %error, "the workload's container stays"),
        Err(_) => tracing::warn!(workload = name, "the Docker engine does not answer; the container stays"),
    }
    inner.board.lock().remove(name);
}

/// Brings the workload's container up, or finds it running, and returns its exit code at its end.
async fn run_once(inner: &Inner, spec: &Spec) -> Result<i64, WorkloadError> {
    let docker = inner.engine.connect().await?;
    let found = {
        let _alone = inner.ground.lock().await;
        let network = container::network(&docker, &spec.network, &spec.owner).await?;
        container::find_or_create(&docker, spec, &network).await?
    };
    let container = spec.container_name();
    match found {
        Found::Running => tracing::info!(workload = spec.workload.name, "the workload runs already"),
        // It ended while no daemon watched.
        Found::Exited(code) if !restarts_after(spec.workload.restart, code) => return Ok(code),
        Found::Created | Found::Exited(_) => container::start(&docker, &container).await?,
    }
    inner.board.update(&spec.workload.name, |status| status.set(WorkloadState::Running));
    container::wait(&docker, &container).await
}

fn restarts_after(policy: Restart, code: i64) -> bool {
    match policy {
        Restart::Always => true,
        Restart::OnFailure => code != 0,
        Restart::Never => false,
    }
}

/// 1, 2, 4 … 60 seconds.
fn pause_after(failures: u32) -> Duration {
    let doubled = Duration::from_secs(1 << failures.saturating_sub(1).min(6));
    doubled.min(LONGEST_PAUSE)
}

fn status_of(spec: &Spec) -> WorkloadStatus {
    WorkloadStatus {
        name: spec.workload.name.clone(),
        image: spec.workload.image.clone(),
        state: WorkloadState::Starting,
        address: spec.address,
        ports: spec.ports(),
        restarts: 0,
        exit_code: None,
        since: Timestamp::now(),
        error: None,
    }
}

impl WorkloadStatus {
    fn set(&mut self, state: WorkloadState) {
        if self.state != state {
            (self.state, self.since) = (state, Timestamp::now());
        }
        self.error = None;
    }
}

/// Where the workloads' tasks write how they are.
#[derive(Clone, Default)]
struct Board(Arc<Mutex<BTreeMap<String, WorkloadStatus>>>);

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, WorkloadStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut WorkloadStatus)) {
        if let Some(status) = self.lock().get_mut(name) {
            change(status);
        }
    }
}

#[cfg(test)]
mod tests;
