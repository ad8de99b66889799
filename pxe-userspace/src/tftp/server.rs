//! Every transfer of the appliance: requests, ACKs and time go in, packets go out.
//!
//! One task owns it, and nothing here waits: files are opened elsewhere ([`Job::run`]), packets
//! leave through an [`Outbox`], and time is passed in.

mod ends;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use pxe_common::map::{Event, EventKind, Session, SessionKey};
use pxe_common::tftp::Packet;
use pxe_common::tftp::packet::{ErrorCode, Request};

use super::job::{Accepted, Job, Refused};
use super::live::{Live, send_error};
use super::stats::{Stat, Stats};
use super::transfer::{Action, IDLE, Transfer};
use super::{FastPath, Left, Note as Kept};
use crate::diagnosis::Note;
use crate::machines::Fetching;
use crate::timeline::{Timeline, Who};

/// Transfers at a time, requests under way included.
const MAX_TRANSFERS: usize = 4096;

/// A transfer without progress for this long gives way to a new request from the same port: GRUB
/// uses ports 25300 upward after every boot, and would take an old transfer's packets for the new.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// Timers are looked at this often while there is a transfer, and while one loses blocks.
const TICK: Duration = Duration::from_millis(100);
const QUICK_TICK: Duration = Duration::from_millis(10);

/// Sends packets. One that can't be sent at once is lost, as on any network.
pub(super) trait Outbox {
    /// Sends from data port number `port`.
    fn send(&mut self, port: usize, to: SocketAddrV4, packet: &[u8]);
}

pub(super) struct Server {
    address: Ipv4Addr,
    ports: Vec<u16>,
    mtu: u16,
    fast_path: Option<Arc<dyn FastPath>>,
    timeline: Timeline,
    stats: Arc<Stats>,
    transfers: HashMap<SessionKey, Entry>,
    /// When each client last asked for something.
    asked: HashMap<Ipv4Addr, u64>,
    /// Which data port was given out last.
    last_port: usize,
    /// When the dead were last looked for.
    swept_ns: u64,
    /// Some transfer's timeouts are shorter than a tick.
    quick: bool,
}

enum Entry {
    /// The file is being opened, since then.
    Opening {
        request: Vec<u8>,
        since_ns: u64,
    },
    Live(Box<Live>),
}

impl Server {
    pub(super) fn new(
        address: Ipv4Addr,
        ports: Vec<u16>,
        mtu: u16,
        fast_path: Option<Arc<dyn FastPath>>,
        timeline: Timeline,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            address,
            ports,
            mtu,
            fast_path,
            timeline,
            stats,
            transfers: HashMap::new(),
            asked: HashMap::new(),
            last_port: 0,
            swept_ns: 0,
            quick: false,
        }
    }

    /// Goes on with what a killed daemon left in the kernel.
    pub(super) fn resume(&mut self, now_ns: u64) {
        let Some(fast_path) = self.fast_path.clone() else { return };
        for Left { key, session, note, blob } in fast_path.left() {
            let port = self.ports.iter().position(|port| *port == key.server_port);
            let (Some(port), false) = (port.filter(|_| key.server == self.address.octets()), session.ended())
            else {
                fast_path.close(&key);
                continue;
            };
            let client = SocketAddrV4::new(key.client.into(), key.client_port);
            tracing::info!(%client, path = note.path, acked = session.transfer.acked(), "transfer taken over");
            let live = Live {
                port,
                client,
                // A repeated request means that the client saw no answer: it begins again.
                request: Vec::new(),
                path: note.path,
                blob,
                stage: note.stage,
                transfer: Transfer::resume(session.transfer, note.oack, note.started_ns, now_ns),
                in_kernel: true,
                started_ns: note.started_ns,
                sent_by_daemon: 0,
                repeated: 0,
                marks: 0,
            };
            self.transfers.insert(key, Entry::Live(Box::new(live)));
        }
    }

    /// Whether there is anything to time.
    pub(super) fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    /// A packet came to port 69. Returns the work that a new request means.
    pub(super) fn on_request(
        &mut self,
        client: SocketAddrV4,
        bytes: &[u8],
        now_ns: u64,
        out: &mut impl Outbox,
    ) -> Option<Job> {
        let request = match Packet::parse(bytes) {
            Ok(Packet::Read(request)) => request,
            Ok(Packet::Write(request)) => {
                self.stats.add(Stat::Refused, 1);
                tracing::info!(%client, path = %text(request.path), "write request refused");
                let port = self.next_port();
                send_error(out, port, client, ErrorCode::ACCESS, "this server is read-only");
                return None;
            }
            Ok(Packet::Data(..) | Packet::Ack(_) | Packet::Error(..) | Packet::Oack(_)) => {
                self.stats.add(Stat::Unknown, 1);
                return None;
            }
            Err(why) => {
                self.stats.add(Stat::Malformed, 1);
                tracing::debug!(%client, ?why, "not a TFTP packet");
                return None;
            }
        };
        self.stats.add(Stat::Requests, 1);
        self.asked.insert(*client.ip(), now_ns);
        if self.repeat(client, bytes, out) {
            return None;
        }
        let port = self.port_for(client, now_ns)?;
        if self.transfers.len() >= MAX_TRANSFERS {
            self.stats.add(Stat::Refused, 1);
            send_error(out, port, client, ErrorCode::OTHER, "too many transfers, try again");
            return None;
        }
        let key = self.key(client, port);
        self.transfers.insert(key, Entry::Opening { request: bytes.to_vec(), since_ns: now_ns });
        Some(self.job(key, client, port, &request, bytes))
    }

    /// A request's file was opened, or not.
    pub(super) fn on_opened(
        &mut self,
        job: &Job,
        opened: Result<Accepted, Refused>,
        now_ns: u64,
        out: &mut impl Outbox,
    ) {
        let waiting = matches!(self.transfers.get(&job.key), Some(Entry::Opening { request, .. }) if *request == job.request);
        if !waiting {
            // It took so long that nobody waits any more.
            if let Some(fast_path) = &self.fast_path {
                fast_path.close(&job.key);
            }
            return;
        }
        let accepted = match opened {
            Ok(accepted) => accepted,
            Err(refused) => {
                self.remove(&job.key);
                self.stats.add(Stat::Refused, 1);
                // GRUB and shim ask for many names that need not exist.
                tracing::debug!(client = %job.client, path = job.path, %refused, "refused");
                send_error(out, job.port, job.client, refused.code(), &refused.to_string());
                let note = Note::NotServed { path: job.path.clone(), why: refused.to_string() };
                self.timeline.note(Who::Address(*job.client.ip()), note);
                return;
            }
        };
        let Accepted { blob, stage, transfer, first, in_kernel } = accepted;
        if in_kernel {
            self.stats.add(Stat::FastPath, 1);
            if let Some(fast_path) = &self.fast_path {
                let (path, started_ns) = (job.path.clone(), now_ns);
                let oack = transfer.oack().map(<[u8]>::to_vec);
                let note = Kept { path, stage, started_ns, blob: blob.key(), len: blob.len(), oack };
                fast_path.note(&job.key, &note);
            }
        }
        let mut live = Box::new(Live {
            port: job.port,
            client: job.client,
            request: job.request.clone(),
            path: job.path.clone(),
            blob,
            stage,
            transfer,
            in_kernel,
            started_ns: now_ns,
            sent_by_daemon: 0,
            repeated: 0,
            marks: 0,
        });
        live.act(first, &self.stats, out);
        let blksize = Some(live.transfer.session().blksize());
        let note = Note::Opened { path: job.path.clone(), bytes: live.blob.len(), blksize };
        self.timeline.note(Who::Address(*job.client.ip()), note);
        self.transfers.insert(job.key, Entry::Live(live));
        self.report(&job.key);
    }

    /// A packet came to data port number `port`.
    pub(super) fn on_packet(
        &mut self,
        port: usize,
        client: SocketAddrV4,
        bytes: &[u8],
        now_ns: u64,
        out: &mut impl Outbox,
    ) {
        let key = self.key(client, port);
        let Some(Entry::Live(live)) = self.transfers.get_mut(&key) else {
            // Late packets of transfers that ended. An ERROR would hit whatever the client's port
            // is used for by now.
            self.stats.add(Stat::Unknown, 1);
            return;
        };
        match Packet::parse(bytes) {
            Ok(Packet::Ack(block)) => {
                let action = live.on_ack(&key, block, self.fast_path.as_deref(), &self.stats, now_ns);
                self.act(&key, action, now_ns, out);
            }
            Ok(Packet::Error(code, message)) => self.aborted(&key, code, message, now_ns),
            Ok(Packet::Read(_) | Packet::Write(_) | Packet::Data(..) | Packet::Oack(_)) => {
                send_error(out, port, client, ErrorCode::ILLEGAL, "not in a transfer");
                self.stats.add(Stat::Malformed, 1);
            }
            Err(_) => self.stats.add(Stat::Malformed, 1),
        }
    }

    /// The kernel did something to a transfer. What it was is the session's to say: an event may be of
    /// an earlier transfer between the same ports.
    pub(super) fn on_event(&mut self, event: &Event, now_ns: u64) {
        let (key, code) = event.transfer();
        let Some(session) = self.look(&key) else { return };
        if session.transfer.finished() {
            self.finished(&key, now_ns);
        } else if !session.ended() {
            self.report(&key);
        } else if event.kind() == Some(EventKind::Aborted) {
            // Not of a mark that was told before: only this one has the ERROR's code.
            self.aborted(&key, ErrorCode(code), b"", now_ns);
        }
    }

    /// Catches up with what the kernel did to a transfer, and returns it.
    pub(super) fn look(&mut self, key: &SessionKey) -> Option<Session> {
        match self.transfers.get_mut(key)? {
            Entry::Live(live) => live.observe(key, self.fast_path.as_deref()),
            Entry::Opening { .. } => None,
        }
    }

    /// How long to wait for the next [`on_tick`](Server::on_tick).
    pub(super) fn tick(&self) -> Duration {
        if self.quick { QUICK_TICK } else { TICK }
    }

    /// Time passed: repeats what was lost, notices what no event told, forgets the dead.
    pub(super) fn on_tick(&mut self, now_ns: u64, out: &mut impl Outbox) {
        if now_ns.saturating_sub(self.swept_ns) >= TICK.as_nanos() as u64 {
            self.swept_ns = now_ns;
            self.sweep(now_ns);
        }
        self.quick = false;
        let keys: Vec<SessionKey> = self.transfers.keys().copied().collect();
        for key in keys {
            let Some(Entry::Live(live)) = self.transfers.get_mut(&key) else { continue };
            self.quick |= live.transfer.is_quick();
            if !live.transfer.due(now_ns) {
                continue;
            }
            if live.observe(&key, self.fast_path.as_deref()).is_some_and(|session| session.ended()) {
                self.aborted(&key, ErrorCode::OTHER, b"", now_ns);
                continue;
            }
            let action = live.transfer.on_tick(now_ns);
            if matches!(action, Action::Send(_) | Action::SendOack) {
                self.stats.add(Stat::Repeated, 1);
                live.repeated = live.repeated.saturating_add(1);
            }
            self.act(&key, action, now_ns, out);
        }
    }

    fn sweep(&mut self, now_ns: u64) {
        // An opening that takes longer will not end: its client is gone, or its thread panicked.
        let idle_ns = IDLE.as_nanos() as u64;
        self.transfers.retain(|_, entry| match entry {
            Entry::Opening { since_ns, .. } => now_ns.saturating_sub(*since_ns) < idle_ns,
            Entry::Live(_) => true,
        });
        // Requests are remembered for transfers under way: addresses are easily made up.
        let clients: HashSet<[u8; 4]> = self.transfers.keys().map(|key| key.client).collect();
        self.asked.retain(|client, _| clients.contains(&client.octets()));
    }

    /// Closes every grant, and takes note of what ended unheard until now.
    pub(super) fn shut_down(&mut self, now_ns: u64) {
        for key in self.transfers.keys().copied().collect::<Vec<_>>() {
            if let Some(Entry::Live(live)) = self.transfers.get_mut(&key) {
                live.observe(&key, self.fast_path.as_deref());
                if live.transfer.session().finished() {
                    self.finished(&key, now_ns);
                    continue;
                }
            }
            if let Some(fast_path) = &self.fast_path {
                fast_path.close(&key);
            }
        }
    }

    fn act(&mut self, key: &SessionKey, action: Action, now_ns: u64, out: &mut impl Outbox) {
        match action {
            Action::Finished => self.finished(key, now_ns),
            Action::GiveUp => self.expired(key, now_ns),
            Action::Nothing | Action::SendOack | Action::Send(_) => {
                if let Some(Entry::Live(live)) = self.transfers.get_mut(key) {
                    live.act(action, &self.stats, out);
                }
                self.report(key);
            }
        }
    }

    /// Tells how much of one of its boot's files a machine has.
    fn report(&mut self, key: &SessionKey) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        if let (Some(percent), Some(_)) = (live.passed_mark(), live.stage) {
            let fetching = Fetching { path: live.path.clone(), percent };
            self.timeline.fetching(Who::Address(*live.client.ip()), Some(fetching));
        }
    }

    fn remove(&mut self, key: &SessionKey) -> Option<Entry> {
        let entry = self.transfers.remove(key);
        if self.transfers.is_empty() {
            self.asked.clear();
        }
        entry
    }

    /// Whether this request is one that was answered already, whose answer the client has not
    /// seen: then the same transfer's first packet goes out again.
    fn repeat(&mut self, client: SocketAddrV4, bytes: &[u8], out: &mut impl Outbox) -> bool {
        for port in 0..self.ports.len() {
            let key = self.key(client, port);
            match self.transfers.get_mut(&key) {
                Some(Entry::Opening { request, .. }) if request == bytes => return true,
                Some(Entry::Live(live)) if live.request == bytes => {
                    live.observe(&key, self.fast_path.as_deref());
                    if live.transfer.unanswered() {
                        let first = match live.transfer.session().in_flight() {
                            None => Action::SendOack,
                            Some(blocks) => Action::Send(blocks),
                        };
                        live.act(first, &self.stats, out);
                        return true;
                    }
                }
                Some(Entry::Opening { .. } | Entry::Live(_)) | None => {}
            }
        }
        false
    }

    /// A data port on which the client's port has no transfer: round and round, so that a port
    /// rests after a transfer. Ends dead transfers on the way, and the longest idle one when no
    /// port is free; none while that many files are being opened for the client's port.
    fn port_for(&mut self, client: SocketAddrV4, now_ns: u64) -> Option<usize> {
        let (mut free, mut dead) = (None, None);
        let mut idlest: Option<(u64, usize)> = None;
        for _ in 0..self.ports.len() {
            let port = self.next_port();
            let key = self.key(client, port);
            match self.transfers.get_mut(&key) {
                None => free = free.or(Some(port)),
                Some(Entry::Opening { .. }) => {}
                Some(Entry::Live(live)) => {
                    live.observe(&key, self.fast_path.as_deref());
                    let at = live.transfer.progress_ns();
                    if now_ns.saturating_sub(at) > DEAD_AFTER.as_nanos() as u64 {
                        if let Some((live, _)) = self.close(&key) {
                            self.stalled(&live);
                        }
                        self.stats.add(Stat::Expired, 1);
                        dead = dead.or(Some(port));
                    } else if idlest.is_none_or(|idlest| (at, port) < idlest) {
                        idlest = Some((at, port));
                    }
                }
            }
        }
        let port = free.or(dead).or(idlest.map(|(_, port)| port))?;
        if let Some((live, _)) = self.close(&self.key(client, port)) {
            self.stalled(&live);
        }
        self.last_port = port;
        Some(port)
    }

    fn next_port(&mut self) -> usize {
        self.last_port = (self.last_port + 1) % self.ports.len();
        self.last_port
    }

    fn key(&self, client: SocketAddrV4, port: usize) -> SessionKey {
        SessionKey {
            client: client.ip().octets(),
            server: self.address.octets(),
            client_port: client.port(),
            server_port: self.ports[port],
        }
    }

    fn job(
        &self,
        key: SessionKey,
        client: SocketAddrV4,
        port: usize,
        request: &Request<'_>,
        bytes: &[u8],
    ) -> Job {
        Job {
            key,
            client,
            port,
            path: text(request.path),
            request: bytes.to_vec(),
            mtu: self.mtu,
            fast_path: self.fast_path.clone(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
