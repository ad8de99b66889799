//! Puts the parts together: the only module that sees them all. Order of start, order of end.

mod lock;
mod ports;
mod signals;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::dhcp::{self, Dhcp};
use crate::engine::Engine;
use crate::files::Catalog;
use crate::image::{Images, Wanted};
use crate::machines::Machines;
use crate::net::{self, Bridge};
use crate::tftp::FastPath;
use crate::tftp::socket::Tftp;
use crate::timeline::Timeline;
use crate::workload::Workloads;
use signals::{Signal, Signals};

/// How long what is under way may take to end once the daemon is told to.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the appliance until it is told to end (SIGTERM, SIGINT) or a part of it fails.
///
/// What was changed on the host is given back in either case.
pub async fn serve(path: &Path, config: Config) -> anyhow::Result<()> {
    let state = &config.state_dir;
    std::fs::create_dir_all(state).with_context(|| format!("creating state-dir {}", state.display()))?;
    let _lock = lock::take(state)?;
    // Before anything is changed, so that no signal finds us half-way without a way back.
    let mut signals = Signals::new()?;
    let mut bridge = Bridge::set_up(&config.network, state).await?;

    let shutdown = CancellationToken::new();
    let mut parts = JoinSet::new();
    let served = async {
        let appliance = Appliance::start(path, config, &mut bridge, &mut parts, &shutdown).await?;
        println!("ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        appliance.attend(&mut signals, &mut parts).await
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

/// The parts that a reload reaches.
struct Appliance {
    config_path: PathBuf,
    config: Config,
    machines: Machines,
    catalog: Arc<Catalog>,
    dhcp: Dhcp,
    wanted: Wanted,
    workloads: Workloads,
}

type Parts = JoinSet<anyhow::Result<()>>;

impl Appliance {
    /// Starts everything behind the bridge. What was spawned ends with `shutdown`.
    async fn start(
        path: &Path,
        config: Config,
        bridge: &mut Bridge,
        parts: &mut Parts,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let database = config.state_dir.join("bridgehead.db");
        let info = bridge.info().clone();
        let machines = Machines::new(&config);
        let timeline = Timeline::open(&database, machines.clone())?;

        let engine = Engine::new(&config.docker);
        let images = Images::open(&config.state_dir, &config.boot.assets, engine.clone())
            .context("opening the images in the state directory")?;
        let wanted = Wanted::new(images.clone(), shutdown.clone());
        let catalog =
            Catalog::new(&config, images.clone(), wanted.clone(), machines.clone(), timeline.clone())?;
        let catalog = Arc::new(catalog);

        let fast_path = ports::load(config.network.fast_path, shutdown);
        let following = ports::follow(
            bridge.events(),
            fast_path.clone(),
            config.network.fast_path,
            shutdown.clone(),
        );
        parts.spawn(async { Ok(following.await) });

        let solicitations = net::ra::serve(info.index, info.mac, shutdown.clone());
        parts.spawn(async { solicitations.await.context("answering router solicitations") });

        let (dhcp, leases) = Dhcp::open(&config, &database)?;
        let serving = dhcp::socket::serve(
            info.clone(),
            dhcp.clone(),
            leases,
            machines.clone(),
            timeline.clone(),
            shutdown.clone(),
        );
        parts.spawn(async { serving.await.context("serving DHCP") });

        let tftp = Tftp::bind(info.address.addr(), info.mtu as u16).await?;
        let tftp_stats = tftp.stats();
        let kernel = fast_path.dataplane.clone().map(|d| d as Arc<dyn FastPath>);
        let serving = tftp.run(catalog.clone(), kernel, timeline.clone(), shutdown.clone());
        parts.spawn(async { serving.await.context("serving TFTP") });

        let workloads = Workloads::start(&config, engine, shutdown.clone());
        wanted.want(&config);
        Ok(Self { config_path: path.to_owned(), config, machines, catalog, dhcp, wanted, workloads })
    }

    /// Until the daemon is told to end, or a part fails.
    async fn attend(mut self, signals: &mut Signals, parts: &mut Parts) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::End => break,
                    Signal::Reload => self.reload(),
                },
                Some(ended) = parts.join_next() => {
                    ended.context("a part of the daemon panicked")??;
                }
            }
        }
        self.workloads.stop().await;
        Ok(())
    }

    /// Takes over a changed configuration; one that does not validate changes nothing.
    fn reload(&mut self) {
        match self.try_reload() {
            Ok(()) => tracing::info!(config = %self.config_path.display(), "reloaded"),
            Err(error) => tracing::error!("nothing was changed: {error:#}"),
        }
    }

    fn try_reload(&mut self) -> anyhow::Result<()> {
        let config = config::load(&self.config_path).map_err(config::Problem::all)?;
        let fixed = |c: &Config| (c.state_dir.clone(), c.network.clone(), c.http.clone(), c.api.clone());
        anyhow::ensure!(
            fixed(&config) == fixed(&self.config),
            "state-dir, [network], [http] and [api] can't be changed while running: restart the daemon"
        );
        self.catalog.reconfigure(&config)?;
        self.dhcp.reconfigure(&config);
        self.machines.declare(&config);
        self.workloads.apply(&config);
        self.wanted.want(&config);
        self.config = config;
        Ok(())
    }
}
