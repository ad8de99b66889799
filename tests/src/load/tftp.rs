//! Many TFTP clients in one: each reads one file again and again (RFC 1350, 2347, 2348, 7440) and compares
//! every byte.
//!
//! One thread runs all, so that no packet waits for a thread to wake up. A client whose answer came before it could
//! wait for one (the kernel answers inside `send`) goes on for some blocks before it is the next one's turn. Between
//! its turns it has no packet in flight, so that another client's turn does not count in its latency.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use super::batch::Received;
use super::cpu::Cpus;
use super::{Latency, Numbers, Waits};

/// After this long without an answer the last packet is retransmitted: iPXE's shortest timer.
const RETRY: Duration = Duration::from_millis(250);
/// How long all clients together may take to get their first block each.
const PATIENCE: Duration = Duration::from_secs(60);
/// Exchanges before the next client's turn.
const TURN: u32 = 64;

/// The load.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    pub server: Ipv4Addr,
    /// The file's name and content.
    pub file: (&'a str, &'a [u8]),
    pub clients: usize,
    pub blksize: u16,
    pub window: u16,
    /// Packets lost on the client's cable, in percent, of each direction.
    pub loss: f64,
    pub duration: Duration,
}

/// The result, measured from when every client had its first block.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    pub seconds: f64,
    /// Received in order and verified.
    pub bytes: u64,
    pub blocks: u64,
    pub transfers: u64,
    /// Packets that were retransmitted after `RETRY`.
    pub retries: u64,
    /// From an ACK to the last block that it asked for: with windows, of a whole window.
    pub latency: Latency,
    /// The server's CPU time: [`super::cpu`].
    pub cpu_seconds: f64,
}

/// Loads a server from the network namespace of the calling thread, which becomes the client.
pub fn run(plan: &Plan<'_>, cpus: &Cpus) -> Result<Outcome> {
    cpus.be_client()?;
    // A descriptor per client, and some more.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(plan.clients as u64 + 100)), hard)?;
    let mut load = Load::new(plan)?;

    let begun = Instant::now();
    while load.clients.iter().any(|c| c.received == 0 && c.transfers == 0) {
        load.step()?;
        let served = load.clients.iter().filter(|c| c.received > 0).count();
        ensure!(begun.elapsed() < PATIENCE, "{served} of {} clients were served", plan.clients);
    }

    load.tally = Tally::default();
    let meter = cpus.meter()?;
    let begun = Instant::now();
    while begun.elapsed() < plan.duration {
        load.step()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_seconds = meter.seconds()?;
    load.clients.iter().for_each(Client::abort);
    let Tally { bytes, blocks, transfers, retries, waits } = load.tally;
    Ok(Outcome { seconds, bytes, blocks, transfers, retries, latency: waits.latency(), cpu_seconds })
}

struct Load<'a> {
    plan: &'a Plan<'a>,
    clients: Vec<Client>,
    /// Clients that can do something.
    ready: VecDeque<usize>,
    epoll: Epoll,
    /// The packets of one client at a time.
    received: Received,
    /// When the timers were looked at.
    timers: Instant,
    numbers: Numbers,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    bytes: u64,
    blocks: u64,
    transfers: u64,
    retries: u64,
    waits: Waits,
}

/// One client and its transfer.
struct Client {
    socket: UdpSocket,
    /// The server's port for this transfer is known, and the socket connected to it.
    connected: bool,
    window: u16,
    /// Blocks received in order.
    received: u32,
    /// Of these, since the last ACK.
    since_ack: u16,
    /// Whether it is this side's turn to send. If nothing arrives, the packet is retransmitted.
    owes: bool,
    /// A block was missing and the one before it was acknowledged again (RFC 7440 section 4): once per gap.
    gap: bool,
    asked: Instant,
    sent: Instant,
    transfers: u64,
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan<'a>) -> Result<Self> {
        let clients: Vec<_> = (0..plan.clients).map(|_| Client::new()).collect::<Result<_>>()?;
        let load = Self {
            plan,
            clients,
            ready: (0..plan.clients).collect(),
            epoll: Epoll::new(EpollCreateFlags::empty())?,
            received: Received::new(usize::from(plan.window)),
            timers: Instant::now(),
            numbers: Numbers::new(1),
            tally: Tally::default(),
        };
        for (index, client) in load.clients.iter().enumerate() {
            client.watched(&load.epoll, index)?;
        }
        Ok(load)
    }

    /// A turn for each client that has something to do.
    fn step(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let timeout = if self.ready.is_empty() { EpollTimeout::from(10u8) } else { EpollTimeout::ZERO };
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            count => count?,
        };
        self.ready.extend(events[..count].iter().map(|e| e.data() as usize));
        for _ in 0..self.ready.len() {
            let index = self.ready.pop_front().expect("counted");
            if self.turn(index)? {
                self.ready.push_back(index);
            }
        }
        if self.timers.elapsed() > RETRY / 10 {
            self.timers = Instant::now();
            for client in &mut self.clients {
                if !client.owes && client.sent.elapsed() > RETRY {
                    self.tally.retries += 1;
                    client.send(self.plan, &mut self.numbers)?;
                }
            }
        }
        Ok(())
    }

    /// Exchanges packets until the client has to wait (false) or has had its turn (true).
    fn turn(&mut self, index: usize) -> Result<bool> {
        let client = &mut self.clients[index];
        for _ in 0..TURN {
            if client.owes {
                client.send(self.plan, &mut self.numbers)?;
                client.asked = client.sent;
            }
            if client.receive(&mut self.received)? == 0 {
                return Ok(false);
            }
            for packet in self.received.packets() {
                if client.owes {
                    // More packets follow the one that caused this ACK.
                    client.send(self.plan, &mut self.numbers)?;
                    client.asked = client.sent;
                }
                if self.numbers.happens(self.plan.loss) {
                    continue;
                }
                if client.take(packet, self.plan, &mut self.tally)? {
                    client.send(self.plan, &mut self.numbers)?;
                    let transfers = client.transfers + 1;
                    // A new port for each transfer, as in RFC 1350 section 4.
                    *client = Client { transfers, ..Client::new()? };
                    client.watched(&self.epoll, index)?;
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }
}

impl Client {
    fn new() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self {
            socket,
            connected: false,
            window: 1,
            received: 0,
            since_ack: 0,
            owes: true,
            gap: false,
            asked: now,
            sent: now,
            transfers: 0,
        })
    }

    /// Makes `epoll` report when something arrives for this client.
    fn watched(&self, epoll: &Epoll, index: usize) -> Result<()> {
        Ok(epoll.add(&self.socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?)
    }

    /// Sends the request or the newest ACK, unless it is lost.
    fn send(&mut self, plan: &Plan<'_>, numbers: &mut Numbers) -> Result<()> {
        self.owes = false;
        self.since_ack = 0;
        self.sent = Instant::now();
        if numbers.happens(plan.loss) {
            return Ok(());
        }
        let result = if self.connected {
            let [high, low] = (self.received as u16).to_be_bytes();
            self.socket.send(&[0, 4, high, low])
        } else {
            self.socket.send_to(&request(plan), SocketAddrV4::new(plan.server, 69))
        };
        match result {
            // An ICMP error for an earlier packet; only received packets matter.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
            result => result.map(drop).context("sending"),
        }
    }

    /// Receives the packets that are there, at most a window. Returns how many.
    fn receive(&mut self, received: &mut Received) -> Result<usize> {
        if !self.connected {
            // The first packet reveals the server's port for the transfer.
            match self.socket.peek_from(&mut []) {
                Ok((_, from)) => self.socket.connect(from)?,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {
                    return Ok(0);
                }
                Err(e) => return Err(e).context("receiving"),
            }
            self.connected = true;
        }
        received.fill(self.socket.as_fd())
    }

    /// Handles a packet. Returns whether it completes the file.
    fn take(&mut self, packet: &[u8], plan: &Plan<'_>, tally: &mut Tally) -> Result<bool> {
        match packet {
            [0, 3, high, low, data @ ..] => self.data(u16::from_be_bytes([*high, *low]), data, plan, tally),
            [0, 6, options @ ..] if self.received == 0 => {
                self.window = granted(options, plan)?;
                self.owes = true;
                Ok(false)
            }
            [0, 5, _, code, message @ ..] => {
                bail!(
                    "the server's error {code}: {}",
                    String::from_utf8_lossy(message).trim_end_matches('\0')
                )
            }
            _ => Ok(false),
        }
    }

    fn data(&mut self, number: u16, data: &[u8], plan: &Plan<'_>, tally: &mut Tally) -> Result<bool> {
        let ahead = number.wrapping_sub(self.received as u16);
        if ahead != 1 {
            // The last block again means that the server did not get its ACK. A later block means that some are
            // missing.
            let missing = (2..=self.window).contains(&ahead) && !self.gap;
            self.gap |= missing;
            self.owes = ahead == 0 && self.received > 0 || missing;
            return Ok(false);
        }
        let blksize = usize::from(plan.blksize);
        let rest = plan.file.1.get(self.received as usize * blksize..).unwrap_or_default();
        let expected = &rest[..rest.len().min(blksize)];
        ensure!(data == expected, "block {number}: {} bytes that are not the file's", data.len());
        self.received += 1;
        self.since_ack += 1;
        self.gap = false;
        tally.bytes += data.len() as u64;
        tally.blocks += 1;
        let whole = data.len() < blksize;
        if !whole && self.since_ack < self.window {
            return Ok(false);
        }
        tally.waits.add(self.asked.elapsed());
        self.owes = true;
        tally.transfers += u64::from(whole);
        Ok(whole)
    }

    /// Ends the transfer, so that the server need not wait for it.
    fn abort(&self) {
        if self.connected {
            // If this is lost, the transfer expires.
            let _: io::Result<usize> = self.socket.send(b"\0\x05\0\0done\0");
        }
    }
}

fn request(plan: &Plan<'_>) -> Vec<u8> {
    let mut bytes = [b"\0\x01", plan.file.0.as_bytes(), b"\0octet\0"].concat();
    if plan.blksize != 512 {
        bytes.extend(format!("blksize\0{}\0", plan.blksize).bytes());
    }
    if plan.window != 1 {
        bytes.extend(format!("windowsize\0{}\0", plan.window).bytes());
    }
    bytes
}

/// The window that an OACK grants. It must be what was requested, or it would be another measurement.
fn granted(options: &[u8], plan: &Plan<'_>) -> Result<u16> {
    let words: Vec<_> =
        options.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).to_lowercase()).collect();
    let value = |name: &str| words.chunks_exact(2).find(|w| w[0] == name).and_then(|w| w[1].parse().ok());
    let (blksize, window) = (value("blksize").unwrap_or(512), value("windowsize").unwrap_or(1));
    let asked = (plan.blksize, plan.window);
    ensure!((blksize, window) == asked, "granted blksize and window {:?}, not {asked:?}", (blksize, window));
    Ok(window)
}
