//! A TFTP client (RFC 1350, 2347, 2348, 7440) with the habits of one firmware.

use std::net::Ipv4Addr;

use pxe_common::tftp::packet::{self, ErrorCode};
use pxe_common::tftp::{BlockNo, Packet};
use pxe_common::wire::port;

use super::contents::{Contents, Sink};
use super::link::{Frames, Link, Retry, Waits};

/// How one client differs from another.
#[derive(Debug)]
pub(super) struct Habits {
    /// A first request that only asks for the size, and how the client ends it after the OACK.
    pub(super) probe: Option<Probe>,
    /// Options, encoded as in the read request.
    pub(super) options: &'static [u8],
    /// The waits after a request without an answer.
    pub(super) request: Waits,
    /// What happens after an ACK that brings no block.
    pub(super) silence: Silence,
    /// The answer to a block that is not the next one.
    pub(super) stray: Stray,
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) options: &'static [u8],
    pub(super) error: ErrorCode,
    pub(super) message: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Silence {
    /// The last ACK is retransmitted after each wait.
    AcksAgain(Waits),
    /// Nothing is sent, so the server has to retransmit. After these milliseconds the client gives up.
    Waits(Waits),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// The last block in order is acknowledged at once.
    LastInOrder,
    /// Earlier blocks are acknowledged by their own number, later ones ignored.
    OwnNumber,
}

/// The transfer of one file.
#[derive(Debug)]
pub(super) struct Download {
    habits: &'static Habits,
    path: String,
    server: Ipv4Addr,
    port: u16,
    /// The server's port of this transfer, once it has answered.
    peer: Option<u16>,
    probing: bool,
    /// Only to see whether the file exists: closed as soon as that is known.
    peek: bool,
    blksize: usize,
    window: u32,
    /// Blocks received in order, and how many of them are acknowledged.
    received: u32,
    acked: u32,
    retry: Retry,
    sink: Sink,
}

/// The state of a download.
#[derive(Debug)]
pub(super) enum Progress {
    Going,
    /// The whole file; nothing, if the client only wanted to know whether it exists.
    Done(Sink),
    /// The server's ERROR.
    Refused(ErrorCode, String),
    /// Nobody answered the request.
    NoAnswer,
    /// The transfer began, and stopped after this many blocks.
    Stalled(u32),
    /// Other bytes than everybody else's, in this block.
    Wrong(u32),
}

impl Download {
    /// Sends the first request to a server, from a port of ours.
    pub(super) fn start(
        habits: &'static Habits,
        path: &str,
        (server, port): (Ipv4Addr, u16),
        sink: Sink,
        link: &Link,
        now: u64,
        out: &mut Frames,
    ) -> Self {
        let download = Self {
            habits,
            path: path.to_owned(),
            server,
            port,
            peer: None,
            probing: habits.probe.is_some(),
            peek: false,
            blksize: 512,
            window: 1,
            received: 0,
            acked: 0,
            retry: Retry::start(habits.request, now),
            sink,
        };
        download.request(link, out);
        download
    }

    /// Ends the transfer as soon as the server has accepted it, as GRUB does to see whether a file exists.
    pub(super) fn peek(mut self) -> Self {
        self.peek = true;
        self
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn due(&self) -> u64 {
        self.retry.due
    }

    pub(super) fn wake(&mut self, link: &mut Link, now: u64, out: &mut Frames) -> Progress {
        let again = self.retry.again(now);
        match (self.peer.is_some(), self.habits.silence) {
            (false, _) if !again => Progress::NoAnswer,
            (true, _) if !again => Progress::Stalled(self.received),
            (false, _) => {
                link.retried();
                self.request(link, out);
                Progress::Going
            }
            (true, Silence::AcksAgain(_)) => {
                link.retried();
                self.ack(self.received, link, out);
                Progress::Going
            }
            (true, Silence::Waits(_)) => Progress::Going,
        }
    }

    /// Handles a datagram to our address.
    pub(super) fn receive(
        &mut self,
        ports: (u16, u16),
        payload: &[u8],
        link: &mut Link,
        now: u64,
        out: &mut Frames,
    ) -> Progress {
        let (from, to) = ports;
        if to != self.port || self.peer.is_some_and(|peer| peer != from) {
            return Progress::Going;
        }
        match Packet::parse(payload) {
            Ok(Packet::Oack(options)) if self.received == 0 => {
                let number = |name| std::str::from_utf8(options.get(name)?).ok()?.parse::<u32>().ok();
                self.blksize = number("blksize").map_or(512, |n| n as usize);
                self.window = number("windowsize").unwrap_or(1);
                self.peer = Some(from);
                link.progressed();
                if let Some(probe) = self.habits.probe.as_ref().filter(|_| self.probing) {
                    self.error(probe.error, probe.message, link, out);
                    self.probing = false;
                    self.peer = None;
                    // Both firmwares open another socket for the transfer itself.
                    self.port = next_port(self.port);
                    self.retry = Retry::start(self.habits.request, now);
                    self.request(link, out);
                    return Progress::Going;
                }
                self.wait(now);
                self.ack(0, link, out);
                if self.peek {
                    self.error(ErrorCode::OTHER, "closed", link, out);
                    return self.done();
                }
                Progress::Going
            }
            Ok(Packet::Data(block, data)) if !self.probing => self.block(from, block, data, link, now, out),
            Ok(Packet::Error(code, message)) => {
                Progress::Refused(code, String::from_utf8_lossy(message).into_owned())
            }
            Ok(_) | Err(_) => Progress::Going,
        }
    }

    fn block(
        &mut self,
        from: u16,
        block: BlockNo,
        data: &[u8],
        link: &mut Link,
        now: u64,
        out: &mut Frames,
    ) -> Progress {
        self.peer = Some(from);
        let next = self.received + 1;
        if block != BlockNo::of(next) {
            let ahead = block.ahead_of(next);
            let earlier = ahead > u16::MAX / 2;
            link.tally.repeated += u64::from(earlier);
            match self.habits.stray {
                Stray::LastInOrder => self.ack(self.received, link, out),
                Stray::OwnNumber if earlier => {
                    self.ack(next.wrapping_add_signed(i32::from(ahead.cast_signed())), link, out);
                }
                Stray::OwnNumber => {}
            }
            return Progress::Going;
        }
        if data.len() > self.blksize || self.sink.take(data).is_err() {
            return Progress::Wrong(next);
        }
        self.received = next;
        link.tally.bytes += data.len() as u64;
        link.progressed();
        self.wait(now);
        let last = data.len() < self.blksize;
        if last || next - self.acked >= self.window {
            self.ack(next, link, out);
        }
        if last { self.done() } else { Progress::Going }
    }

    fn done(&mut self) -> Progress {
        Progress::Done(std::mem::replace(&mut self.sink, Sink::keep()))
    }

    fn wait(&mut self, now: u64) {
        let (Silence::AcksAgain(waits) | Silence::Waits(waits)) = self.habits.silence;
        self.retry = Retry::start(waits, now);
    }

    fn request(&self, link: &Link, out: &mut Frames) {
        let options = match &self.habits.probe {
            Some(probe) if self.probing => probe.options,
            _ => self.habits.options,
        };
        let packet = [b"\0\x01", self.path.as_bytes(), b"\0octet\0", options].concat();
        link.udp(out, self.server, (self.port, port::TFTP), &packet);
    }

    fn ack(&mut self, block: u32, link: &Link, out: &mut Frames) {
        self.acked = self.acked.max(block);
        let [a, b] = BlockNo::of(block).0.to_be_bytes();
        let Some(peer) = self.peer else { return };
        link.udp(out, self.server, (self.port, peer), &[0, 4, a, b]);
    }

    fn error(&self, code: ErrorCode, message: &str, link: &Link, out: &mut Frames) {
        let mut buffer = [0; 64];
        if let (Some(peer), Some(packet)) = (self.peer, packet::error(&mut buffer, code, message)) {
            link.udp(out, self.server, (self.port, peer), packet);
        }
    }
}

/// Completes a file that [`Contents`] verifies.
pub(super) fn finish(contents: &mut Contents, path: &str, sink: Sink) -> Result<(), String> {
    contents
        .finish(path, sink)
        .map_err(|_| format!("{path}: all of it came, and it is not what its digest or other machines say"))
}

/// The port after this one, never a well-known one.
pub(super) fn next_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(1024)
}

#[cfg(test)]
#[path = "tftp_tests.rs"]
mod tests;
