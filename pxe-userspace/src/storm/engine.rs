//! The loop around the machines: frames in, time, frames out. One thread.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pxe_common::Mac;
use pxe_common::dhcp::field;
use pxe_common::wire::{EtherType, HEADERS_LEN};

use super::contents::Contents;
use super::link::{Arp, Frames, MS};
use super::machine::{Machine, State, World};
use super::wire::Wire;

/// How often timers are checked. Firmware's timers are no finer.
const TICK: u64 = MS;

/// How often progress is reported.
const TELL: u64 = 500 * MS;

/// Of all simulated machines: locally administered, "st".
const PREFIX: [u8; 3] = [0x02, 0x73, 0x74];

/// The MAC address of the machine with this number.
pub(super) fn mac(number: u32) -> Mac {
    let [_, b, c, d] = number.to_be_bytes();
    let [x, y, z] = PREFIX;
    Mac([x, y, z, b, c, d])
}

fn number(mac: [u8; 6]) -> Option<u32> {
    let (prefix, [b, c, d]) = (mac[..3] == PREFIX, [mac[3], mac[4], mac[5]]);
    prefix.then(|| u32::from_be_bytes([0, b, c, d]))
}

/// Whether the machine is one of ours.
pub(super) fn is_ours(mac: Mac) -> bool {
    number(mac.0).is_some()
}

/// Counted frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passed {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// By the simulated loss.
    pub(super) lost: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Every machine has booted or failed.
    Done,
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

pub(super) struct Engine<'a> {
    wire: &'a mut Wire,
    contents: &'a mut Contents,
    /// Machines, of which the first has the number `first`.
    pub(super) machines: Vec<Machine>,
    first: u32,
    /// When each wants to be woken.
    wakes: Vec<u64>,
    loss: Loss,
    out: Frames,
    pub(super) passed: Passed,
    /// Offers by the server that they came from.
    pub(super) offers: BTreeMap<Ipv4Addr, u64>,
    started: Instant,
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        wire: &'a mut Wire,
        contents: &'a mut Contents,
        first: u32,
        machines: Vec<Machine>,
        loss: f64,
    ) -> Self {
        Self {
            wire,
            contents,
            first,
            wakes: vec![u64::MAX; machines.len()],
            machines,
            loss: Loss { share: loss, state: 0x9e37_79b9_7f4a_7c15 },
            out: Frames::default(),
            passed: Passed::default(),
            offers: BTreeMap::new(),
            started: Instant::now(),
        }
    }

    /// Since the first machine was powered on.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Powers the machines on, over `spread`, and runs until each has booted or failed.
    pub(super) fn run(
        &mut self,
        spread: Duration,
        patience: Duration,
        signals: &Signals,
        mut tell: impl FnMut(&Self),
    ) -> io::Result<End> {
        self.started = Instant::now();
        let count = self.machines.len() as u64;
        let spread = spread.as_nanos() as u64;
        let (mut on, mut tick, mut told) = (0, 0, 0);
        loop {
            let now = self.now();
            while on < count && on * spread / count <= now {
                self.with(on as usize, now, |machine, world| machine.power_on(world));
                on += 1;
                if self.out.len() >= 32 {
                    self.flush()?;
                }
            }
            let received = self.receive(now)?;
            if now >= tick {
                tick = now + TICK;
                for i in 0..self.machines.len() {
                    if self.wakes[i] <= now {
                        self.with(i, now, |machine, world| machine.wake(world));
                    }
                }
            }
            self.flush()?;
            if now >= told {
                told = now + TELL;
                self.lose_patience(now, patience, spread);
                tell(self);
                if signals.stopped()? {
                    return Ok(End::Interrupted);
                }
                if on == count && self.machines.iter().all(ended) {
                    return Ok(End::Done);
                }
            }
            if received == 0 {
                // The last ones to end are noticed at once.
                if on == count && self.wakes.iter().all(|w| *w == u64::MAX) {
                    told = 0;
                }
                self.wire.wait(Duration::from_nanos(TICK))?;
            }
        }
    }

    /// Frames that were lost on this side of the wire.
    pub(super) fn dropped(&mut self) -> io::Result<u64> {
        self.wire.dropped()
    }

    /// Releases the addresses, no faster than a server can process and store them.
    pub(super) fn release(&mut self) -> io::Result<()> {
        for machines in self.machines.chunks(32) {
            for machine in machines {
                machine.release(&mut self.out);
            }
            self.wire.send(&self.out)?;
            self.out.clear();
            // Not `Wire::wait`, which would return early for blocks that are still arriving.
            std::thread::sleep(Duration::from_millis(20));
            while self.wire.receive(|_| {})? > 0 {}
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn with(&mut self, i: usize, now: u64, act: impl FnOnce(&mut Machine, &mut World<'_>)) {
        let mut world = World { now, out: &mut self.out, contents: self.contents };
        act(&mut self.machines[i], &mut world);
        self.wakes[i] = self.machines[i].wakes_at();
    }

    fn receive(&mut self, now: u64) -> io::Result<usize> {
        let Self { wire, contents, machines, first, wakes, loss, out, passed, offers, .. } = self;
        wire.receive(|frame| {
            let Some(i) = addressee(frame, *first, machines) else { return };
            passed.received += 1;
            let machine = &mut machines[i];
            if loss.strikes() {
                passed.lost += 1;
                machine.lost();
                return;
            }
            if let Some(server) = offered_by(frame) {
                *offers.entry(server).or_default() += 1;
            }
            machine.receive(frame, &mut World { now, out, contents });
            wakes[i] = machine.wakes_at();
        })
    }

    /// Sends the machines' frames, except those that the simulated loss drops.
    fn flush(&mut self) -> io::Result<()> {
        if self.out.len() == 0 {
            return Ok(());
        }
        self.passed.sent += self.out.len() as u64;
        if self.loss.share > 0.0 {
            let mut kept = Frames::default();
            for frame in self.out.iter() {
                if !self.loss.strikes() {
                    kept.push(&[frame]);
                    continue;
                }
                self.passed.lost += 1;
                let from = frame[6..].first_chunk().and_then(|mac| number(*mac));
                let from = from.and_then(|n| n.checked_sub(self.first)).map(|i| i as usize);
                if let Some(machine) = from.and_then(|i| self.machines.get_mut(i)) {
                    machine.lost();
                }
            }
            self.out = kept;
        }
        self.wire.send(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn lose_patience(&mut self, now: u64, patience: Duration, spread: u64) {
        let count = self.machines.len() as u64;
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        for (i, machine) in self.machines.iter_mut().enumerate() {
            let age = now.saturating_sub(i as u64 * spread / count);
            if machine.state() == State::Booting && age > patience_ns {
                machine.give_up(patience.as_secs());
                self.wakes[i] = u64::MAX;
            }
        }
    }
}

/// Which of the machines a frame is for. A broadcast goes only to the machine that it is about: the
/// other machines would ignore it.
fn addressee(frame: &[u8], first: u32, machines: &[Machine]) -> Option<usize> {
    let to: [u8; 6] = *frame.first_chunk()?;
    let mac = match frame.get(12..14)?.first_chunk().map(|t| u16::from_be_bytes(*t))? {
        _ if to != Mac::BROADCAST.0 => to,
        EtherType::ARP => {
            let target = Arp::parse(frame)?.target;
            return machines.iter().position(|m| m.lease().is_some_and(|l| l.address == target));
        }
        EtherType::IPV4 => *frame.get(HEADERS_LEN + field::CHADDR..)?.first_chunk()?,
        _ => return None,
    };
    let i = number(mac)?.checked_sub(first)? as usize;
    (i < machines.len()).then_some(i)
}

/// The server that an OFFER is from.
fn offered_by(frame: &[u8]) -> Option<Ipv4Addr> {
    let is_dhcp = frame.get(34..38)? == [0, 67, 0, 68] && frame[23] == 17;
    let options = frame.get(HEADERS_LEN + field::OPTIONS..)?;
    let is_offer = options.windows(3).take(16).any(|w| w == [53, 1, 2]);
    (is_dhcp && is_offer).then(|| Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]))
}

fn ended(machine: &Machine) -> bool {
    matches!(machine.state(), State::Booted | State::Failed(_))
}

/// Which frames are lost: a reproducible sequence (xorshift64*, Vigna 2014).
struct Loss {
    share: f64,
    state: u64,
}

impl Loss {
    fn strikes(&mut self) -> bool {
        if self.share == 0.0 {
            return false;
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        (number as f64 / (1u64 << 53) as f64) < self.share
    }
}

/// SIGINT and SIGTERM, polled between frames.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Catches them from now on. Must run before any thread is started, because that would receive them.
    pub(super) fn catch() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.extend([Signal::SIGINT, Signal::SIGTERM]);
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    fn stopped(&self) -> io::Result<bool> {
        Ok(self.0.read_signal()?.is_some())
    }
}
