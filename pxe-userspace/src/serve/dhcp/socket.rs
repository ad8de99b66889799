//! DHCP's I/O: receives, lets [`Server`] decide, has the store commit, sends.
//!
//! All packets that are queued when the task runs are one batch and one commit: under load hundreds of packets wait
//! for the disk once, and a lone packet waits only for its own commit.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::server::{Command, Elsewhere};
use super::wire::{BATCH, Heard, ServeError, Sockets};
use super::{
    Answered, Change, Counters, Kernel, Lease, LeaseState, LeaseStore, Rival, Room, Server, Told, Unnamed,
    kernel,
};
use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, DhcpMode};
use crate::host::net::{BridgeInfo, Certainty, Neighbours, Stations};
use crate::machines::Machines;
use crate::machines::pacing::ANYWHERE;
use crate::machines::timeline::{Timeline, Who};
use crate::store::{ReadError, Store};

/// How often waiting machines are checked even if nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// Sightings older than this are no longer reported.
const LATELY: Duration = Duration::from_secs(600);

/// The DHCP server as the rest of the daemon sees it. Cloning it is cheap.
#[derive(Clone)]
pub struct Dhcp {
    server: Arc<Mutex<Server>>,
    kernel: Option<Kernel>,
    reached: mpsc::UnboundedSender<(Mac, Stage)>,
    unnamed: mpsc::Sender<Unnamed>,
    named: mpsc::UnboundedSender<Unnamed>,
}

/// Machines that may be given names at a time. Others are answered as they are.
const UNNAMED: usize = 1024;

/// What [`Bound::run`] needs from [`Dhcp::open`].
pub struct Opened {
    store: LeaseStore,
    reached: mpsc::UnboundedReceiver<(Mac, Stage)>,
    named: mpsc::UnboundedReceiver<Unnamed>,
    unnamed: Option<mpsc::Receiver<Unnamed>>,
}

impl Opened {
    /// Machines that may be given names: [`Dhcp::named`] is told of each. Once.
    pub fn take_unnamed(&mut self) -> mpsc::Receiver<Unnamed> {
        self.unnamed.take().expect("it is taken once")
    }
}

/// What `bridgehead status` shows of DHCP.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub counters: Counters,
    /// Other DHCP servers on the wire.
    pub rivals: Vec<Rival>,
    /// Addresses that are leased now.
    pub bound: usize,
    /// How full the range is.
    pub room: Room,
    /// The machine in whose name a forged message was seen lately.
    #[serde(skip)]
    pub forged: Option<Mac>,
    /// A machine of another subnet that asked of late.
    #[serde(skip)]
    pub elsewhere: Option<Elsewhere>,
    pub pacing: PacingStatus,
}

fn pacing(server: &Server) -> PacingStatus {
    PacingStatus {
        most: server.pacing().most(),
        under_way: server.pacing().under_way(),
        waiting: server.pacing().waiting(),
        capacity: server.capacity(),
    }
}

/// How many boots are in progress, and how many wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PacingStatus {
    /// Boots that the links carry at a time; `None` if their speed is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub most: Option<usize>,
    /// Boots in progress; they are counted only if there is a limit.
    pub under_way: usize,
    pub waiting: usize,
    /// The capacity in bytes a second from which the limit is computed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub capacity: Option<u64>,
}

impl Dhcp {
    /// Loads the leases of the store, and tells `machines` who holds which address, and `kernel` whom it may answer.
    pub fn open(
        config: Arc<Config>,
        store: Store,
        machines: &Machines,
        kernel: Option<Kernel>,
    ) -> Result<(Self, Opened), ReadError> {
        let store = LeaseStore::new(store);
        let mut server = Server::new(config, store.load()?);
        if kernel.is_some() {
            // The kernel may have done anything while no daemon ran.
            server.heard(Timestamp::MIN, false);
        }
        for lease in server.leases().bound(Timestamp::now()) {
            machines.bound(lease.mac, lease.address);
        }
        warn_left_out(&server);
        let (got_on, reached) = mpsc::unbounded_channel();
        let (to_name, unnamed) = mpsc::channel(UNNAMED);
        let (was_named, named) = mpsc::unbounded_channel();
        let server = Arc::new(Mutex::new(server));
        let dhcp = Self { server, kernel, reached: got_on, unnamed: to_name, named: was_named };
        dhcp.tell_kernel_all(&dhcp.lock());
        Ok((dhcp, Opened { store, reached, named, unnamed: Some(unnamed) }))
    }

    /// Changes the configuration. If `dhcp.mode` changes to or from `off`, [`Bound::run`] has to be
    /// stopped or started.
    pub fn reconfigure(&self, config: Arc<Config>) {
        let mut server = self.lock();
        server.reconfigure(config);
        warn_left_out(&server);
        self.tell_kernel_all(&server);
    }

    /// The machine has its name, or gets none: what it asked for is answered now.
    pub fn named(&self, unnamed: Unnamed) {
        // Nobody takes it where DHCP is not served.
        let _ = self.named.send(unnamed);
    }

    /// A machine made progress in its boot, so it may be a waiting machine's turn. Never blocks.
    pub fn reached(&self, mac: Mac, stage: Stage) {
        // Nobody receives it if DHCP is not served.
        let _ = self.reached.send((mac, stage));
    }

    /// Whether the configuration has it off.
    pub fn is_off(&self) -> bool {
        self.lock().scope().mode() == DhcpMode::Off
    }

    /// The present configuration.
    #[cfg(test)]
    pub(crate) fn config(&self) -> Arc<Config> {
        self.lock().scope().config().clone()
    }

    /// The links to the machines carry this many bytes a second, if known.
    pub fn set_link_speed(&self, bytes_per_second: Option<u64>) {
        let mut server = self.lock();
        if !server.set_link_speed(bytes_per_second).is_empty() {
            self.tell_kernel_all(&server);
        }
    }

    /// Every address that is or was given out, by address.
    pub fn leases(&self) -> Vec<Lease> {
        self.lock().leases().iter().cloned().collect()
    }

    pub fn status(&self) -> Status {
        let (server, now) = (self.lock(), Timestamp::now());
        Status {
            counters: server.counters().clone(),
            rivals: server.rivals().cloned().collect(),
            bound: server.leases().bound(now).count(),
            room: server.leases().room(now),
            forged: server
                .last_forged()
                .filter(|(_, at)| now.duration_since(*at).unsigned_abs() < LATELY)
                .map(|(mac, _)| mac),
            elsewhere: server
                .last_elsewhere()
                .filter(|last| now.duration_since(last.time).unsigned_abs() < LATELY),
            pacing: pacing(&server),
        }
    }

    /// How many boots the links carry, and how many there are.
    pub fn pacing(&self) -> PacingStatus {
        pacing(&self.lock())
    }

    /// Makes the kernel answer the machine as the server would now, or not at all. Under the lock, so that
    /// a reload happens before or after it.
    fn tell_kernel(&self, mac: Mac) {
        if let Some(kernel) = &self.kernel {
            let (server, now) = (self.lock(), Timestamp::now());
            kernel.set(mac, server.standing(mac, now), now);
        }
    }

    fn tell_kernel_all(&self, server: &Server) {
        if let Some(kernel) = &self.kernel {
            let now = Timestamp::now();
            kernel.set_all(server.all_standing(now), now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unpoisoned()
    }
}

fn warn_left_out(server: &Server) {
    let left_out = &server.scope().left_out;
    if !left_out.is_empty() {
        tracing::warn!(
            options = ?left_out,
            "DHCP options that no reply will carry: the server makes them itself, or there is no room"
        );
    }
}

/// DHCP's sockets on a bridge: packets queue there until [`Bound::run`] answers them.
pub struct Bound(Sockets);

/// Opens the sockets.
pub fn bind(bridge: &BridgeInfo) -> Result<Bound, ServeError> {
    Sockets::open(bridge).map(Bound)
}

impl Bound {
    /// Serves DHCP until `shutdown`; `told` receives the kernel programs' messages.
    pub async fn run(
        self,
        dhcp: Dhcp,
        Opened { store, mut reached, mut named, .. }: Opened,
        machines: Machines,
        timeline: Timeline,
        mut told: mpsc::Receiver<Told>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let neighbours = Neighbours::of(&self.0.bridge);
        for lease in dhcp.lock().leases().bound(Timestamp::now()) {
            neighbours.learn(lease.address, lease.mac, Certainty::Lease);
        }
        let stations = Stations::of(&self.0.bridge);
        let mut task = Task { sockets: self.0, dhcp, store, machines, timeline, neighbours, stations };
        loop {
            let received = tokio::select! {
                () = shutdown.cancelled() => break,
                received = task.sockets.receive() => {
                    received.map(|packets| packets.into_iter().map(Received::Packet).collect())
                }
                Some(first) = told.recv() => Ok(heard(first, &mut told)),
                Some(first) = reached.recv() => Ok(got_on(first, &mut reached)),
                Some(first) = named.recv() => Ok(were_named(first, &mut named)),
                _ = tick.tick() => Ok(vec![Received::Tick]),
            };
            let bridge = || task.sockets.bridge.name.clone();
            let received = received.map_err(|source| ServeError::Receive { bridge: bridge(), source })?;
            task.answer(received).await;
        }
        task.neighbours.forget().await;
        Ok(())
    }
}

struct Task {
    sockets: Sockets,
    dhcp: Dhcp,
    store: LeaseStore,
    machines: Machines,
    timeline: Timeline,
    neighbours: Neighbours,
    stations: Stations,
}

impl Task {
    /// Decides about a batch, commits its changes, and only then sends anything.
    async fn answer(&mut self, batch: Vec<Received>) {
        let commands = self.decide(batch);
        let changes: Vec<Change> = commands
            .iter()
            .filter_map(|c| match c {
                Command::Persist(change) => Some(change.clone()),
                _ => None,
            })
            .collect();
        let ends = changes.iter().any(|c| matches!(c, Change::Put(l) if l.state == LeaseState::Released));
        let durable = self.commit(changes).await;
        for command in commands {
            self.perform(command, durable);
        }
        // Once the kernel can no longer promise it.
        if ends && let Some(kernel) = &self.dhcp.kernel {
            kernel.settle();
        }
    }

    fn decide(&mut self, mut batch: Vec<Received>) -> Vec<Command> {
        let now = Timestamp::now();
        // Without a limit it does not matter.
        if self.dhcp.lock().pacing().most().is_some() {
            batch.iter_mut().for_each(|received| self.place(received));
        }
        let mut server = self.dhcp.lock();
        let mut commands = Vec::new();
        for received in batch {
            commands.extend(match received {
                Received::Packet(Heard::Request(meta, bytes)) => server.handle(meta, &bytes, now),
                Received::Packet(Heard::Forged(mac)) => server.forged(mac, now),
                Received::Packet(Heard::Overheard(source, bytes)) => server.overhear(&bytes, source, now),
                Received::Named(Unnamed { meta, datagram, .. }) => server.handle_named(meta, &datagram, now),
                Received::Reached(mac, stage) => server.reached(mac, stage, now),
                Received::Tick => server.tick(now, |mac| self.is_fetching(mac)),
                Received::Told(Told::Event(event)) => {
                    Answered::of(&event).map(|answered| server.answered(answered, now)).unwrap_or_default()
                }
                Received::Told(Told::Heard { until_ns, lost }) => {
                    server.heard(kernel::time(until_ns, now), lost);
                    Vec::new()
                }
            });
        }
        commands
    }

    /// Notes by which port of the bridge a client without an address asks: a relay's may be anywhere.
    fn place(&mut self, received: &mut Received) {
        if let Received::Packet(Heard::Request(meta, message)) = received
            && meta.source.ip().is_unspecified()
            && let Some(mac) = message.get(28..34).and_then(|bytes| bytes.try_into().ok())
        {
            meta.behind = self.stations.port_of(Mac(mac)).unwrap_or(ANYWHERE);
        }
    }

    fn is_fetching(&self, mac: Mac) -> bool {
        self.machines.get(mac).is_some_and(|machine| machine.fetching.is_some())
    }

    async fn commit(&self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        match self.store.commit(&changes).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "leases were not stored");
                self.dhcp.lock().not_durable(&changes);
                false
            }
        }
    }

    fn perform(&self, command: Command, durable: bool) {
        match command {
            Command::Persist(_) => {}
            Command::Rival(rival) => tracing::warn!(
                server = %rival.server,
                evidence = ?rival.evidence,
                "another DHCP server answers on this segment, and machines may boot from it: \
                 stop it, or set dhcp.mode = \"proxy\""
            ),
            Command::Elsewhere(Elsewhere { place, mac, .. }) => tracing::warn!(
                %mac,
                from = %place,
                "a machine of another subnet asks for an address, and one subnet is served, that of [network] address"
            ),
            Command::Described { mac, firmware, uuid, profile } => {
                self.machines.described(mac, firmware, uuid, profile);
            }
            // Also after a failed commit, of which the server knows: then the grant is revoked.
            Command::Standing(mac) => self.dhcp.tell_kernel(mac),
            Command::AllStanding => self.dhcp.tell_kernel_all(&self.dhcp.lock()),
            Command::Waits(mac, before) => self.machines.waits(mac, before),
            Command::Unnamed(unnamed) => {
                if let Err(error) = self.dhcp.unnamed.try_send(unnamed) {
                    self.dhcp.named(error.into_inner());
                }
            }
            _ if !durable => {}
            Command::Bound { mac, address } => {
                self.machines.bound(mac, address);
                let certainty = match self.dhcp.lock().scope().mode() {
                    DhcpMode::Authoritative => Certainty::Lease,
                    DhcpMode::Proxy | DhcpMode::Off => Certainty::Hearsay,
                };
                self.neighbours.learn(address, mac, certainty);
            }
            Command::Released(mac) => {
                if let Some(address) = self.machines.get(mac).and_then(|machine| machine.address) {
                    self.neighbours.unlearn(address);
                }
                self.machines.released(mac);
            }
            Command::Event(happened) => self.timeline.record(happened),
            Command::Noted(mac, note) => self.timeline.note(Who::Mac(mac), note),
            Command::Forged(mac) => {
                tracing::debug!(%mac, "another station sent a DHCP message in this machine's name")
            }
            Command::Unanswered { source, why } => {
                tracing::debug!(%source, why, "no answer to a DHCP message")
            }
            Command::Send(reply) => {
                if let Err(error) = self.sockets.send(&reply) {
                    tracing::warn!(%error, to = ?reply.to, "a DHCP reply could not be sent");
                }
            }
        }
    }
}

enum Received {
    Packet(Heard),
    /// A message of the kernel.
    Told(Told),
    /// Its machine has been named since it came in.
    Named(Unnamed),
    /// A machine made progress in its boot.
    Reached(Mac, Stage),
    Tick,
}

/// All messages of the kernel up to now, `first` included.
fn heard(first: Told, told: &mut mpsc::Receiver<Told>) -> Vec<Received> {
    let more = std::iter::from_fn(|| told.try_recv().ok());
    std::iter::once(first).chain(more).take(BATCH).map(Received::Told).collect()
}

/// What is to be answered by now, `first` included.
fn were_named(first: Unnamed, named: &mut mpsc::UnboundedReceiver<Unnamed>) -> Vec<Received> {
    let more = std::iter::from_fn(|| named.try_recv().ok());
    std::iter::once(first).chain(more).take(BATCH).map(Received::Named).collect()
}

/// The stages that machines have reached up to now, `first` included.
fn got_on(first: (Mac, Stage), reached: &mut mpsc::UnboundedReceiver<(Mac, Stage)>) -> Vec<Received> {
    let more = std::iter::from_fn(|| reached.try_recv().ok());
    let all = std::iter::once(first).chain(more).take(BATCH);
    all.map(|(mac, stage)| Received::Reached(mac, stage)).collect()
}
