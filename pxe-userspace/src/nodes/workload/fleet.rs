//! The nodes that run a Docker engine: which of them answer, and which workloads they run. Assignments are kept in the
//! database, so that a restart of the daemon moves nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bollard::Docker;
use pxe_common::Mac;
use pxe_contract::stage::Stage;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::schedule::{Condition, Placed, Schedule, schedule};
use crate::base::lock::Unpoisoned as _;
use crate::config::Config;
use crate::machines::Machines;
use crate::machines::timeline::{Happened, Timeline, Who};
use crate::nodes::engine::{Engine, Tls, TlsError};
use crate::nodes::trust::authority::{Authority, AuthorityError, Usage};
use crate::store::{AssignmentRow, Change, ReadError, Store, WriteError};

/// The file stem of the certificate authority for engines and their clients only: an engine obeys everybody with a
/// client certificate from it.
const AUTHORITY: &str = "engines";

/// Longer than any daemon runs. The certificate's key is only in the daemon's memory.
const CLIENT_LIFETIME: Duration = Duration::from_secs(10 * YEAR);
/// Longer than any node runs without another boot.
const NODE_LIFETIME: Duration = Duration::from_secs(10 * YEAR);
const YEAR: u64 = 365 * 24 * 3600;

/// How often a node's engine is pinged, and how long the answer may take.
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Some packets may be lost.
const SILENCES: u32 = 3;
/// Long enough for a reboot, also of a slow server.
const LOST_AFTER: Duration = Duration::from_secs(10 * 60);

/// Cloning it is cheap.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    authority: Authority,
    tls: Tls,
    machines: Machines,
    timeline: Timeline,
    store: Store,
    /// The assignments, as stored.
    placed: Mutex<Placed>,
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
    /// Notified when a node comes or goes.
    changed: Notify,
}

/// A node's engine.
pub(super) struct Node {
    name: String,
    mac: Mac,
    state: watch::Sender<State>,
    /// Loads one image at a time: the next workload may need the same image.
    pub(super) loading: tokio::sync::Mutex<()>,
    _stop: DropGuard,
}

#[derive(Clone)]
struct State {
    /// A connection, as long as the engine answers.
    docker: Option<Docker>,
    since: Instant,
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The certificates that a node's engine needs, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnginePapers {
    /// The certificate of the only authority whose clients it shall obey.
    pub authority: String,
    /// The engine's own certificate, for the key that it generated.
    pub certificate: String,
}

impl Fleet {
    pub fn open(
        state_dir: &Path,
        store: Store,
        machines: Machines,
        timeline: Timeline,
    ) -> Result<Self, FleetError> {
        let authority = Authority::open(state_dir, AUTHORITY)?;
        let own = authority.identity("bridgehead", None, Usage::Client, CLIENT_LIFETIME)?;
        let tls = Tls::client(authority.certificate(), &own)?;
        let mut placed = Placed::new();
        for AssignmentRow { workload, node } in store.reader().assignments()? {
            placed.entry(workload).or_default().insert(node);
        }
        let (placed, nodes, changed) = (Mutex::new(placed), Mutex::default(), Notify::new());
        Ok(Self(Arc::new(Inner { authority, tls, machines, timeline, store, placed, nodes, changed })))
    }

    /// Certificates for the engine of a node, which proves with a PKCS #10 request (DER) that it has the key. A node's
    /// certificate is a server certificate: with its key nobody can use another node's engine.
    pub fn papers(
        &self,
        request: &[u8],
        name: &str,
        address: Ipv4Addr,
    ) -> Result<EnginePapers, AuthorityError> {
        let authority = &self.0.authority;
        let certificate = authority.sign(request, name, Some(address), Usage::Server, NODE_LIFETIME)?;
        Ok(EnginePapers { authority: authority.certificate().to_owned(), certificate })
    }

    /// Follows the nodes that `config` declares, and no others. `up` is called for an engine before it is used.
    pub(crate) fn declare<F>(
        &self,
        config: &Config,
        up: impl Fn(String, Docker) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut nodes = self.nodes();
        nodes.retain(|name, node| config.docker_nodes().any(|n| n.name == *name && n.mac == node.mac));
        for declared in config.docker_nodes() {
            nodes.entry(declared.name.clone()).or_insert_with(|| {
                let stop = CancellationToken::new();
                let (state, _) = watch::channel(State { docker: None, since: Instant::now() });
                let node = Arc::new(Node {
                    name: declared.name.clone(),
                    mac: declared.mac,
                    state,
                    loading: Default::default(),
                    _stop: stop.clone().drop_guard(),
                });
                tokio::spawn(follow(Arc::downgrade(&self.0), node.clone(), stop, up.clone()));
                node
            });
        }
    }

    /// Waits until a node comes or goes.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    pub(super) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes().get(name).cloned()
    }

    /// The declared node with this MAC, if it runs an engine.
    pub fn node_of(&self, mac: Mac) -> Option<String> {
        self.nodes().values().find(|node| node.mac == mac).map(|node| node.name.clone())
    }

    pub(super) fn address(&self, node: &str) -> Option<Ipv4Addr> {
        let mac = self.node(node)?.mac;
        self.0.machines.get(mac)?.address
    }

    /// Computes the assignments and stores them. Blocks until they survive a power failure.
    pub(super) fn schedule(&self, config: &Config) -> Result<Schedule, WriteError> {
        let conditions = self.nodes().iter().map(|(name, node)| (name.clone(), node.condition())).collect();
        let mut placed = self.0.placed.lock().unpoisoned();
        let decided = schedule(config, &conditions, &placed);
        if decided.placed != *placed {
            let rows = decided.placed.iter().flat_map(|(workload, nodes)| {
                nodes.iter().map(|node| AssignmentRow { workload: workload.clone(), node: node.clone() })
            });
            self.0.store.write(vec![Change::SetAssignments(rows.collect())]).wait()?;
            placed.clone_from(&decided.placed);
        }
        Ok(decided)
    }

    /// Everything that a node shall run is running, so its boot is complete. Recorded once per boot.
    pub(super) fn settled(&self, node: &str, workloads: &[&str]) {
        let Some(mac) = self.node(node).filter(|node| node.docker().is_some()).map(|node| node.mac) else {
            return;
        };
        // The node's init reports `image` when the engine starts.
        if self.0.machines.get(mac).is_none_or(|machine| machine.stage != Some(Stage::Image)) {
            return;
        }
        let words = match workloads {
            [] => "its Docker engine answers; nothing is assigned to it".to_owned(),
            [one] => format!("{one} runs in its Docker engine"),
            all => format!("{} run in its Docker engine", all.join(", ")),
        };
        self.0.timeline.record(Happened::new(Who::Mac(mac), Stage::Workload).detail(words));
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.0.nodes.lock().unpoisoned()
    }
}

impl Node {
    /// A connection, as long as the engine answers.
    pub(super) fn docker(&self) -> Option<Docker> {
        self.state.borrow().docker.clone()
    }

    /// Waits until the engine answers.
    pub(super) async fn up(&self) -> Docker {
        let mut state = self.state.subscribe();
        loop {
            if let Some(docker) = state.borrow_and_update().docker.clone() {
                return docker;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the engine no longer answers.
    pub(super) async fn down(&self) {
        let mut state = self.state.subscribe();
        // It can't fail, because the sender is in `self`.
        let _ = state.wait_for(|state| state.docker.is_none()).await;
    }

    fn condition(&self) -> Condition {
        let state = self.state.borrow();
        match &state.docker {
            Some(_) => Condition::Up,
            None if state.since.elapsed() < LOST_AFTER => Condition::Away,
            None => Condition::Lost,
        }
    }

    fn set(&self, docker: Option<Docker>) {
        self.state.send_replace(State { docker, since: Instant::now() });
    }
}

/// Tracks whether a node's engine answers, until the node is no longer declared.
async fn follow<F>(
    fleet: std::sync::Weak<Inner>,
    node: Arc<Node>,
    stop: CancellationToken,
    up: impl Fn(String, Docker) -> F,
) where
    F: Future<Output = ()>,
{
    let mut silences = 0;
    loop {
        let Some(inner) = fleet.upgrade() else { return };
        let known = node.docker();
        let asked = tokio::time::timeout(ANSWERS_WITHIN, ask(&inner, &node, known.clone()));
        let answer = tokio::select! {
            answer = asked => answer.ok().flatten(),
            () = stop.cancelled() => return,
        };
        match (known, answer) {
            (None, None) => {}
            (Some(_), Some(_)) => silences = 0,
            (None, Some(docker)) => {
                silences = 0;
                tracing::info!(node = node.name, "its Docker engine answers");
                up(node.name.clone(), docker.clone()).await;
                node.set(Some(docker));
                inner.changed.notify_one();
            }
            (Some(_), None) => {
                silences += 1;
                if silences >= SILENCES {
                    tracing::warn!(node = node.name, "its Docker engine does not answer any more");
                    node.set(None);
                    inner.changed.notify_one();
                }
            }
        }
        drop(inner);
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Pings a node's engine.
async fn ask(fleet: &Inner, node: &Node, known: Option<Docker>) -> Option<Docker> {
    let docker = match known {
        Some(docker) => docker,
        None => {
            let address = fleet.machines.get(node.mac)?.address?;
            Engine::of_node(address, fleet.tls.clone()).connect().await.ok()?
        }
    };
    docker.ping().await.ok().map(|_| docker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIG: &str = r#"
        network = { bridge = "pxe0", address = "10.77.0.1/24" }
        dhcp = { mode = "off" }
        [[profile]]
        name = "docker"
        run = "docker"
        [[node]]
        name = "n1"
        mac = "52:54:00:77:00:01"
        profile = "docker"
        [[workload]]
        name = "w"
        image = "a"
        on = { profile = "docker", count = 1 }
    "#;

    fn fleet(dir: &Path, config: &Config) -> Fleet {
        let (store, machines) = (Store::open(&dir.join("db")).unwrap(), Machines::new(config));
        let timeline = Timeline::open(store.clone(), machines.clone()).unwrap();
        let fleet = Fleet::open(dir, store, machines, timeline).unwrap();
        fleet.declare(config, |_, _| async {});
        fleet
    }

    #[tokio::test]
    async fn assignments_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
        let first = fleet(dir.path(), &config);
        assert!(first.schedule(&config).unwrap().placed.is_empty(), "no engine answers");
        // It is never connected to.
        let socket = dir.path().join("socket");
        std::fs::write(&socket, "").unwrap();
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), 1, bollard::API_DEFAULT_VERSION);
        first.node("n1").unwrap().set(Some(docker.unwrap()));
        let placed = first.schedule(&config).unwrap().placed;
        assert_eq!(placed["w"].iter().collect::<Vec<_>>(), ["n1"]);
        drop(first);
        // The node's engine has not answered this daemon yet.
        assert_eq!(fleet(dir.path(), &config).schedule(&config).unwrap().placed, placed);
    }

    #[tokio::test]
    async fn only_declared_nodes_have_engines() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
        let fleet = fleet(dir.path(), &config);
        assert_eq!(fleet.node_of(config.nodes[0].mac).as_deref(), Some("n1"));
        assert_eq!(fleet.node_of(Mac([2, 0, 0, 0, 0, 9])), None);
        fleet.declare(&Config { nodes: Default::default(), ..config.clone() }, |_, _| async {});
        assert_eq!(fleet.node_of(config.nodes[0].mac), None);
    }
}
