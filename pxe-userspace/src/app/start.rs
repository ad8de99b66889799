//! The order of start: first what depends on nothing, last what answers machines and people.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use socket2::{Domain, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Appliance, Parts, follower, launches, naming, people, port_names, ports, power, wave};
use crate::api::people::Socket;
use crate::api::{self, BootState, Connections};
use crate::config::Config;
use crate::dataplane::Pins;
use crate::host::net::{self, Bridge, BridgeInfo};
use crate::host::trace::{self, Tracer};
use crate::machines::Machines;
use crate::machines::console::{Consoles, crash};
use crate::machines::facts::Known;
use crate::machines::holds::Holds;
use crate::machines::rescue::Rescues;
use crate::machines::segment::Segment;
use crate::machines::timeline::Timeline;
use crate::nodes::engine::Engine;
use crate::nodes::trust::Trust;
use crate::nodes::workload::Workloads;
use crate::nodes::workload::fleet::Fleet;
use crate::operate::audit::Audit;
use crate::operate::launch::{self, Driven, Launches};
use crate::provision::image::{Images, Wanted};
use crate::provision::planner::Planner;
use crate::provision::storage::Storage;
use crate::provision::trials::Trials;
use crate::serve::carousel::Carousel;
use crate::serve::dhcp::{self, Dhcp, Kernel, Told, Unnamed};
use crate::serve::files::{self, Catalog};
use crate::serve::tftp::socket::Tftp;
use crate::serve::tftp::{self, FastPath};
use crate::store::{self, Store};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How often to look for machines that have fallen silent.
const SILENCE_NOTICED: Duration = Duration::from_secs(5);

/// State of the start. What is spawned in it ends with the appliance.
pub(super) struct Starting<'a> {
    pub(super) parts: &'a mut Parts,
    pub(super) shutdown: &'a CancellationToken,
}

impl Appliance {
    /// Starts everything behind the bridge; when it returns, packets are answered. What was spawned ends with
    /// `shutdown`.
    // Long: the order of start, told once.
    pub(super) async fn start(
        file: &Path,
        config: Arc<Config>,
        bridge: &mut Bridge,
        socket: Socket,
        parts: &mut Parts,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let mut starting = Starting { parts, shutdown };
        let store = Store::open(&config.state_dir.join(store::FILE))?;
        let (launches, driven) = Launches::open(store.clone(), Timestamp::now())?;
        let (config, kept, names) = naming::open(&config, &store, &launches)?;
        let (sender, receiver) = watch::channel(config.clone());
        let info = bridge.info().clone();
        let machines = Machines::new(&config);
        let segment = Segment::new(&info, machines.clone());
        let timeline = Timeline::open(store.clone(), machines.clone())?;

        let engine = Engine::new(&config.docker);
        let images = Images::open(&config.state_dir, &config.boot.assets, engine.clone())
            .context("opening the images in the state directory")?;
        let wanted = Wanted::new(images.clone(), shutdown.clone());
        let rescues = Rescues::default();
        let trials = Trials::open(store.clone())?;
        let trust = Trust::open(&config.state_dir, store.clone(), timeline.clone())?;
        let planner =
            Planner::new(images.clone(), wanted.clone(), machines.clone(), timeline.clone(), trials.clone());
        let of_boots =
            files::Kept { rescues: rescues.clone(), trust: trust.clone(), segment: Some(segment.clone()) };
        let catalog =
            Arc::new(Catalog::new(receiver.clone(), planner, images.clone(), machines.clone(), of_boots)?);

        let (fast_path, told) = starting.fast_path(&config, bridge);
        starting.hear(&info, &segment);
        let answering = fast_path.dataplane.clone().map(|d| Kernel::new(d, info.mac));
        let (dhcp, mut opened) = Dhcp::open(config.clone(), store.clone(), &machines, answering)?;
        let unnamed = opened.take_unnamed();
        let (connections, holds) =
            (Connections::on(segment.clone()), Holds::open(store.clone(), machines.clone())?);
        // Must be registered before anything answers a machine.
        timeline.call(follower::Boots {
            connections: connections.clone(),
            holds: holds.clone(),
            rescues: rescues.clone(),
            trials: trials.clone(),
            trust: trust.clone(),
            dhcp: dhcp.clone(),
            launches: launches.clone(),
        });
        starting.dhcp(&info, (dhcp.clone(), opened, told.dhcp), machines.clone(), timeline.clone())?;
        let tftp =
            starting.tftp(&info, &segment, &fast_path, catalog.clone(), told.tftp, timeline.clone())?;

        let fleet = Fleet::open(&config.state_dir, store.clone(), machines.clone(), timeline.clone())?;
        let boot = BootState {
            files: catalog.clone(),
            machines: machines.clone(),
            timeline: timeline.clone(),
            consoles: Consoles::open(&config.state_dir.join("consoles"))?,
            logs: Consoles::open(&config.state_dir.join("logs"))?,
            holds,
            rescues,
            storage: Storage::new(&config.state_dir, store.clone()),
            fleet: fleet.clone(),
            http_sent: Arc::default(),
            trust,
            carousel: Carousel::new(config.carousel.clone(), info.address.addr(), info.mtu),
            rates: api::Rates::default(),
            facts: Known::open(store.clone(), machines.clone())?,
            fact_rates: api::Rates::of_facts(),
            is_something: {
                let config = receiver.clone();
                Arc::new(move |mac| config.borrow().is_something(mac))
            },
        };
        let facts = boot.facts.clone();
        starting.boots(&config, &info, &segment, &boot, &connections)?;

        let powers = power::open(&config.state_dir, &store, &info, &machines)?;
        let workloads = Workloads::start(receiver, engine, fleet).await;
        wanted.want(&config);
        let appliance = Arc::new(Self {
            file: file.to_owned(),
            started: Timestamp::now(),
            config: sender,
            kept,
            names,
            tracer: tracer(bridge, &fast_path, timeline.clone()),
            bridge: info,
            ports: bridge.ports().clone(),
            machines,
            timeline,
            images,
            trials,
            wanted,
            catalog,
            dhcp,
            tftp,
            segment,
            fast_path,
            serving: Mutex::default(),
            workloads,
            watched: Default::default(),
            audit: Audit::open(store.clone())?,
            powers,
            launches,
            reloading: Default::default(),
        });
        starting.watch(&appliance, unnamed, facts);
        starting.launches(&appliance, driven, boot.rescues.clone());
        people::serve(&config, &appliance, boot, store, socket, &mut starting).await?;
        Ok(appliance)
    }
}

impl Starting<'_> {
    /// Serves DHCP, unless the configuration has it off, with what the kernel tells of it.
    fn dhcp(
        &mut self,
        bridge: &BridgeInfo,
        (dhcp, opened, told): (Dhcp, dhcp::socket::Opened, mpsc::Receiver<Told>),
        machines: Machines,
        timeline: Timeline,
    ) -> anyhow::Result<()> {
        if dhcp.is_off() {
            return Ok(());
        }
        let serving = dhcp::bind(bridge)?.run(dhcp, opened, machines, timeline, told, self.shutdown.clone());
        self.parts.spawn(async { serving.await.context("serving DHCP") });
        Ok(())
    }

    /// Loads the kernel programs, and attaches them to the present ports and to those that are added.
    fn fast_path(&mut self, config: &Config, bridge: &mut Bridge) -> (ports::Loaded, ports::Told) {
        let (pins, tier) = (Pins::of(&config.state_dir), config.network.fast_path);
        let (fast_path, told) = ports::load(tier, pins, &port_names(bridge), self.shutdown);
        if let (Some(_), Some(dataplane)) = (config.network.ceiling, &fast_path.dataplane) {
            dataplane.under_ceiling();
        }
        let mut events = bridge.events();
        ports::attach_present(&mut events, &fast_path, tier);
        let following = ports::follow(events, fast_path.clone(), tier, self.shutdown.clone());
        self.parts.spawn(following.map(Ok));
        (fast_path, told)
    }

    /// Router solicitations, and who says by ARP that a machine's address is theirs.
    fn hear(&mut self, bridge: &BridgeInfo, segment: &Segment) {
        let answering = net::ra::serve(bridge.index, bridge.mac, self.shutdown.clone());
        self.parts.spawn(async { answering.await.context("answering router solicitations") });
        let (bridge, segment, shutdown) = (bridge.clone(), segment.clone(), self.shutdown.clone());
        self.parts.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                heard = segment.listen(&bridge) => heard.context("hearing ARP"),
            }
        });
    }

    fn tftp(
        &mut self,
        bridge: &BridgeInfo,
        segment: &Segment,
        fast_path: &ports::Loaded,
        catalog: Arc<Catalog>,
        told: mpsc::Receiver<pxe_common::map::Event>,
        timeline: Timeline,
    ) -> anyhow::Result<Arc<tftp::Stats>> {
        let left = fast_path.dataplane.as_ref().map(|d| d.left_ports()).unwrap_or_default();
        let tftp = Tftp::bind(bridge, segment.clone(), &left)?;
        let stats = tftp.stats();
        let kernel = fast_path.dataplane.clone().map(|d| d as Arc<dyn FastPath>);
        let serving = tftp.run(catalog, kernel, told, timeline, self.shutdown.clone());
        self.parts.spawn(async { serving.await.context("serving TFTP") });
        Ok(stats)
    }

    /// The services that machines reach over HTTP and HTTPS, and the receiver of what their dying kernels send.
    fn boots(
        &mut self,
        config: &Config,
        bridge: &BridgeInfo,
        segment: &Segment,
        boot: &BootState,
        connections: &Connections,
    ) -> anyhow::Result<()> {
        let (address, timeline) = (bridge.address.addr(), boot.timeline.clone());
        match crash::bind(bridge) {
            Ok(heard) => {
                let taking =
                    crash::take(heard, segment.clone(), boot.consoles.clone(), self.shutdown.clone());
                self.parts.spawn(taking.map(Ok));
            }
            Err(error) => tracing::warn!(port = crash::PORT, %error, "what dying kernels say is not heard"),
        }
        let listener = listen_on(bridge, config.http.port, "[http] port")?;
        let router = api::boot_router(boot.clone());
        let serving = api::serve(listener, router, connections.clone(), self.shutdown.clone());
        self.parts.spawn(serving.map(Ok));
        let listener = listen_on(bridge, config.http.tls_port, "[http] tls-port")?;
        let (router, tls) = (api::boot_router(boot.clone()), boot.trust.authority().server(address)?);
        let serving = api::serve_tls(listener, tls, router, connections.clone(), self.shutdown.clone());
        self.parts.spawn(serving.map(Ok));
        self.parts.spawn(end_silent_boots(timeline, self.shutdown.clone()));
        Ok(())
    }

    /// What does the launches.
    fn launches(&mut self, appliance: &Arc<Appliance>, driven: Driven, rescues: Rescues) {
        let site = Arc::new(launches::Surroundings::new(appliance.clone(), rescues));
        let timeline = appliance.timeline.clone();
        self.parts.spawn(launch::drive(driven, site, timeline, self.shutdown.clone()).map(Ok));
    }

    /// What looks after the ports, waves of boots and machines without names meanwhile.
    fn watch(&mut self, appliance: &Arc<Appliance>, unnamed: mpsc::Receiver<Unnamed>, facts: Known) {
        self.parts.spawn(naming::by_facts(appliance.clone(), facts, self.shutdown.clone()).map(Ok));
        self.parts.spawn(naming::give(appliance.clone(), unnamed, self.shutdown.clone()).map(Ok));
        self.parts.spawn(wave::watch(appliance.clone(), self.shutdown.clone()));
        self.parts.spawn(ports::watch(appliance.clone(), self.shutdown.clone()));
    }
}

fn tracer(bridge: &Bridge, fast_path: &ports::Loaded, timeline: Timeline) -> Tracer {
    let programs = fast_path.dataplane.clone().map(|d| d as Arc<dyn trace::Programs>);
    Tracer::new(bridge.info().clone(), bridge.ports().clone(), timeline, programs)
}

pub(super) async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}: another program may use it; {key} names another"))
}

/// Only on the bridge: a host on another network of the appliance that sends to the bridge's address is refused.
fn listen_on(bridge: &BridgeInfo, port: u16, key: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((bridge.address.addr(), port));
    let listening = || {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Connections of an earlier daemon may be in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(bridge.name.as_bytes()))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listening()
        .with_context(|| format!("listening on {address}: another program may use it; {key} names another"))
}

/// Marks boots as failed of which nothing is heard any more.
async fn end_silent_boots(timeline: Timeline, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(SILENCE_NOTICED);
    loop {
        tokio::select! {
            _ = tick.tick() => tokio::task::block_in_place(|| timeline.end_silent_boots()),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}
