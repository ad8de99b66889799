//! Puts the parts together: the only module that sees them all. Order of start, order of end.

mod follower;
mod lock;
mod offers;
mod ports;
mod reload;
mod serving;
mod signals;
mod wave;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiState, BootState, Connections};
use crate::config::{Config, DhcpMode};
use crate::dataplane::{self, Pins};
use crate::host::net::{self, Bridge, BridgeInfo, Ports};
use crate::host::trace::{self, Tracer};
use crate::machines::Machines;
use crate::machines::console::{Consoles, crash};
use crate::machines::holds::Holds;
use crate::machines::rescue::Rescues;
use crate::machines::timeline::Timeline;
use crate::nodes::engine::Engine;
use crate::nodes::trust::Trust;
use crate::nodes::workload::Workloads;
use crate::nodes::workload::fleet::Fleet;
use crate::provision::image::{Images, Wanted};
use crate::provision::storage::Storage;
use crate::provision::trials::Trials;
use crate::serve::carousel::Carousel;
use crate::serve::dhcp::{self, Dhcp, Kernel};
use crate::serve::files::{Catalog, Kept};
use crate::serve::tftp::socket::Tftp;
use crate::serve::tftp::{self, FastPath};
use crate::store::{self, Store};
use signals::{Signal, Signals};

/// How long what is under way may take to end once the daemon is told to.
const GRACE: Duration = Duration::from_secs(5);

/// How often machines are looked for that have fallen silent.
const SILENCE_NOTICED: Duration = Duration::from_secs(5);

/// Runs the appliance until it is told to end (SIGTERM, SIGINT) or a part of it fails.
///
/// What was changed on the host is given back in either case. `file` is read again on SIGHUP.
pub fn serve(config: Config, file: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let served = runtime.block_on(run(config, file));
    // A thread that packs an image is not waited for: its files have no names yet.
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
    // None when there is no bridge.
    let members = std::fs::read_dir(members).into_iter().flatten().flatten();
    ports.extend(members.map(|port| port.file_name().to_string_lossy().into_owned()));
    dataplane::remove_left(&Pins::of(state), &ports).context("unpinning the fast path")
}

async fn run(config: Config, file: &Path) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let state = &config.state_dir;
    std::fs::create_dir_all(state).with_context(|| {
        format!("state-dir {} can't be made: run as root, or name a directory that is yours", state.display())
    })?;
    let _lock = lock::take(state)?;
    // Before anything is changed, so that no signal finds us half-way without a way back.
    let mut signals = Signals::new()?;
    let mut bridge = Bridge::set_up(&config.network, &config.http, state).await?;
    let pins = Pins::of(state);

    let shutdown = CancellationToken::new();
    let mut parts = JoinSet::new();
    let served = async {
        let appliance = Appliance::start(file, Arc::new(config), &mut bridge, &mut parts, &shutdown).await?;
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
    // The links themselves go with their descriptors, at the latest when the process ends.
    let detached = dataplane::remove_left(&pins, &port_names(&bridge)).context("unpinning the fast path");
    let restored = bridge.restore().await.context("giving the network back");
    served.and(detached).and(restored)
}

/// Each transfer holds a file open, each node a connection or two: far more than the usual 1,024.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

type Parts = JoinSet<anyhow::Result<()>>;

/// Until the daemon is told to end, or a part fails.
async fn attend(appliance: &Appliance, signals: &mut Signals, parts: &mut Parts) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::End => return Ok(()),
                Signal::Reload => match appliance.reload().await {
                    Ok(done) => tracing::info!(changed = ?done.changed, needs_restart = ?done.needs_restart, "reloaded"),
                    Err(error) => tracing::error!("nothing was changed: {error}"),
                },
            },
            Some(ended) = parts.join_next() => ended.context("a part of the daemon panicked")??,
        }
    }
}

/// The parts that the API and a reload reach.
struct Appliance {
    file: PathBuf,
    started: Timestamp,
    /// The one owner: everybody else has a receiver, or the `Arc` for as long as a decision takes.
    config: watch::Sender<Arc<Config>>,
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
    fast_path: ports::Loaded,
    serving: Mutex<serving::Serving>,
    tracer: Tracer,
    workloads: Workloads,
    watched: wave::Watched,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

impl Appliance {
    /// Starts everything behind the bridge; when it returns, packets are answered. What was spawned
    /// ends with `shutdown`.
    async fn start(
        file: &Path,
        config: Arc<Config>,
        bridge: &mut Bridge,
        parts: &mut Parts,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let (sender, receiver) = watch::channel(config.clone());
        let store = Store::open(&config.state_dir.join(store::FILE))?;
        let info = bridge.info().clone();
        let address = info.address.addr();
        let machines = Machines::new(&config);
        let timeline = Timeline::open(store.clone(), machines.clone())?;

        let engine = Engine::new(&config.docker);
        let images = Images::open(&config.state_dir, &config.boot.assets, engine.clone())
            .context("opening the images in the state directory")?;
        let wanted = Wanted::new(images.clone(), shutdown.clone());
        let storage = Storage::new(&config.state_dir, store.clone());
        let rescues = Rescues::default();
        let trials = Trials::open(store.clone())?;
        let trust = Trust::open(&config.state_dir, store.clone(), timeline.clone())?;
        let kept = Kept { rescues: rescues.clone(), trials: trials.clone(), trust: trust.clone() };
        let catalog = Catalog::new(
            receiver.clone(),
            images.clone(),
            wanted.clone(),
            machines.clone(),
            timeline.clone(),
            kept,
        )?;
        let catalog = Arc::new(catalog);

        let pins = Pins::of(&config.state_dir);
        let (fast_path, told) = ports::load(config.network.fast_path, pins, &port_names(bridge), shutdown);
        let wanted_tier = config.network.fast_path;
        if let (Some(_), Some(dataplane)) = (config.network.ceiling, &fast_path.dataplane) {
            dataplane.under_ceiling();
        }
        let mut events = bridge.events();
        ports::attach_present(&mut events, &fast_path, wanted_tier);
        let following = ports::follow(events, fast_path.clone(), wanted_tier, shutdown.clone());
        parts.spawn(following.map(Ok));

        let solicitations = net::ra::serve(info.index, info.mac, shutdown.clone());
        parts.spawn(async { solicitations.await.context("answering router solicitations") });

        let answering = fast_path.dataplane.clone().map(|d| Kernel::new(d, info.mac));
        let (dhcp, opened) = Dhcp::open(config.clone(), store.clone(), &machines, answering)?;
        let (connections, holds) = (Connections::of_nodes(), Holds::open(store.clone(), machines.clone())?);
        // Before anything answers a machine.
        timeline.call(follower::Boots {
            connections: connections.clone(),
            holds: holds.clone(),
            rescues: rescues.clone(),
            trials: trials.clone(),
            trust: trust.clone(),
            dhcp: dhcp.clone(),
        });
        if config.dhcp.mode != DhcpMode::Off {
            let (dhcp, machines, timeline) = (dhcp.clone(), machines.clone(), timeline.clone());
            let serving =
                dhcp::bind(&info)?.run(dhcp, opened, machines, timeline, told.dhcp, shutdown.clone());
            parts.spawn(async { serving.await.context("serving DHCP") });
        }

        let left = fast_path.dataplane.as_ref().map(|d| d.left_ports()).unwrap_or_default();
        let tftp = Tftp::bind_again(address, info.mtu as u16, &left).await?;
        let stats = tftp.stats();
        let kernel = fast_path.dataplane.clone().map(|d| d as Arc<dyn FastPath>);
        let serving = tftp.run(catalog.clone(), kernel, told.tftp, timeline.clone(), shutdown.clone());
        parts.spawn(async { serving.await.context("serving TFTP") });

        let fleet = Fleet::open(&config.state_dir, store.clone(), machines.clone(), timeline.clone())?;
        let boot = BootState {
            files: catalog.clone(),
            machines: machines.clone(),
            timeline: timeline.clone(),
            consoles: Consoles::open(&config.state_dir.join("consoles"))?,
            logs: Consoles::open(&config.state_dir.join("logs"))?,
            holds: holds.clone(),
            rescues: rescues.clone(),
            storage,
            fleet: fleet.clone(),
            http_sent: Arc::default(),
            trust: trust.clone(),
            carousel: Carousel::new(config.carousel.clone(), address, info.mtu),
        };
        match crash::bind(address.into()).await {
            Ok(socket) => {
                let consoles = boot.consoles.clone();
                parts.spawn(crash::take(socket, machines.clone(), consoles, shutdown.clone()).map(Ok));
            }
            Err(error) => tracing::warn!(port = crash::PORT, %error, "what dying kernels say is not heard"),
        }
        let listener = listen(SocketAddr::from((address, config.http.port)), "[http] port").await?;
        let serving =
            api::serve(listener, api::boot_router(boot.clone()), connections.clone(), shutdown.clone());
        parts.spawn(serving.map(Ok));
        let listener = listen(SocketAddr::from((address, config.http.tls_port)), "[http] tls-port").await?;
        let (router, tls) = (api::boot_router(boot.clone()), trust.authority().server(address)?);
        let serving = api::serve_tls(listener, tls, router, connections.clone(), shutdown.clone());
        parts.spawn(serving.map(Ok));
        parts.spawn(end_silent_boots(timeline.clone(), shutdown.clone()));

        let programs = fast_path.dataplane.clone().map(|d| d as Arc<dyn trace::Programs>);
        let tracer = Tracer::new(info.clone(), bridge.ports().clone(), timeline.clone(), programs);
        let workloads = Workloads::start(receiver, engine, fleet).await;
        wanted.want(&config);
        let appliance = Arc::new(Self {
            file: file.to_owned(),
            started: Timestamp::now(),
            config: sender,
            bridge: info,
            ports: bridge.ports().clone(),
            machines,
            timeline,
            images,
            trials,
            wanted,
            catalog,
            dhcp,
            tftp: stats,
            fast_path,
            serving: Mutex::default(),
            tracer,
            workloads,
            watched: Default::default(),
            reloading: Default::default(),
        });
        parts.spawn(wave::watch(appliance.clone(), shutdown.clone()));
        parts.spawn(ports::watch(appliance.clone(), shutdown.clone()));
        let state = ApiState { boot, appliance: appliance.clone(), images: appliance.clone() };
        let listener = listen(config.api.listen, "[api] listen").await?;
        let serving =
            api::serve(listener, api::api_router(state), Connections::of_people(), shutdown.clone());
        parts.spawn(serving.map(Ok));
        Ok(appliance)
    }

    fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }
}

fn port_names(bridge: &Bridge) -> Vec<String> {
    bridge.ports().now().into_iter().map(|port| port.name).collect()
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}: another program may use it; {key} names another"))
}

/// Boots of which nothing is heard any more have failed.
async fn end_silent_boots(timeline: Timeline, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(SILENCE_NOTICED);
    loop {
        tokio::select! {
            _ = tick.tick() => tokio::task::block_in_place(|| timeline.end_silent_boots()),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}
