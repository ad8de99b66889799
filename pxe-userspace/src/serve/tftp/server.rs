//! All transfers of the appliance, as a pure function of requests, ACKs, the kernel's answers and time: what to send,
//! what to open, what to ask the kernel, what to record. Nothing here waits, reads a clock or touches a socket, a
//! file, a map or a lock.
//!
//! Each input produces [`Command`]s, which the caller performs before the next input ([`perform`](super::perform)),
//! and may change [`next_timeout`](Server::next_timeout).

mod command;
mod deadlines;
mod ends;
mod live;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use pxe_common::map::{Event, EventKind, Session, SessionKey, Stations};
use pxe_common::tftp::packet::ErrorCode;
use pxe_common::tftp::{BlockNo, Blocks, Packet};

use super::asker::{Asker, Sender};
use super::job::{Accepted, Job, Refused};
use super::stats::{Stat, Stats};
use super::transfer::{Action, IDLE, Transfer};
use super::{Declined, Left};
use crate::base::text::visible;
use crate::machines::Fetching;
use crate::machines::diagnosis::Note;
use crate::machines::segment::Standing;
use deadlines::Deadlines;
use live::Live;

use command::Then;
pub(super) use command::{Command, HandOver, Look, Outgoing, Tell, What};

/// Transfers at a time, including requests in progress and grants being closed, if the limit of descriptors allows it.
pub(super) const MAX_TRANSFERS: usize = 4096;

/// Transfers of one address: enough for a rack behind one router, or a host with two hundred clients, but a client that
/// only asks can't keep others out.
const MAX_OF_ADDRESS: usize = 256;

/// Transfers that one call of [`Server::on_timeout`] handles: then packets have their turn.
const DUE_AT_ONCE: usize = 64;

pub(super) struct Server {
    address: Ipv4Addr,
    ports: Vec<u16>,
    mtu: u16,
    stats: Arc<Stats>,
    limits: Limits,
    /// Transfers of clients that are no machines.
    others: usize,
    /// Until this time no transfer can be ended to make room.
    full_until_ns: u64,
    transfers: HashMap<SessionKey, Entry>,
    /// The clients that have transfers. No others are remembered, because addresses are easily forged.
    clients: HashMap<[u8; 4], Client>,
    deadlines: Deadlines,
    commands: VecDeque<Command>,
    /// Which data port was given out last.
    last_port: usize,
}

/// How many transfers there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// In all.
    pub(super) all: usize,
}

impl Limits {
    /// A quarter is kept for machines.
    fn of_others(self) -> usize {
        self.all - self.all / 4
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { all: MAX_TRANSFERS }
    }
}

enum Entry {
    /// The file is being opened, since then.
    Opening {
        request: Vec<u8>,
        since_ns: u64,
    },
    Live(Box<Live>),
    /// It is over, and its grant is being closed. A new grant between the same ports would be closed with it.
    Closing,
}

struct Client {
    transfers: usize,
    standing: Standing,
    /// Its transfers in the order of their requests, to find those to end for others. Those that ended, or were answered,
    /// are removed when it is their turn.
    waiting: VecDeque<SessionKey>,
    /// When it last asked for something.
    asked_ns: u64,
}

impl Server {
    pub(super) fn new(address: Ipv4Addr, ports: Vec<u16>, mtu: u16, stats: Arc<Stats>) -> Self {
        Self {
            address,
            ports,
            mtu,
            stats,
            limits: Limits::default(),
            others: 0,
            full_until_ns: 0,
            transfers: HashMap::new(),
            clients: HashMap::new(),
            deadlines: Deadlines::default(),
            commands: VecDeque::new(),
            last_port: 0,
        }
    }

    /// Limits the transfers to those for which the process has descriptors.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Continues the transfers that a killed daemon left in the kernel.
    pub(super) fn resume(&mut self, left: Vec<Left>, now_ns: u64) {
        for Left { key, session, note, blob } in left {
            let port = self.ports.iter().position(|port| *port == key.server_port);
            let (Some(port), false) = (port.filter(|_| key.server == self.address.octets()), session.ended())
            else {
                self.insert(key, Entry::Closing, now_ns, Standing::Machine);
                self.commands.push_back(Command::Close(key));
                continue;
            };
            let client = SocketAddrV4::new(key.client.into(), key.client_port);
            tracing::info!(%client, path = note.path, acked = session.transfer.acked(), "transfer taken over");
            let live = Live {
                port,
                client,
                stations: session.stations,
                standing: Standing::Machine,
                // A repeated request means that the client saw no answer and starts over.
                request: Vec::new(),
                path: note.path,
                blob,
                stage: note.stage,
                transfer: Transfer::resume(session.transfer, note.oack, note.started_ns, now_ns),
                granted: true,
                in_kernel: true,
                hand_over_ns: None,
                handed_over: 0,
                sent_by_kernel: (session.sent_by_xdp, session.sent_by_tc),
                sent_by_daemon: 0,
                started_ns: note.started_ns,
                repeated: 0,
                marks: 0,
                armed_ns: None,
            };
            // It did not ask this daemon.
            self.insert(key, Entry::Live(Box::new(live)), 0, Standing::Machine);
            self.arm(&key, now_ns);
        }
    }

    /// The next Command. Until none is left, no other input is allowed but answers to Commands.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`on_timeout`](Server::on_timeout) is due; nothing while there is nothing to time.
    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.deadlines.first()
    }

    /// A request's file was opened, or not.
    pub(super) fn on_opened(&mut self, job: &Job, opened: Result<Accepted, Refused>, now_ns: u64) {
        let entry = self.transfers.get(&job.key);
        if !matches!(entry, Some(Entry::Opening { request, .. }) if *request == job.request) {
            // It took so long that the client is gone.
            if opened.is_ok_and(|accepted| accepted.in_kernel) {
                if entry.is_none() {
                    self.insert(job.key, Entry::Closing, now_ns, job.standing);
                }
                self.commands.push_back(Command::Close(job.key));
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
                self.send_error(job.port, job.client, refused.code(), &refused.to_string());
                let note = Note::NotServed { path: job.path.clone(), why: refused.to_string() };
                self.note(job.client, note);
                return;
            }
        };
        let Accepted { blob, stage, transfer, first, in_kernel, later } = accepted;
        self.stats.add(Stat::FastPath, u64::from(in_kernel));
        let mut live = Box::new(Live {
            port: job.port,
            client: job.client,
            stations: job.stations,
            standing: job.standing,
            request: job.request.clone(),
            path: job.path.clone(),
            blob,
            stage,
            transfer,
            granted: in_kernel,
            in_kernel,
            hand_over_ns: later.then_some(now_ns),
            handed_over: 0,
            sent_by_kernel: (0, 0),
            sent_by_daemon: 0,
            started_ns: now_ns,
            repeated: 0,
            marks: 0,
            armed_ns: None,
        });
        live.act(first, &mut self.commands);
        let blksize = Some(live.transfer.session().blksize());
        let note = Note::Opened { path: job.path.clone(), bytes: live.blob.len(), blksize };
        self.remove_deadline(&job.key);
        self.transfers.insert(job.key, Entry::Live(live));
        self.note(job.client, note);
        self.report(&job.key);
        self.arm(&job.key, now_ns);
    }

    /// A packet came to data port number `port`.
    pub(super) fn on_packet(&mut self, port: usize, from: impl Into<Sender>, bytes: &[u8], now_ns: u64) {
        let Sender { address: client, stations } = from.into();
        let key = self.key(client, port);
        let Some(Entry::Live(live)) = self.transfers.get_mut(&key) else {
            // Late packets of ended transfers. An ERROR would hit whatever uses the client's port by
            // now.
            self.stats.add(Stat::Unknown, 1);
            return;
        };
        if live.stations != stations && live.stations != Stations::ANY {
            self.stats.add(Stat::Foreign, 1);
            return;
        }
        match Packet::parse(bytes) {
            // The programs passed an ACK of a transfer of theirs, because they can't answer it (no room in
            // the driver's buffer and no tc, a grant that ended). The daemon continues the transfer.
            Ok(Packet::Ack(ack)) if live.in_kernel => {
                self.commands.push_back(Command::TakeBack { key, ack });
            }
            Ok(Packet::Ack(ack)) => {
                let in_flight = live.transfer.session().in_flight();
                let action = live.transfer.on_ack(ack, now_ns);
                if let Action::Send(blocks) = action
                    && let Some(over) = live.hand_over(&key, in_flight, blocks, now_ns)
                {
                    return self.commands.push_back(Command::HandOver(Box::new(over)));
                }
                self.act(&key, action, now_ns);
            }
            Ok(Packet::Error(code, message)) => self.aborted(&key, code, message, now_ns),
            Ok(Packet::Read(_) | Packet::Write(_) | Packet::Data(..) | Packet::Oack(_)) => {
                self.send_error(port, client, ErrorCode::ILLEGAL, "not in a transfer");
                self.stats.add(Stat::Malformed, 1);
            }
            Err(_) => self.stats.add(Stat::Malformed, 1),
        }
    }

    /// The kernel answers this transfer's next ACKs; or not, or not yet. What the client waits for is sent now.
    pub(super) fn on_handed_over(
        &mut self,
        key: &SessionKey,
        blocks: Blocks,
        taken: &Result<(), Declined>,
        now_ns: u64,
    ) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        match taken {
            Ok(()) => {
                live.taken_by_kernel();
                self.stats.add(Stat::FastPath, 1);
            }
            Err(Declined::NotYet) => {}
            Err(
                Declined::BlockSize
                | Declined::Small
                | Declined::Full { .. }
                | Declined::Kernel(_)
                | Declined::Read(_)
                | Declined::Changed,
            ) => live.hand_over_ns = None,
        }
        self.act(key, Action::Send(blocks), now_ns);
    }

    /// The kernel answers no more ACKs of this transfer, and got so far; nothing when it had forgotten it.
    pub(super) fn on_taken_back(
        &mut self,
        key: &SessionKey,
        ack: BlockNo,
        last: Option<&Session>,
        now_ns: u64,
    ) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        if let Some(last) = last {
            live.observe(last);
        }
        if live.transfer.session().finished() {
            return self.finished(key, now_ns);
        }
        live.taken_back(now_ns);
        let action = live.transfer.on_ack(ack, now_ns);
        self.stats.add(Stat::HandedBack, 1);
        self.act(key, action, now_ns);
    }

    /// The kernel did something with a transfer. Only the session says what it was, because an event may
    /// belong to an earlier transfer between the same ports.
    pub(super) fn on_event(&mut self, event: &Event) {
        let (key, code) = event.transfer();
        if self.is_in_kernel(&key) {
            let error = (event.kind() == Some(EventKind::Aborted)).then_some(ErrorCode(code));
            self.look(key, Then::Told { error });
        }
    }

    /// The kernel's progress with a transfer; `None` if the kernel has lost it.
    pub(super) fn on_looked(&mut self, look: Look, session: Option<&Session>, now_ns: u64) {
        let Look { key, then } = look;
        let mut ended = false;
        if let (Some(Entry::Live(live)), Some(session)) = (self.transfers.get_mut(&key), session)
            && live.in_kernel
        {
            live.observe(session);
            ended = session.ended();
        }
        match then {
            Then::Due if ended => self.aborted(&key, ErrorCode::OTHER, b"", now_ns),
            Then::Due => self.timed_out(&key, now_ns),
            Then::Told { error } => self.told(&key, ended, error, now_ns),
            Then::Asked { asker, request, next_port } => self.ask(asker, &request, next_port, now_ns),
            Then::End => self.end_now(&key, now_ns),
        }
        // This may have moved its timeout forward.
        self.arm(&key, now_ns);
    }

    /// A transfer's grant is closed. Its ports are free again.
    pub(super) fn on_closed(&mut self, key: &SessionKey) {
        if matches!(self.transfers.get(key), Some(Entry::Closing)) {
            self.remove(key);
        }
    }

    /// A block that was to be sent could not be read.
    pub(super) fn on_unreadable(&mut self, port: usize, client: SocketAddrV4, index: u32) {
        if let Some(Entry::Live(live)) = self.transfers.get(&self.key(client, port)) {
            tracing::error!(path = live.path, index, "the file became unreadable while it was sent");
        }
        self.send_error(port, client, ErrorCode::OTHER, "the file became unreadable");
    }

    /// Time passed: retransmits lost blocks, notices what no event reported, and ends transfers of gone clients. Handles a
    /// bounded number of transfers; if more are due, [`next_timeout`](Server::next_timeout) stays in the past.
    pub(super) fn on_timeout(&mut self, now_ns: u64) {
        for _ in 0..DUE_AT_ONCE {
            let Some(key) = self.deadlines.pop_due(now_ns) else { return };
            match self.transfers.get_mut(&key) {
                // An opening that takes longer has no use: its client is gone, or its thread panicked.
                Some(Entry::Opening { .. }) => drop(self.remove(&key)),
                Some(Entry::Live(live)) => {
                    live.armed_ns = None;
                    let looks = live.in_kernel && live.transfer.looks_every().is_some();
                    if live.transfer.next_timeout_ns() > now_ns && !looks {
                        // Its client has answered since it was entered.
                        self.arm(&key, now_ns);
                    } else if live.in_kernel {
                        self.look(key, Then::Due);
                        self.arm_after_look(&key, now_ns);
                    } else {
                        self.timed_out(&key, now_ns);
                    }
                }
                Some(Entry::Closing) | None => {}
            }
        }
    }

    /// Ends every grant, and records transfers whose end was not reported yet.
    pub(super) fn shut_down(&mut self) {
        for key in self.transfers.keys().copied().collect::<Vec<_>>() {
            match self.transfers.get(&key) {
                Some(Entry::Live(live)) if live.in_kernel => self.look(key, Then::End),
                Some(Entry::Live(live)) if live.granted => self.commands.push_back(Command::Close(key)),
                // Its job may have got a grant.
                Some(Entry::Opening { .. }) => self.commands.push_back(Command::Close(key)),
                Some(Entry::Live(_) | Entry::Closing) | None => {}
            }
        }
    }
}

impl Server {
    fn told(&mut self, key: &SessionKey, ended: bool, error: Option<ErrorCode>, now_ns: u64) {
        let Some(Entry::Live(live)) = self.transfers.get(key) else { return };
        if live.transfer.session().finished() {
            self.finished(key, now_ns);
        } else if !ended {
            self.report(key);
        } else if let Some(code) = error {
            // Not of a mark that was reported before: only this one has the ERROR's code.
            self.aborted(key, code, b"", now_ns);
        }
    }

    /// A transfer's timeout is due, and its state is up to date.
    fn timed_out(&mut self, key: &SessionKey, now_ns: u64) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        let action = live.on_tick(now_ns);
        if matches!(action, Action::Send(_) | Action::SendOack) {
            self.stats.add(Stat::Repeated, 1);
            live.repeated = live.repeated.saturating_add(1);
        }
        self.act(key, action, now_ns);
    }

    fn act(&mut self, key: &SessionKey, action: Action, now_ns: u64) {
        match action {
            Action::Finished => self.finished(key, now_ns),
            Action::GiveUp => self.expired(key, now_ns),
            Action::Nothing | Action::SendOack | Action::Send(_) => {
                if let Some(Entry::Live(live)) = self.transfers.get_mut(key) {
                    live.act(action, &mut self.commands);
                }
                self.report(key);
                self.arm(key, now_ns);
            }
        }
    }

    /// Reports how much of a file of its boot a machine has.
    fn report(&mut self, key: &SessionKey) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        if let (Some(percent), Some(_)) = (live.passed_mark(), live.stage) {
            let fetching = Fetching { path: live.path.clone(), percent };
            let tell = Tell::Fetching(*live.client.ip(), Some(fetching));
            self.commands.push_back(Command::Tell(tell));
        }
    }

    fn note(&mut self, client: SocketAddrV4, note: Note) {
        self.commands.push_back(Command::Tell(Tell::Note(*client.ip(), note)));
    }

    fn send_error(&mut self, port: usize, to: SocketAddrV4, code: ErrorCode, message: &str) {
        self.commands.extend(Outgoing::error(port, to, code, message));
    }

    fn look(&mut self, key: SessionKey, then: Then) {
        self.commands.push_back(Command::Look(Look { key, then }));
    }

    fn is_in_kernel(&self, key: &SessionKey) -> bool {
        matches!(self.transfers.get(key), Some(Entry::Live(live)) if live.in_kernel)
    }

    /// Makes sure that a transfer is due in time. One that is due too early is entered again then, so an ACK has to move
    /// only a deadline that a silent client had postponed.
    fn arm(&mut self, key: &SessionKey, now_ns: u64) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        let at_ns = live.deadline_ns(now_ns);
        if live.armed_ns.is_none_or(|armed_ns| at_ns < armed_ns) {
            self.deadlines.set(key, live.armed_ns.replace(at_ns), at_ns);
        }
    }

    /// Makes sure that it is due again even if no answer comes.
    fn arm_after_look(&mut self, key: &SessionKey, now_ns: u64) {
        let Some(Entry::Live(live)) = self.transfers.get_mut(key) else { return };
        let at_ns = now_ns + IDLE.as_nanos() as u64;
        self.deadlines.set(key, live.armed_ns.replace(at_ns), at_ns);
    }

    fn insert(&mut self, key: SessionKey, entry: Entry, asked_ns: u64, standing: Standing) {
        let new = || Client { transfers: 0, standing, waiting: VecDeque::new(), asked_ns };
        let client = self.clients.entry(key.client).or_insert_with(new);
        client.transfers += 1;
        self.others += usize::from(client.standing != Standing::Machine);
        if let Entry::Opening { since_ns, .. } = &entry {
            client.waiting.push_back(key);
            self.deadlines.set(&key, None, opening_ends(*since_ns));
        }
        self.transfers.insert(key, entry);
    }

    fn remove(&mut self, key: &SessionKey) -> Option<Entry> {
        self.remove_deadline(key);
        let entry = self.transfers.remove(key)?;
        if let Some(client) = self.clients.get_mut(&key.client) {
            client.transfers -= 1;
            self.others -= usize::from(client.standing != Standing::Machine);
            if client.transfers == 0 {
                self.clients.remove(&key.client);
            }
        }
        Some(entry)
    }

    fn remove_deadline(&mut self, key: &SessionKey) {
        let at_ns = match self.transfers.get_mut(key) {
            Some(Entry::Opening { since_ns, .. }) => Some(opening_ends(*since_ns)),
            Some(Entry::Live(live)) => live.armed_ns.take(),
            Some(Entry::Closing) | None => None,
        };
        if let Some(at_ns) = at_ns {
            self.deadlines.remove(key, at_ns);
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    /// Updates a transfer from the kernel without an event.
    #[cfg(test)]
    pub(super) fn observe(&mut self, key: &SessionKey, session: &Session, now_ns: u64) {
        if let Some(Entry::Live(live)) = self.transfers.get_mut(key)
            && live.in_kernel
        {
            live.observe(session);
        }
        self.arm(key, now_ns);
    }

    fn key(&self, client: SocketAddrV4, port: usize) -> SessionKey {
        SessionKey {
            client: client.ip().octets(),
            server: self.address.octets(),
            client_port: client.port(),
            server_port: self.ports[port],
        }
    }
}

fn opening_ends(since_ns: u64) -> u64 {
    since_ns + IDLE.as_nanos() as u64
}

/// A client's text, escaped: paths appear in evidence, in the log and on terminals.
fn text(bytes: &[u8]) -> String {
    visible(&String::from_utf8_lossy(bytes))
}
