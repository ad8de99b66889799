//! Assembles the parts: the only module that knows all of them. It has the order of start and of end.

mod closed;
mod follower;
mod launches;
mod lock;
mod naming;
mod offers;
mod people;
mod ports;
mod power;
mod reload;
mod serving;
mod signals;
mod start;
mod wave;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::people::Socket;
use crate::config::Config;
use crate::dataplane::{self, Pins};
use crate::host::net::{Bridge, BridgeInfo, Ports};
use crate::host::trace::Tracer;
use crate::machines::Machines;
use crate::machines::kept::{Kept, Names};
use crate::machines::segment::Segment;
use crate::machines::timeline::Timeline;
use crate::nodes::workload::Workloads;
use crate::operate::access::Caller;
use crate::operate::audit::{Audit, Did};
use crate::operate::launch::Launches;
use crate::operate::power::Powers;
use crate::provision::image::{Images, Wanted};
use crate::provision::trials::Trials;
use crate::serve::dhcp::Dhcp;
use crate::serve::files::Catalog;
use crate::serve::tftp;
use signals::{Signal, Signals};

/// How long running work may continue after the daemon was told to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the appliance until it is told to end (SIGTERM, SIGINT) or a part of it fails.
///
/// The host's original settings are restored in either case. `file` is read again on SIGHUP.
pub fn serve(config: Config, file: &Path) -> anyhow::Result<()> {
    // Before there is another thread, or a file.
    closed::process();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let served = runtime.block_on(run(config, file));
    // A thread that is packing an image is not waited for: its files have no names yet.
    runtime.shutdown_background();
    served
}

/// Removes every trace of the fast path of a daemon that was killed.
pub fn detach_fast_path(config: &Config) -> anyhow::Result<()> {
    let state = &config.state_dir;
    if !state.exists() {
        return Ok(());
    }
    let _lock = lock::take(state)?;
    let mut ports = config.network.ports.clone();
    let members = Path::new("/sys/class/net").join(&config.network.bridge).join("brif");
    // Empty if there is no bridge.
    let members = std::fs::read_dir(members).into_iter().flatten().flatten();
    ports.extend(members.map(|port| port.file_name().to_string_lossy().into_owned()));
    dataplane::remove_left(&Pins::of(state), &ports).context("unpinning the fast path")
}

async fn run(config: Config, file: &Path) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let state = &config.state_dir;
    closed::directory(state)?;
    let _lock = lock::take(state)?;
    // Requests that arrive meanwhile are answered as soon as there is an answer.
    let socket = Socket::open(&config.api.socket).context("serving the API")?;
    // Before anything is changed, so that no signal can end the daemon halfway without restoring.
    let mut signals = Signals::new()?;
    let mut bridge = Bridge::set_up(&config.network, &config.http, state).await?;
    let pins = Pins::of(state);

    let shutdown = CancellationToken::new();
    let mut parts = JoinSet::new();
    let served = async {
        let appliance =
            Appliance::start(file, Arc::new(config), &mut bridge, socket, &mut parts, &shutdown).await?;
        println!("ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let ended = attend(&appliance, &mut signals, &mut parts).await;
        appliance.workloads.stop().await;
        appliance.timeline.flush();
        ended
    }
    .await;

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.cancel();
    let ended = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("some parts did not end in time");
        parts.shutdown().await;
    }
    // The links themselves are detached with their descriptors, at the latest when the process ends.
    let detached = dataplane::remove_left(&pins, &port_names(&bridge)).context("unpinning the fast path");
    let restored = bridge.restore().await.context("giving the network back");
    served.and(detached).and(restored)
}

/// Each transfer holds a file open, and each node a connection or two: far more than the usual 1,024.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

type Parts = JoinSet<anyhow::Result<()>>;

/// Runs until the daemon is told to end, or a part fails.
async fn attend(appliance: &Appliance, signals: &mut Signals, parts: &mut Parts) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::End => return Ok(()),
                Signal::Reload => match appliance.reload().await {
                    Ok(done) => {
                        tracing::info!(changed = ?done.changed, needs_restart = ?done.needs_restart, "reloaded");
                        let did = Did::new("reload").after(&done);
                        tokio::task::block_in_place(|| {
                            appliance.audit.record(&Caller::signal(), did, Timestamp::now());
                        });
                    }
                    Err(error) => tracing::error!("nothing was changed: {error}"),
                },
            },
            Some(ended) = parts.join_next() => ended.context("a part of the daemon panicked")??,
        }
    }
}

/// The parts that the API and a reload use.
struct Appliance {
    file: PathBuf,
    started: Timestamp,
    /// The only owner: all others have a receiver, or the `Arc` for the time of a decision.
    config: watch::Sender<Arc<Config>>,
    kept: Kept,
    names: Names,
    bridge: BridgeInfo,
    ports: Ports,
    machines: Machines,
    timeline: Timeline,
    images: Images,
    trials: Trials,
    wanted: Wanted,
    catalog: Arc<Catalog>,
    dhcp: Dhcp,
    tftp: Arc<tftp::Stats>,
    segment: Segment,
    fast_path: ports::Loaded,
    serving: Mutex<serving::Serving>,
    tracer: Tracer,
    workloads: Workloads,
    watched: wave::Watched,
    audit: Audit,
    powers: Powers,
    launches: Launches,
    /// One change of the configuration at a time: a reload, or of the machines that are kept.
    reloading: tokio::sync::Mutex<()>,
}

impl Appliance {
    fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }
}

fn port_names(bridge: &Bridge) -> Vec<String> {
    bridge.ports().now().into_iter().map(|port| port.name).collect()
}
