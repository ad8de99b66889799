//! DHCP clients without end: each exchange is DISCOVER, OFFER, REQUEST, ACK (RFC 2131 section 3.1) for one
//! machine, so many at a time. A closed loop: the next exchange begins when one ends, so that the rate is the
//! server's and not a timer's.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

use super::cpu::Cpus;
use super::{Latency, Waits};

/// An exchange without an answer for this long is a drop.
const DROPPED: Duration = Duration::from_secs(1);

/// How requests reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Broadcast from 0.0.0.0, with the broadcast flag, as EDK2 does. The host has no address.
    Direct,
    /// Unicast from a relay (RFC 1542 section 4) at this address, as perfdhcp does.
    Relayed(Ipv4Addr),
}

/// What to load a server with.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub server: Ipv4Addr,
    pub way: Way,
    /// The number of the first machine, and how many there are; after the last comes the first again.
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
    let mut load = Load {
        plan,
        given,
        socket: socket(plan)?,
        slots: Vec::new(),
        begun: 0,
        exchanges: 0,
        drops: 0,
        waits: Waits::default(),
    };
    let meter = cpus.meter()?;
    let begun = Instant::now();
    for number in 0..plan.outstanding.min(plan.machines) {
        load.slots.push(Slot { machine: 0, xid: number, state: State::Idle, begun });
        load.next(number as usize)?;
    }
    let more = |load: &Load<'_>| match plan.end {
        End::After(duration) => begun.elapsed() < duration,
        End::Round => load.slots.iter().any(|slot| slot.state != State::Idle),
    };
    while more(&load) {
        load.step()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_seconds = meter.seconds()?;
    let Load { exchanges, drops, waits, .. } = load;
    Ok(Outcome { seconds, exchanges, drops, latency: waits.latency(), cpu_seconds })
}

struct Load<'a> {
    plan: &'a Plan,
    given: &'a mut Given,
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Exchanges begun so far.
    begun: u32,
    exchanges: u64,
    drops: u64,
    waits: Waits,
}

/// One exchange at a time.
struct Slot {
    machine: u32,
    /// Its low half is the slot's number, its high half goes up with every exchange.
    xid: u32,
    state: State,
    begun: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// DISCOVER is on its way.
    Selecting,
    /// REQUEST is on its way, for this address.
    Requesting(Ipv4Addr),
}

impl Load<'_> {
    /// Begins the next machine's exchange.
    fn next(&mut self, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        if matches!(self.plan.end, End::Round) && self.begun == self.plan.machines {
            slot.state = State::Idle;
            return Ok(());
        }
        slot.machine = self.plan.first + self.begun % self.plan.machines;
        slot.xid = slot.xid.wrapping_add(1 << 16);
        slot.state = State::Selecting;
        slot.begun = Instant::now();
        self.begun += 1;
        let message = message(self.plan, slot, 1, &[]);
        self.send(&message)
    }

    fn step(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.socket), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(20u8))?;
        let mut buf = [0; 2048];
        // Bounded, so that the caller looks at its clock.
        for _ in 0..256 {
            match self.socket.recv(&mut buf) {
                Ok(len) => self.take(&buf[..len])?,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => break,
                Err(e) => return Err(e).context("receiving"),
            }
        }
        for index in 0..self.slots.len() {
            if self.slots[index].state != State::Idle && self.slots[index].begun.elapsed() > DROPPED {
                self.drops += 1;
                self.next(index)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(reply) = Reply::parse(bytes) else { return Ok(()) };
        let index = (reply.xid & 0xffff) as usize;
        let Some(slot) = self.slots.get_mut(index).filter(|s| s.xid == reply.xid) else { return Ok(()) };
        ensure!(reply.mac == mac(slot.machine), "a reply with another machine's hardware address");
        match (slot.state, reply.message) {
            (State::Selecting, 2) => {
                slot.state = State::Requesting(reply.address);
                let [a, b, c, d] = reply.address.octets();
                let [e, f, g, h] = reply.server.octets();
                let message = message(self.plan, slot, 3, &[50, 4, a, b, c, d, 54, 4, e, f, g, h]);
                self.send(&message)
            }
            (State::Requesting(offered), 5) => {
                ensure!(reply.address == offered, "offered {offered}, acknowledged {}", reply.address);
                let holder = *self.given.entry(offered).or_insert(slot.machine);
                ensure!(holder == slot.machine, "{offered} was given to two machines");
                self.waits.add(slot.begun.elapsed());
                self.exchanges += 1;
                self.next(index)
            }
            (State::Requesting(offered), 6) => {
                anyhow::bail!("the server took back {offered}, which it offered")
            }
            // An answer twice.
            _ => Ok(()),
        }
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        let to = match self.plan.way {
            Way::Direct => Ipv4Addr::BROADCAST,
            Way::Relayed(_) => self.plan.server,
        };
        match self.socket.send_to(message, SocketAddrV4::new(to, 67)) {
            // Lost, as on a wire: the exchange becomes a drop.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(()),
            result => result.map(drop).context("sending"),
        }
    }
}

fn socket(plan: &Plan) -> Result<UdpSocket> {
    let own = match plan.way {
        Way::Direct => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        Way::Relayed(relay) => SocketAddrV4::new(relay, 67),
    };
    let socket = UdpSocket::bind(own).with_context(|| format!("binding {own}"))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    // Without a route, the device says where broadcasts go.
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into())?;
    // As root past rmem_max: what waits here is the client's fault, and must not count as the server's drop.
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    Ok(socket)
}

/// Locally administered, and recognisable in a capture.
fn mac(machine: u32) -> [u8; 6] {
    let [a, b, c, d] = machine.to_be_bytes();
    [0x02, 0x77, a, b, c, d]
}

/// A request as BIOS PXE ROMs shape it (RFC 4578): options 57, 60, 93 and 55, then the message's own.
fn message(plan: &Plan, slot: &Slot, kind: u8, own: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    let (hops, flags, giaddr) = match plan.way {
        Way::Direct => (0, 0x80, Ipv4Addr::UNSPECIFIED),
        Way::Relayed(relay) => (1, 0, relay),
    };
    bytes[..4].copy_from_slice(&[1, 1, 6, hops]);
    bytes[4..8].copy_from_slice(&slot.xid.to_be_bytes());
    bytes[10] = flags;
    bytes[24..28].copy_from_slice(&giaddr.octets());
    bytes[28..34].copy_from_slice(&mac(slot.machine));
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, kind, 57, 2, 5, 0xc0]);
    bytes.extend(*b"\x3c\x20PXEClient:Arch:00000:UNDI:002001");
    bytes.extend([93, 2, 0, 0, 55, 6, 1, 3, 51, 54, 66, 67]);
    bytes.extend(own);
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// What a client needs of a reply.
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
