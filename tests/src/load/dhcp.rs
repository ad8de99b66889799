//! A DHCP load client: each exchange is DISCOVER, OFFER, REQUEST, ACK (RFC 2131 section 3.1) for one machine, a fixed
//! number at a time. It is a closed loop: the next exchange begins when one ends, so that the server determines the
//! rate and not a timer.
//!
//! The client should cost less than what it measures. It makes its frames once and then only replaces what differs,
//! sends whatever is ready over a packet socket with one system call, and reads the replies from shared memory. The
//! host's own network stack does not see them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use socket2::SockFilter;

use super::batch::{BATCH, Sender};
use super::cpu::Cpus;
use super::ring::Ring;
use super::{Latency, Waits};
use crate::frames::{self, Cable};
use crate::process::output;

/// An exchange without an answer for this long is a drop.
const DROPPED: Duration = Duration::from_secs(1);
/// How often drops are looked for.
const TICK: Duration = Duration::from_millis(10);

const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// Offsets of the fields that differ from machine to machine.
mod at {
    pub(super) const XID: usize = 4;
    /// The last four bytes of `chaddr`.
    pub(super) const MACHINE: usize = 30;
    /// A REQUEST's options 50 and 54, behind option 53.
    pub(super) const REQUESTED: usize = 245;
    pub(super) const SERVER: usize = 251;
}

/// How requests reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Broadcast from 0.0.0.0, with the broadcast flag, as EDK2 does. The host has no address.
    Direct,
    /// Unicast from a relay (RFC 1542 section 4) at this address, as perfdhcp does.
    Relayed(Ipv4Addr),
}

/// The load.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub server: Ipv4Addr,
    pub way: Way,
    /// The number of the first machine, and how many there are; after the last one the first follows again.
    pub first: u32,
    pub machines: u32,
    /// Exchanges at a time.
    pub outstanding: u32,
    /// Ends after this long, or when every machine had its exchange.
    pub end: End,
}

#[derive(Clone, Copy, Debug)]
pub enum End {
    After(Duration),
    Round,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    pub seconds: f64,
    pub exchanges: u64,
    pub drops: u64,
    /// From DISCOVER to ACK.
    pub latency: Latency,
    /// The server's CPU time: [`super::cpu`].
    pub cpu_seconds: f64,
}

/// Addresses given by one server, and to which machine: no address may have two.
pub type Given = HashMap<Ipv4Addr, u32>;

/// Loads a server from the network namespace of the calling thread, which becomes the client.
pub fn run(plan: &Plan, given: &mut Given, cpus: &Cpus) -> Result<Outcome> {
    cpus.be_client()?;
    let mut wire = Wire::open(plan)?;
    let mut load = Load::new(plan, given, wire.stations);
    let meter = cpus.meter()?;
    let begun = Instant::now();
    let mut ticked = begun;
    (0..load.slots.len()).for_each(|index| load.next(index));
    let mut now = begun;
    while match plan.end {
        End::After(duration) => now - begun < duration,
        End::Round => load.slots.iter().any(|slot| slot.state != State::Idle),
    } {
        load.send(&mut wire)?;
        // Before handling packets that arrived meanwhile, because now the list of messages to send is empty.
        if now - ticked > TICK {
            ticked = now;
            load.tick(now);
        }
        // Not longer than until the clock must be checked.
        wire.ring.wait(wire.cable.socket(), TICK)?;
        now = Instant::now();
        while let Some(frame) = wire.ring.next() {
            load.take(frame, now)?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_seconds = meter.seconds()?;
    let Load { exchanges, drops, waits, .. } = load;
    Ok(Outcome { seconds, exchanges, drops, latency: waits.latency(), cpu_seconds })
}

struct Load<'a> {
    plan: &'a Plan,
    given: &'a mut Given,
    slots: Vec<Slot>,
    /// Slots whose message is to be sent.
    ready: Vec<usize>,
    /// Exchanges begun so far.
    begun: u32,
    exchanges: u64,
    drops: u64,
    waits: Waits,
}

/// One exchange at a time.
struct Slot {
    machine: u32,
    /// Its low half is the slot's number, its high half counts exchanges.
    xid: u32,
    state: State,
    /// When DISCOVER was sent.
    begun: Instant,
    discover: Vec<u8>,
    request: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// DISCOVER was sent.
    Selecting,
    /// REQUEST was sent, for this address.
    Requesting(Ipv4Addr),
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan, given: &'a mut Given, stations: Stations) -> Self {
        let slot = |xid| Slot {
            machine: 0,
            xid,
            state: State::Idle,
            begun: Instant::now(),
            discover: frame(plan, stations, &[53, 1, 1]),
            request: frame(plan, stations, &[53, 1, 3, 50, 4, 0, 0, 0, 0, 54, 4, 0, 0, 0, 0]),
        };
        Self {
            plan,
            given,
            slots: (0..plan.outstanding.min(plan.machines)).map(slot).collect(),
            ready: Vec::new(),
            begun: 0,
            exchanges: 0,
            drops: 0,
            waits: Waits::default(),
        }
    }

    /// Begins the next machine's exchange.
    fn next(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if matches!(self.plan.end, End::Round) && self.begun == self.plan.machines {
            slot.state = State::Idle;
            return;
        }
        slot.machine = self.plan.first + self.begun % self.plan.machines;
        slot.xid = slot.xid.wrapping_add(1 << 16);
        slot.state = State::Selecting;
        self.begun += 1;
        for frame in [&mut slot.discover, &mut slot.request] {
            frames::replace(frame, at::XID, slot.xid.to_be_bytes());
            frames::replace(frame, at::MACHINE, slot.machine.to_be_bytes());
            // From the machine's own MAC, because the kernel answers nothing that another station sends for it.
            if self.plan.way == Way::Direct {
                frame[6..12].copy_from_slice(&mac(slot.machine));
            }
        }
        self.ready.push(index);
    }

    fn send(&mut self, wire: &mut Wire) -> Result<()> {
        for ready in self.ready.chunks(BATCH) {
            let now = Instant::now();
            for index in ready {
                let slot = &mut self.slots[*index];
                if slot.state == State::Selecting {
                    slot.begun = now;
                }
            }
            let frames = ready.iter().map(|index| {
                let slot = &self.slots[*index];
                if slot.state == State::Selecting { &slot.discover[..] } else { &slot.request[..] }
            });
            wire.sender.send(wire.cable.socket().as_fd(), frames)?;
        }
        self.ready.clear();
        Ok(())
    }

    fn take(&mut self, frame: &[u8], now: Instant) -> Result<()> {
        let Some(reply) = frames::udp_from(frame, 67).and_then(Reply::parse) else { return Ok(()) };
        let index = (reply.xid & 0xffff) as usize;
        let Some(slot) = self.slots.get_mut(index).filter(|s| s.xid == reply.xid) else { return Ok(()) };
        ensure!(reply.mac == mac(slot.machine), "a reply with another machine's hardware address");
        match (slot.state, reply.message) {
            (State::Selecting, OFFER) => {
                slot.state = State::Requesting(reply.address);
                frames::replace(&mut slot.request, at::REQUESTED, reply.address.octets());
                frames::replace(&mut slot.request, at::SERVER, reply.server.octets());
                self.ready.push(index);
            }
            (State::Requesting(offered), ACK) => {
                ensure!(reply.address == offered, "offered {offered}, acknowledged {}", reply.address);
                let holder = *self.given.entry(offered).or_insert(slot.machine);
                ensure!(holder == slot.machine, "{offered} was given to two machines");
                self.waits.add(now - slot.begun);
                self.exchanges += 1;
                self.next(index);
            }
            (State::Requesting(offered), NAK) => bail!("the server took back {offered}, which it offered"),
            // A duplicate answer.
            _ => {}
        }
        Ok(())
    }

    /// Counts unanswered exchanges as drops and begins the next ones.
    fn tick(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.state != State::Idle && now.saturating_duration_since(slot.begun) > DROPPED {
                self.drops += 1;
                self.next(index);
            }
        }
    }
}

/// Source and destination of a request's frame.
type Stations = (frames::Mac, frames::Mac);

/// The client's end of the cable.
struct Wire {
    cable: Cable,
    stations: Stations,
    ring: Ring,
    sender: Sender,
    _deaf: Deaf,
}

/// Makes the host's network stack drop every packet at once, until this is dropped. Otherwise the stack would look for
/// a route and a listening socket, which takes as long as everything that a packet socket does, and send ICMP errors.
struct Deaf;

impl Deaf {
    /// Packet sockets see frames before this rule, and it does not apply to ARP.
    const RULE: [&str; 3] = ["PREROUTING", "--jump", "DROP"];

    fn new() -> Result<Self> {
        raw_table("--insert").map(|()| Self)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        // This fails if the host is gone already.
        let _ = raw_table("--delete");
    }
}

fn raw_table(action: &str) -> Result<()> {
    output(Command::new("iptables").args(["--wait", "--table", "raw", action]).args(Deaf::RULE)).map(drop)
}

/// packet(7): a veth pair has no queue to bypass, but the path is shorter.
#[derive(Clone, Copy, Debug)]
struct QdiscBypass;
nix::setsockopt_impl!(QdiscBypass, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bool, sockopt::SetBool);

impl Wire {
    fn open(plan: &Plan) -> Result<Self> {
        let own = frames::own_mac()?;
        let (port, server) = match plan.way {
            Way::Direct => (68, frames::BROADCAST),
            Way::Relayed(relay) => (67, frames::resolve(relay, plan.server)?),
        };
        let cable = Cable::open(frames::IPV4)?;
        let socket = cable.socket();
        socket.attach_filter(&udp_to(port))?;
        setsockopt(socket, QdiscBypass, &true)?;
        socket.set_nonblocking(false)?;
        let ring = Ring::new(socket)?;
        Ok(Self { ring, cable, stations: (own, server), sender: Sender::new(), _deaf: Deaf::new()? })
    }
}

const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Lets through UDP (in IPv4 without options, not a later fragment) to one port.
fn udp_to(port: u16) -> [SockFilter; 8] {
    let byte = |at| SockFilter::new(0x30, 0, 0, at);
    let half = |at| SockFilter::new(0x28, 0, 0, at);
    [
        byte(23),
        SockFilter::new(0x15, 0, 5, 17),
        half(20),
        SockFilter::new(0x45, 3, 0, 0x1fff),
        half(36),
        SockFilter::new(0x15, 0, 1, u32::from(port)),
        PASS,
        DROP,
    ]
}

/// Locally administered, and recognisable in a capture.
fn mac(machine: u32) -> [u8; 6] {
    let [a, b, c, d] = machine.to_be_bytes();
    [0x02, 0x77, a, b, c, d]
}

/// A machine's request, from its own MAC or a relay's; machine and transaction are filled in later.
fn frame(plan: &Plan, stations: Stations, own: &[u8]) -> Vec<u8> {
    let (from, to) = match plan.way {
        Way::Direct => {
            (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67))
        }
        Way::Relayed(relay) => (SocketAddrV4::new(relay, 67), SocketAddrV4::new(plan.server, 67)),
    };
    frames::udp_frame(stations, from, to, &message(plan.way, own))
}

/// A request as BIOS PXE ROMs shape it (RFC 4578): the message's own options, then 57, 60, 93 and 55.
fn message(way: Way, own: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    let (hops, flags, giaddr) = match way {
        Way::Direct => (0, 0x80, Ipv4Addr::UNSPECIFIED),
        Way::Relayed(relay) => (1, 0, relay),
    };
    bytes[..4].copy_from_slice(&[1, 1, 6, hops]);
    bytes[10] = flags;
    bytes[24..28].copy_from_slice(&giaddr.octets());
    bytes[28..34].copy_from_slice(&mac(0));
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend(own);
    bytes.extend([57, 2, 5, 0xc0]);
    bytes.extend(*b"\x3c\x20PXEClient:Arch:00000:UNDI:002001");
    bytes.extend([93, 2, 0, 0, 55, 6, 1, 3, 51, 54, 66, 67, 255]);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// The fields of a reply that a client needs.
pub(crate) struct Reply {
    pub(crate) xid: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    pub(crate) server: Ipv4Addr,
    pub(crate) message: u8,
    pub(crate) lease_time: Option<Duration>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reply = Self {
            xid: u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?),
            address: Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?),
            mac: *bytes.get(28..)?.first_chunk()?,
            server: Ipv4Addr::UNSPECIFIED,
            message: 0,
            lease_time: None,
        };
        let mut rest = bytes.get(240..).filter(|_| bytes[0] == 2)?;
        loop {
            match rest {
                [0, tail @ ..] => rest = tail,
                [255, ..] | [] => return (reply.message != 0).then_some(reply),
                [code, len, tail @ ..] => {
                    let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                    match (code, value) {
                        (53, [message]) => reply.message = *message,
                        (51, [a, b, c, d]) => {
                            let seconds = u32::from_be_bytes([*a, *b, *c, *d]);
                            reply.lease_time = Some(Duration::from_secs(seconds.into()));
                        }
                        (54, value) => reply.server = Ipv4Addr::from(*value.first_chunk::<4>()?),
                        _ => {}
                    }
                    rest = tail;
                }
                [_] => return None,
            }
        }
    }
}
