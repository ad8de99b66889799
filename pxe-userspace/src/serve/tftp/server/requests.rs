//! Requests to port 69.

use std::net::SocketAddrV4;
use std::time::Duration;

use pxe_common::tftp::Packet;
use pxe_common::tftp::packet::{ErrorCode, Malformed};

use super::{
    Asker, Command, Entry, Job, MAX_OF_ADDRESS, Sender, Server, Standing, Stat, Stations, Then, text,
};
use crate::serve::tftp::transfer::Action;

/// A transfer without progress for this long is ended by a new request from the same port: GRUB uses
/// ports 25300 upward after every boot, and would take an old transfer's packets for the new one's.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// A transfer may be answered within this time before it can be ended for another. The programs report a first ACK at
/// once, and other ACKs are seen when a block would be retransmitted.
const UNANSWERED_STAYS: Duration = Duration::from_millis(400);

/// If no transfer could be ended to make room, none is looked for again for this long.
const FULL_FOR: Duration = Duration::from_millis(20);

/// How many addresses are searched for a transfer that can be ended.
const GREEDY_ASKED: usize = 16;

/// Where a new transfer goes.
struct Place {
    port: usize,
    /// An old transfer is there, and has to end.
    taken: bool,
}

impl Server {
    /// A packet came to port 69.
    pub(in crate::serve::tftp) fn on_request(&mut self, asker: impl Into<Asker>, bytes: &[u8], now_ns: u64) {
        let asker = asker.into();
        let client = asker.sender.address;
        match Packet::parse(bytes) {
            Ok(Packet::Read(_)) => {
                self.stats.add(Stat::Requests, 1);
                if let Some(known) = self.clients.get_mut(&client.ip().octets()) {
                    known.asked_ns = now_ns;
                }
                self.ask(asker, bytes, 0, now_ns);
            }
            Ok(Packet::Write(request)) => {
                self.stats.add(Stat::Refused, 1);
                self.stats.add(Stat::Writes, 1);
                tracing::debug!(%client, path = %text(request.path), "write request refused");
                let port = self.next_port();
                self.send_error(port, client, ErrorCode::ACCESS, "this server is read-only");
            }
            Ok(Packet::Data(..) | Packet::Ack(_) | Packet::Error(..) | Packet::Oack(_)) => {
                self.stats.add(Stat::Unknown, 1);
            }
            Err(why) => {
                self.stats.add(Stat::Malformed, 1);
                tracing::debug!(%client, ?why, "not a TFTP packet");
                // After silence the client would ask again and again (RFC 1350 section 5, code 4).
                let message = match why {
                    Malformed::Mode => "the mode is neither octet nor netascii",
                    Malformed::Opcode => "this is no TFTP operation",
                    Malformed::Text => "the request is cut short",
                    Malformed::Short => return,
                };
                let port = self.next_port();
                self.send_error(port, client, ErrorCode::ILLEGAL, message);
            }
        }
    }

    /// The first fragment of what came to port 69. No loader's path is so long, and nothing is put together here; but
    /// who asks is told.
    pub(in crate::serve::tftp) fn on_fragment(&mut self, sender: impl Into<Sender>, bytes: &[u8]) {
        let client = sender.into().address;
        self.stats.add(Stat::Malformed, 1);
        tracing::debug!(%client, "a request in IP fragments");
        // An ERROR is never answered, and nor is what may be one.
        if matches!(bytes, [0, 1 | 2, ..]) {
            let port = self.next_port();
            self.send_error(port, client, ErrorCode::ILLEGAL, "a request has to fit in one packet");
        }
    }

    /// Has the kernel asked about the client's transfers from data port number `port` on, one after the other:
    /// what becomes of the request depends on how far they are.
    pub(super) fn ask(&mut self, asker: Asker, request: &[u8], port: usize, now_ns: u64) {
        let client = asker.sender.address;
        let in_kernel = |port: &usize| self.is_in_kernel(&self.key(client, *port));
        match (port..self.ports.len()).find(in_kernel) {
            Some(port) => {
                let then = Then::Asked { asker, request: request.to_vec(), next_port: port + 1 };
                self.look(self.key(client, port), then);
            }
            None => self.answer(asker, request, now_ns),
        }
    }

    fn answer(&mut self, asker: Asker, bytes: &[u8], now_ns: u64) {
        let Asker { sender: Sender { address: client, stations }, standing } = asker;
        let Ok(Packet::Read(request)) = Packet::parse(bytes) else { return };
        if self.repeat(client, stations, bytes, now_ns) {
            return;
        }
        let Some(Place { port, taken }) = self.place_for(client, now_ns) else { return };
        if !taken && !self.has_room(client, standing, now_ns) {
            self.stats.add(Stat::Refused, 1);
            return self.send_error(port, client, ErrorCode::OTHER, "too many transfers, try again");
        }
        let key = self.key(client, port);
        // Closed by the job, before it asks for a grant of its own.
        let close_first = taken && self.replaced(&key);
        self.insert(key, Entry::Opening { request: bytes.to_vec(), since_ns: now_ns }, now_ns, standing);
        self.commands.push_back(Command::Open(Box::new(Job {
            key,
            client,
            stations,
            standing,
            port,
            path: text(request.path),
            request: bytes.to_vec(),
            mtu: self.mtu,
            close_first,
        })));
    }

    /// Whether this request was answered already and the client has not seen the answer: then the same
    /// transfer's first packet is sent again.
    fn repeat(&mut self, client: SocketAddrV4, stations: Stations, bytes: &[u8], now_ns: u64) -> bool {
        for port in 0..self.ports.len() {
            let key = self.key(client, port);
            match self.transfers.get_mut(&key) {
                Some(Entry::Opening { request, .. }) if request == bytes => return true,
                Some(Entry::Live(live))
                    if live.request == bytes && live.stations == stations && live.transfer.unanswered() =>
                {
                    let first = match live.transfer.session().in_flight() {
                        None => Action::SendOack,
                        Some(blocks) => Action::Send(blocks),
                    };
                    live.act(first, &mut self.commands);
                    self.arm(&key, now_ns);
                    return true;
                }
                Some(Entry::Opening { .. } | Entry::Live(_) | Entry::Closing) | None => {}
            }
        }
        false
    }

    /// A data port on which the client's port has no transfer. Ports are used in turn, so that each is
    /// idle for a while after a transfer. Ends dead transfers on the way, and the longest idle one if no
    /// port is free; `None` while that many files are being opened for the client's port.
    fn place_for(&mut self, client: SocketAddrV4, now_ns: u64) -> Option<Place> {
        let (mut free, mut dead) = (None, Vec::new());
        let mut idlest: Option<(u64, usize)> = None;
        for _ in 0..self.ports.len() {
            let port = self.next_port();
            match self.transfers.get(&self.key(client, port)) {
                None => free = free.or(Some(port)),
                Some(Entry::Opening { .. } | Entry::Closing) => {}
                Some(Entry::Live(live)) => {
                    let at = live.transfer.progress_ns();
                    if now_ns.saturating_sub(at) > DEAD_AFTER.as_nanos() as u64 {
                        dead.push(port);
                    } else if idlest.is_none_or(|idlest| (at, port) < idlest) {
                        idlest = Some((at, port));
                    }
                }
            }
        }
        let first_dead = dead.first().copied();
        let port = free.or(first_dead).or(idlest.map(|(_, port)| port));
        self.stats.add(Stat::Expired, dead.len() as u64);
        for dead in dead {
            if Some(dead) != port {
                self.gave_way(&self.key(client, dead));
            }
        }
        let port = port?;
        self.last_port = port;
        Some(Place { port, taken: free.is_none() })
    }

    /// Whether there is a place for another transfer, or one is made: transfers that were never answered are ended, first
    /// the oldest of the address that has most, but never a machine's for another client's.
    fn has_room(&mut self, client: SocketAddrV4, standing: Standing, now_ns: u64) -> bool {
        let own = client.ip().octets();
        if self.clients.get(&own).is_some_and(|known| known.transfers >= MAX_OF_ADDRESS) {
            return self.give_way(own, now_ns);
        }
        let others = standing != Standing::Machine;
        if self.transfers.len() < self.limits.all && !(others && self.others >= self.limits.of_others()) {
            return true;
        }
        // So that a flood of requests searches only once in a while.
        if now_ns < self.full_until_ns {
            return false;
        }
        // Few addresses have many transfers. Those of which none can be ended are skipped.
        let mut greedy: Vec<_> = self.clients.iter().map(|(a, c)| (c.standing, c.transfers, *a)).collect();
        greedy.sort_unstable_by_key(|(standing, transfers, _)| (*standing, std::cmp::Reverse(*transfers)));
        greedy.retain(|(of, ..)| *of != Standing::Machine || !others);
        let made = greedy.into_iter().take(GREEDY_ASKED).any(|(.., address)| self.give_way(address, now_ns));
        if !made {
            self.full_until_ns = now_ns + FULL_FOR.as_nanos() as u64;
        }
        made
    }

    /// Ends the oldest transfer from this address that was never answered, if there is one.
    fn give_way(&mut self, address: [u8; 4], now_ns: u64) -> bool {
        let Some(client) = self.clients.get_mut(&address) else { return false };
        let mut found = None;
        while let Some(key) = client.waiting.front().copied() {
            match self.transfers.get(&key) {
                Some(Entry::Live(live)) if live.transfer.unanswered() => {
                    let age = now_ns.saturating_sub(live.started_ns);
                    found = (age >= UNANSWERED_STAYS.as_nanos() as u64).then_some(key);
                    break;
                }
                Some(Entry::Opening { .. }) => break,
                // It was answered, or is over.
                Some(Entry::Live(_) | Entry::Closing) | None => drop(client.waiting.pop_front()),
            }
        }
        let Some(key) = found else { return false };
        self.stats.add(Stat::GaveWay, 1);
        self.gave_way(&key);
        true
    }

    fn next_port(&mut self) -> usize {
        self.last_port = (self.last_port + 1) % self.ports.len();
        self.last_port
    }
}
