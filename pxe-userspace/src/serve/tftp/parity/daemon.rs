//! A daemon, whose time the test sets.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Instant;

use pxe_common::map::{self, SessionKey};
use tokio::sync::broadcast;

use super::frozen::{Frozen, advanced};
use super::{CLIENT, CLIENT_MAC, PORTS, Pool, SERVER};
use crate::machines::Machines;
use crate::machines::timeline::{Event, Timeline, Who};
use crate::serve::tftp::aside::tell_people;
use crate::serve::tftp::job::Job;
use crate::serve::tftp::perform::{Performer, World};
use crate::serve::tftp::server::{HandOver, Server, Tell};
use crate::serve::tftp::transfer::IDLE;
use crate::serve::tftp::{Declined, FastPath as _};

/// A server and its environment.
pub(super) struct Daemon {
    pub(super) server: Server,
    pub(super) performer: Performer,
    pub(super) world: Surroundings,
    pub(super) machines: Machines,
    pub(super) events: broadcast::Receiver<Event>,
    _dir: tempfile::TempDir,
}

/// A server's environment here, in which everything is done at once.
pub(super) struct Surroundings {
    pub(super) now_ns: u64,
    pub(super) fast_path: Option<Arc<Frozen>>,
    pub(super) timeline: Timeline,
    pub(super) sent: Vec<(usize, SocketAddrV4, Vec<u8>)>,
    pub(super) jobs: Vec<Job>,
    pub(super) closed: Vec<SessionKey>,
}

impl World for Surroundings {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn send(&mut self, port: usize, to: SocketAddrV4, packet: &[u8]) {
        self.sent.push((port, to, packet.to_vec()));
    }

    fn open(&mut self, job: Job) {
        self.jobs.push(job);
    }

    fn look(&mut self, key: &SessionKey) -> Option<map::Session> {
        self.fast_path.as_ref()?.look(key)
    }

    fn take_back(&mut self, key: &SessionKey) -> Option<map::Session> {
        self.fast_path.as_ref()?.take_back(key)
    }

    fn hand_over(&mut self, over: &HandOver) -> Result<(), Declined> {
        let HandOver { key, stations, blob, session, .. } = over;
        let Some(fast_path) = &self.fast_path else { return Err(Declined::NotYet) };
        fast_path.hand_over(*key, *stations, blob, *session, self.now_ns, IDLE)
    }

    fn close(&mut self, key: SessionKey) {
        if let Some(fast_path) = &self.fast_path {
            fast_path.close(&key);
        }
        self.closed.push(key);
    }

    fn tell(&mut self, tell: Tell) {
        tell_people(&self.timeline, tell, Instant::now());
    }
}

impl Daemon {
    pub(super) fn new(fast_path: Option<Arc<Frozen>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machines = Machines::default();
        machines.bound(CLIENT_MAC, *CLIENT.ip());
        let timeline =
            Timeline::open(crate::store::Store::open(&dir.path().join("db")).unwrap(), machines.clone())
                .unwrap();
        let events = timeline.subscribe();
        let (sent, jobs, closed) = Default::default();
        let world = Surroundings { now_ns: 0, fast_path, timeline, sent, jobs, closed };
        let performer = Performer::new(Arc::default());
        Self { server: Self::server(1500), performer, world, machines, events, _dir: dir }
    }

    fn server(mtu: u16) -> Server {
        Server::new(SERVER, PORTS.collect(), mtu, Arc::default())
    }

    pub(super) fn begin(&mut self, mtu: u16) {
        self.world.sent.clear();
        self.world.timeline.fetching(Who::Mac(CLIENT_MAC), None);
        self.events = self.world.timeline.subscribe();
        self.server = Self::server(mtu);
    }

    pub(super) fn ask(&mut self, request: &[u8], skip: u32, now_ns: u64) {
        self.input(now_ns, |server| server.on_request(CLIENT, request, now_ns));
        for job in std::mem::take(&mut self.world.jobs) {
            let fast_path = self.world.fast_path.clone();
            let mut opened = Job::run(&job, &Pool, fast_path.as_deref().map(|f| f as _), || now_ns);
            if let Ok(accepted) = &mut opened {
                let session = advanced(*accepted.transfer.session(), skip, now_ns);
                accepted.transfer.observed(session);
            }
            self.input(now_ns, |server| server.on_opened(&job, opened, now_ns));
        }
    }

    pub(super) fn packet(&mut self, port: usize, payload: &[u8], now_ns: u64) {
        self.input(now_ns, |server| server.on_packet(port, CLIENT, payload, now_ns));
    }

    pub(super) fn time(&mut self, now_ns: u64) {
        self.input(now_ns, |server| server.on_timeout(now_ns));
    }

    /// Performs an input, and everything that results from it.
    pub(super) fn input(&mut self, now_ns: u64, input: impl FnOnce(&mut Server)) {
        self.world.now_ns = now_ns;
        input(&mut self.server);
        self.performer.perform(&mut self.server, &mut self.world);
        for key in std::mem::take(&mut self.world.closed) {
            self.server.on_closed(&key);
        }
    }
}
