//! Requests to port 69.

use std::net::SocketAddrV4;
use std::time::Duration;

use pxe_common::tftp::Packet;
use pxe_common::tftp::packet::ErrorCode;

use super::{Command, Entry, Job, MAX_TRANSFERS, Server, Stat, Then, text};
use crate::serve::tftp::transfer::Action;

/// A transfer without progress for this long gives way to a new request from the same port: GRUB
/// uses ports 25300 upward after every boot, and would take an old transfer's packets for the new.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// Where a new transfer goes.
struct Place {
    port: usize,
    /// A transfer of before is there, and ends.
    taken: bool,
}

impl Server {
    /// A packet came to port 69.
    pub(in crate::serve::tftp) fn on_request(&mut self, client: SocketAddrV4, bytes: &[u8], now_ns: u64) {
        match Packet::parse(bytes) {
            Ok(Packet::Read(_)) => {
                self.stats.add(Stat::Requests, 1);
                if let Some(known) = self.clients.get_mut(&client.ip().octets()) {
                    known.asked_ns = now_ns;
                }
                self.ask(client, bytes, 0, now_ns);
            }
            Ok(Packet::Write(request)) => {
                self.stats.add(Stat::Refused, 1);
                tracing::info!(%client, path = %text(request.path), "write request refused");
                let port = self.next_port();
                self.send_error(port, client, ErrorCode::ACCESS, "this server is read-only");
            }
            Ok(Packet::Data(..) | Packet::Ack(_) | Packet::Error(..) | Packet::Oack(_)) => {
                self.stats.add(Stat::Unknown, 1);
            }
            Err(why) => {
                self.stats.add(Stat::Malformed, 1);
                tracing::debug!(%client, ?why, "not a TFTP packet");
            }
        }
    }

    /// Has the kernel asked about the client's transfers from data port number `port` on, one after the other:
    /// what becomes of the request depends on how far they are.
    pub(super) fn ask(&mut self, client: SocketAddrV4, request: &[u8], port: usize, now_ns: u64) {
        let in_kernel = |port: &usize| self.is_in_kernel(&self.key(client, *port));
        match (port..self.ports.len()).find(in_kernel) {
            Some(port) => {
                let then = Then::Asked { client, request: request.to_vec(), next_port: port + 1 };
                self.look(self.key(client, port), then);
            }
            None => self.answer(client, request, now_ns),
        }
    }

    fn answer(&mut self, client: SocketAddrV4, bytes: &[u8], now_ns: u64) {
        let Ok(Packet::Read(request)) = Packet::parse(bytes) else { return };
        if self.repeat(client, bytes, now_ns) {
            return;
        }
        let Some(Place { port, taken }) = self.place_for(client, now_ns) else { return };
        if !taken && self.transfers.len() >= MAX_TRANSFERS {
            self.stats.add(Stat::Refused, 1);
            return self.send_error(port, client, ErrorCode::OTHER, "too many transfers, try again");
        }
        let key = self.key(client, port);
        // Closed by the job, before it asks for a grant of its own.
        let close_first = taken && self.replaced(&key);
        self.insert(key, Entry::Opening { request: bytes.to_vec(), since_ns: now_ns }, now_ns);
        self.commands.push_back(Command::Open(Box::new(Job {
            key,
            client,
            port,
            path: text(request.path),
            request: bytes.to_vec(),
            mtu: self.mtu,
            close_first,
        })));
    }

    /// Whether this request is one that was answered already, whose answer the client has not
    /// seen: then the same transfer's first packet goes out again.
    fn repeat(&mut self, client: SocketAddrV4, bytes: &[u8], now_ns: u64) -> bool {
        for port in 0..self.ports.len() {
            let key = self.key(client, port);
            match self.transfers.get_mut(&key) {
                Some(Entry::Opening { request, .. }) if request == bytes => return true,
                Some(Entry::Live(live)) if live.request == bytes && live.transfer.unanswered() => {
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

    /// A data port on which the client's port has no transfer: round and round, so that a port
    /// rests after a transfer. Ends dead transfers on the way, and the longest idle one when no
    /// port is free; none while that many files are being opened for the client's port.
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

    fn next_port(&mut self) -> usize {
        self.last_port = (self.last_port + 1) % self.ports.len();
        self.last_port
    }
}
