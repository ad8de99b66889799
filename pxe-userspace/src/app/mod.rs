//! Puts the parts together: the only module that sees them all. Order of start, order of end.

mod lock;
mod offers;
mod ports;
mod signals;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::documents::Reloaded;
use crate::api::{self, ApiState, BootState, Connections};
use crate::config::{self, Config, DhcpMode};
use crate::dhcp::{self, Dhcp, Kernel};
use crate::engine::Engine;
use crate::files::Catalog;
use crate::image::{Images, Wanted};
use crate::machines::Machines;
use crate::net::{self, Bridge, BridgeInfo};
use crate::tftp::socket::Tftp;
use crate::tftp::{self, FastPath};
use crate::timeline::{Event, Stage, Timeline};
use crate::workload::Workloads;
use signals::{Signal, Signals};

/// How long what is under way may take to end once the daemon is told to.
const GRACE: Duration = Duration::from_secs(5);

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

async fn run(config: Config, file: &Path) -> anyhow::Result<()> {
    let state = &config.state_dir;
    std::fs::create_dir_all(state).with_context(|| format!("creating state-dir {}", state.display()))?;
    let _lock = lock::take(state)?;
    // Before anything is changed, so that no signal finds us half-way without a way back.
    let mut signals = Signals::new()?;
    let mut bridge = Bridge::set_up(&config.network, state).await?;

    let shutdown = CancellationToken::new();
    let mut parts = JoinSet::new();
    let served = async {
        let appliance = Appliance::start(file, config, &mut bridge, &mut parts, &shutdown).await?;
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
    let restored = bridge.restore().await.context("giving the network back");
    served.and(restored)
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
                    Err(error) => tracing::error!("nothing was changed: {error:#}"),
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
    config: RwLock<Arc<Config>>,
    bridge: BridgeInfo,
    machines: Machines,
    timeline: Timeline,
    images: Images,
    wanted: Wanted,
    catalog: Arc<Catalog>,
    dhcp: Dhcp,
    tftp: Arc<tftp::Stats>,
    fast_path: ports::Loaded,
    workloads: Workloads,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

impl Appliance {
    /// Starts everything behind the bridge; when it returns, packets are answered. What was spawned
    /// ends with `shutdown`.
    async fn start(
        file: &Path,
        config: Config,
        bridge: &mut Bridge,
        parts: &mut Parts,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let database = config.state_dir.join("bridgehead.db");
        let info = bridge.info().clone();
        let address = info.address.addr();
        let machines = Machines::new(&config);
        let timeline = Timeline::open(&database, machines.clone())?;

        let engine = Engine::new(&config.docker);
        let images = Images::open(&config.state_dir, &config.boot.assets, engine.clone())
            .context("opening the images in the state directory")?;
        let wanted = Wanted::new(images.clone(), shutdown.clone());
        let catalog =
            Catalog::new(&config, images.clone(), wanted.clone(), machines.clone(), timeline.clone())?;
        let catalog = Arc::new(catalog);

        let (fast_path, events) = ports::load(config.network.fast_path, shutdown);
        let wanted_tier = config.network.fast_path;
        let following = ports::follow(bridge.events(), fast_path.clone(), wanted_tier, shutdown.clone());
        parts.spawn(following.map(Ok));

        let solicitations = net::ra::serve(info.index, info.mac, shutdown.clone());
        parts.spawn(async { solicitations.await.context("answering router solicitations") });

        let answering = fast_path.dataplane.clone().map(|d| Kernel::new(d, info.mac));
        let (dhcp, leases) = Dhcp::open(&config, &database, &machines, answering)?;
        if config.dhcp.mode != DhcpMode::Off {
            let (dhcp, machines, timeline) = (dhcp.clone(), machines.clone(), timeline.clone());
            let serving = dhcp::bind(&info)?.run(dhcp, leases, machines, timeline, events, shutdown.clone());
            parts.spawn(async { serving.await.context("serving DHCP") });
        }

        let tftp = Tftp::bind(address, info.mtu as u16).await?;
        let stats = tftp.stats();
        let kernel = fast_path.dataplane.clone().map(|d| d as Arc<dyn FastPath>);
        let serving = tftp.run(catalog.clone(), kernel, timeline.clone(), shutdown.clone());
        parts.spawn(async { serving.await.context("serving TFTP") });

        let boot =
            BootState { files: catalog.clone(), machines: machines.clone(), timeline: timeline.clone() };
        let connections = Connections::default();
        let listener = listen(SocketAddr::from((address, config.http.port)), "[http] port").await?;
        let serving =
            api::serve(listener, api::boot_router(boot.clone()), connections.clone(), shutdown.clone());
        parts.spawn(serving.map(Ok));
        parts.spawn(forget_restarted(timeline.clone(), connections, shutdown.clone()));

        let workloads = Workloads::start(&config, engine).await;
        wanted.want(&config);
        let listen_at = config.api.listen;
        let appliance = Arc::new(Self {
            file: file.to_owned(),
            started: Timestamp::now(),
            config: RwLock::new(Arc::new(config)),
            bridge: info,
            machines,
            timeline,
            images,
            wanted,
            catalog,
            dhcp,
            tftp: stats,
            fast_path,
            workloads,
            reloading: Default::default(),
        });
        let state = ApiState { boot, appliance: appliance.clone(), images: appliance.clone() };
        let listener = listen(listen_at, "[api] listen").await?;
        let serving = api::serve(listener, api::api_router(state), Connections::default(), shutdown.clone());
        parts.spawn(serving.map(Ok));
        Ok(appliance)
    }

    fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a changed configuration; one that does not validate changes nothing.
    async fn reload(&self) -> anyhow::Result<Reloaded> {
        let _reloading = self.reloading.lock().await;
        let new = config::load(&self.file).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!(lines.join("\n"))
        })?;
        let old = self.config();
        let mut done = Reloaded::default();
        let parts: [(&str, bool, bool); 12] = [
            ("state-dir", old.state_dir != new.state_dir, false),
            ("[network]", old.network != new.network, false),
            ("[http]", old.http != new.http, false),
            ("[api]", old.api != new.api, false),
            ("[docker]", old.docker != new.docker, false),
            ("[dhcp] mode", old.dhcp.mode != new.dhcp.mode, false),
            ("[dhcp]", old.dhcp != new.dhcp, true),
            ("[files]", old.files_root != new.files_root, true),
            ("[boot]", old.boot != new.boot, true),
            (
                "profiles",
                (&old.profiles, &old.default_profile) != (&new.profiles, &new.default_profile),
                true,
            ),
            ("nodes", old.nodes != new.nodes, true),
            ("workloads", old.workloads != new.workloads, true),
        ];
        for (name, _, applies) in parts.into_iter().filter(|(_, changed, _)| *changed) {
            if applies { &mut done.changed } else { &mut done.needs_restart }.push(name.to_owned());
        }
        // What runs on sockets and links that stay as they are keeps its configuration.
        let dhcp = config::Dhcp { mode: old.dhcp.mode, ..new.dhcp };
        let (state_dir, network) = (old.state_dir.clone(), old.network.clone());
        let (http, api, docker) = (old.http.clone(), old.api.clone(), old.docker.clone());
        let new = Config { state_dir, network, http, api, docker, dhcp, ..new };

        self.catalog.reconfigure(&new)?;
        self.dhcp.reconfigure(&new);
        self.machines.declare(&new);
        self.wanted.want(&new);
        self.workloads.apply(&new).await;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(done)
    }
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}: another program may use it; {key} names another"))
}

/// A machine that asks for an address has forgotten its connections; GRUB will use their ports again.
async fn forget_restarted(
    timeline: Timeline,
    connections: Connections,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut events = timeline.subscribe();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled() => return Ok(()),
        };
        match event {
            Ok(Event { stage: Stage::Discover, address: Some(address), .. }) => {
                connections.forget(address.into())
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}
