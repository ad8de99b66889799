//! Thousands of DHCP clients on one cable (RFC 2131 section 4.4), each a station of its own, some behind a relay.
//!
//! They do what machines do, at random and without pauses: boot, reboot with or without remembering their
//! address, renew, rebind, ask for configuration, release their address, or fall silent.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::promises::Promises;
use super::{Now, Tally};
use crate::appliance::{ADDRESS, BRIDGE};
use crate::frames::{ARP, BROADCAST, Cable, IPV4, Mac, ethernet, udp_frame, udp_from};
use crate::load::Numbers;
use crate::load::dhcp::Reply;

/// More than there are addresses.
const POPULATION: u32 = 4000;

/// Requests in flight that were not retransmitted yet.
const OUTSTANDING: usize = 1000;
/// Requests that begin before it is the readers' turn.
const TURN: usize = 64;
/// After this long without an answer a request is retransmitted, then after twice the time, and so on.
const RETRY: Duration = Duration::from_millis(300);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// A request without an answer for this long is lost, not counting the time without a daemon. One for a live
/// lease is lost when the lease ends, at the latest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a machine waits that gave up asking for an address.
const SULK: Duration = Duration::from_secs(10);
/// How often a machine without an address asks for one before it gives up for now.
const DISCOVERS: u32 = 4;

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const RELAY_MAC: Mac = [0x02, 0x79, 0, 0, 0, 1];

pub(super) struct Machines {
    ip: Cable,
    arp: Cable,
    server: Ipv4Addr,
    server_mac: Mac,
    machines: Vec<Machine>,
    promises: Promises,
    /// When to check which machine's request.
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    outstanding: usize,
    numbers: Numbers,
}

#[derive(Default)]
struct Machine {
    /// The lease it knows of.
    address: Option<Ipv4Addr>,
    /// Its address before it forgot or released its lease.
    last: Option<Ipv4Addr>,
    /// It does nothing until then.
    silent_until: Option<Instant>,
    asking: Option<Asking>,
    /// Requests so far: the high half of the transaction ID.
    asked: u16,
}

struct Asking {
    what: What,
    xid: u32,
    /// On the clock that runs only while there is a daemon.
    begun: Duration,
    tries: u32,
    frame: Vec<u8>,
}

/// The meaning of a request (RFC 2131 section 4.3.2, table 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Discover,
    /// For an address that was offered.
    Selecting(Ipv4Addr),
    /// For the address of a lease that is live.
    Renewing(Ipv4Addr),
    Rebinding(Ipv4Addr),
    Rebooting(Ipv4Addr),
    /// For an address that may belong to another machine by now.
    Remembering(Ipv4Addr),
    Inform(Ipv4Addr),
    Release(Ipv4Addr),
}

/// How a machine identifies itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bios,
    Uefi,
    System,
}

impl Machines {
    /// Clients on the host that the calling thread is on; the appliance runs.
    pub(super) fn new(seed: u64) -> Result<Self> {
        Ok(Self {
            ip: Cable::open(IPV4)?,
            arp: Cable::open(ARP)?,
            server: ADDRESS.parse()?,
            server_mac: bridge_mac()?,
            machines: (0..POPULATION).map(|_| Machine::default()).collect(),
            promises: Promises::default(),
            timers: BinaryHeap::new(),
            outstanding: 0,
            numbers: Numbers::new(seed ^ 0xd0c9),
        })
    }

    /// Handles received packets, retransmits unanswered requests, and begins some more. False if there was nothing to
    /// do.
    pub(super) fn turn(&mut self, now: Now, tally: &mut Tally) -> Result<bool> {
        let mut busy = false;
        let mut buffer = [0; 2048];
        while let Some(len) = self.arp.receive(&mut buffer)? {
            self.answer_arp(&buffer[..len])?;
        }
        while let Some(len) = self.ip.receive(&mut buffer)? {
            busy = true;
            if let Some(reply) = udp_from(&buffer[..len], 67).and_then(Reply::parse) {
                self.take(&reply, now, tally)?;
            }
        }
        while let Some(Reverse((due, machine, xid))) = self.timers.peek().copied()
            && due <= now.wall
        {
            self.timers.pop();
            self.overdue(machine, xid, now, tally)?;
        }
        for _ in 0..TURN {
            if self.outstanding >= OUTSTANDING {
                break;
            }
            let machine = self.numbers.below(self.machines.len() as u32);
            busy |= self.act(machine, now, tally)?;
        }
        Ok(busy)
    }

    /// Lets a machine do something, unless it waits or is silent.
    fn act(&mut self, index: u32, now: Now, tally: &mut Tally) -> Result<bool> {
        let machine = &mut self.machines[index as usize];
        if machine.asking.is_some() || machine.silent_until.is_some_and(|until| until > now.wall) {
            return Ok(false);
        }
        machine.silent_until = None;
        let Some(address) = machine.address else {
            let what = match machine.last.filter(|_| self.numbers.below(4) == 0) {
                Some(last) => What::Remembering(last),
                None => What::Discover,
            };
            self.ask(index, what, now)?;
            return Ok(true);
        };
        let Some(until) = self.promises.live(address, index, now.wall) else {
            // It was silent for too long, so its lease has ended.
            machine.last = machine.address.take();
            return Ok(false);
        };
        let what = match self.numbers.below(1000) {
            0..400 => What::Renewing(address),
            400..500 => What::Rebinding(address),
            500..600 => What::Rebooting(address),
            600..800 => What::Discover,
            800..960 => What::Inform(address),
            960..998 => {
                self.promises.end(address, index);
                machine.last = machine.address.take();
                tally.releases += 1;
                tally.dhcp += 1;
                self.ask(index, What::Release(address), now)?;
                // Some ask for an address again at once, before the daemon can have learnt of the release.
                if self.numbers.below(2) == 0 {
                    self.ask(index, What::Discover, now)?;
                }
                return Ok(true);
            }
            _ => {
                machine.last = machine.address.take();
                machine.silent_until = Some(until);
                return Ok(false);
            }
        };
        self.ask(index, what, now)?;
        Ok(true)
    }

    fn ask(&mut self, index: u32, what: What, now: Now) -> Result<()> {
        let machine = &mut self.machines[index as usize];
        machine.asked = machine.asked.wrapping_add(1);
        let xid = u32::from(machine.asked) << 16 | index;
        let frame = self.frame(index, xid, what);
        self.ip.send(&frame)?;
        if !matches!(what, What::Release(_)) {
            self.outstanding += 1;
            self.timers.push(Reverse((now.wall + RETRY, index, xid)));
            self.machines[index as usize].asking =
                Some(Asking { what, xid, begun: now.served, tries: 1, frame });
        }
        Ok(())
    }

    /// A request's timer ran out.
    fn overdue(&mut self, index: u32, xid: u32, now: Now, tally: &mut Tally) -> Result<()> {
        let machine = &mut self.machines[index as usize];
        let Some(asking) = machine.asking.as_mut().filter(|asking| asking.xid == xid) else { return Ok(()) };
        if asking.tries == 1 {
            self.outstanding -= 1;
        }
        let what = asking.what;
        // Also for a machine that rebooted, and does not know its lease.
        let address = what.lease().or(machine.address);
        let live = address.map(|address| self.promises.live(address, index, now.wall).is_some());
        let gives_up = what == What::Discover && live != Some(true) && asking.tries == DISCOVERS;
        if gives_up || now.served - asking.begun > PATIENCE || live == Some(false) {
            let tries = asking.tries;
            machine.asking = None;
            machine.last = machine.address.take().or(machine.last);
            match what {
                What::Discover if gives_up => {
                    tally.gave_up += 1;
                    machine.silent_until = Some(now.wall + SULK);
                }
                What::Remembering(_) | What::Release(_) => {}
                What::Selecting(address) => {
                    tally.offers_lost += 1;
                    tally.tell(|| {
                        format!("machine {index}: no answer to {tries} requests for the offered {address}")
                    });
                }
                What::Discover
                | What::Renewing(_)
                | What::Rebinding(_)
                | What::Rebooting(_)
                | What::Inform(_) => {
                    tally.renewals_lost += 1;
                    tally.tell(|| format!("machine {index}: no answer to {what:?} after {tries} tries"));
                }
            }
            return Ok(());
        }
        asking.tries += 1;
        tally.retries += 1;
        let wait = (RETRY * 2u32.pow(asking.tries.min(4) - 1)).min(LONGEST_RETRY);
        self.timers.push(Reverse((now.wall + wait, index, xid)));
        self.ip.send(&asking.frame)?;
        Ok(())
    }

    fn take(&mut self, reply: &Reply, now: Now, tally: &mut Tally) -> Result<()> {
        let index = reply.xid & 0xffff;
        let Some(machine) = self.machines.get_mut(index as usize) else { return Ok(()) };
        // A client ignores duplicate and late answers.
        let Some(asking) =
            machine.asking.take_if(|asking| asking.xid == reply.xid && reply.mac == mac(index))
        else {
            return Ok(());
        };
        if asking.tries == 1 {
            self.outstanding -= 1;
        }
        tally.dhcp += 1;
        let Asking { what, .. } = asking;
        match (what, reply.message) {
            (What::Discover, OFFER) => self.offered(index, reply, now, tally),
            (What::Inform(_), ACK) => Ok(()),
            (
                What::Selecting(address)
                | What::Renewing(address)
                | What::Rebinding(address)
                | What::Rebooting(address)
                | What::Remembering(address),
                ACK,
            ) => {
                tally.renewals += u64::from(what.lease().is_some());
                self.judge(index, reply.address, now, tally);
                if reply.address != address {
                    tally.offers_lost += 1;
                    tally.tell(|| format!("machine {index}: {what:?} was acknowledged as {}", reply.address));
                }
                let time = reply.lease_time.context("an ACK without a lease time")?;
                self.promises.promise(reply.address, index, now.wall + time);
                self.machines[index as usize].address = Some(reply.address);
                Ok(())
            }
            (What::Remembering(_), NAK) => {
                self.machines[index as usize].last = None;
                Ok(())
            }
            (_, message) => {
                let offered = matches!(what, What::Selecting(_));
                *(if offered { &mut tally.offers_lost } else { &mut tally.renewals_lost }) += 1;
                tally.tell(|| format!("machine {index}: message {message} is the answer to {what:?}"));
                let machine = &mut self.machines[index as usize];
                machine.last = machine.address.take();
                Ok(())
            }
        }
    }

    fn offered(&mut self, index: u32, reply: &Reply, now: Now, tally: &mut Tally) -> Result<()> {
        self.judge(index, reply.address, now, tally);
        // A machine that rebooted still has its lease.
        if let Some(had) = self.machines[index as usize].address.take()
            && had != reply.address
            && self.promises.live(had, index, now.wall).is_some()
        {
            tally.renewals_lost += 1;
            tally.tell(|| format!("machine {index} has {had}, and was offered {}", reply.address));
        }
        // Some are switched off before they send a REQUEST.
        if self.numbers.below(50) == 0 {
            return Ok(());
        }
        self.ask(index, What::Selecting(reply.address), now)
    }

    /// Checks that no other machine may be using an address that is offered or acknowledged.
    fn judge(&self, index: u32, address: Ipv4Addr, now: Now, tally: &mut Tally) {
        if let Some(rival) = self.promises.rival(address, index, now.wall) {
            tally.addresses_twice += 1;
            tally.tell(|| format!("{address} is machine {rival}'s, and machine {index} was given it"));
        }
    }

    /// The appliance asks who has an address that it unicasts to.
    fn answer_arp(&self, frame: &[u8]) -> Result<()> {
        let Some(request) = frame.get(14..42).filter(|r| r[6..8] == [0, 1]) else { return Ok(()) };
        let target = Ipv4Addr::new(request[24], request[25], request[26], request[27]);
        let station = match self.promises.holder(target) {
            _ if target == RELAY => RELAY_MAC,
            Some(machine) => mac(machine),
            None => return Ok(()),
        };
        let (asker, asking) = (&request[8..14], &request[8..18]);
        let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &station, &target.octets(), asking].concat();
        let to = asker.try_into().expect("six bytes");
        self.arp.send(&ethernet(to, station, ARP, &reply))?;
        Ok(())
    }

    /// The request, from the machine's own MAC or by its relay.
    fn frame(&self, index: u32, xid: u32, what: What) -> Vec<u8> {
        let own = mac(index);
        let unicast = matches!(what, What::Renewing(_) | What::Release(_));
        let relay = (index % 4 == 3 && !unicast).then_some(RELAY);
        let message = message(index, xid, relay, what, self.server);
        let at = SocketAddrV4::new;
        let source = at(what.ciaddr(), 68);
        match relay {
            Some(relay) => {
                let stations = (RELAY_MAC, self.server_mac);
                udp_frame(stations, at(relay, 67), at(self.server, 67), &message)
            }
            None if unicast => udp_frame((own, self.server_mac), source, at(self.server, 67), &message),
            None => udp_frame((own, BROADCAST), source, at(Ipv4Addr::BROADCAST, 67), &message),
        }
    }
}

const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;

impl What {
    /// The live lease that the request is about.
    fn lease(self) -> Option<Ipv4Addr> {
        match self {
            Self::Renewing(address) | Self::Rebinding(address) | Self::Rebooting(address) => Some(address),
            Self::Discover
            | Self::Selecting(_)
            | Self::Remembering(_)
            | Self::Inform(_)
            | Self::Release(_) => None,
        }
    }

    /// The address that the machine uses already.
    fn ciaddr(self) -> Ipv4Addr {
        match self {
            Self::Renewing(address)
            | Self::Rebinding(address)
            | Self::Inform(address)
            | Self::Release(address) => address,
            Self::Discover | Self::Selecting(_) | Self::Rebooting(_) | Self::Remembering(_) => {
                Ipv4Addr::UNSPECIFIED
            }
        }
    }
}

fn message(index: u32, xid: u32, relay: Option<Ipv4Addr>, what: What, server: Ipv4Addr) -> Vec<u8> {
    let kind = match index % 8 {
        0 => Kind::Bios,
        1 => Kind::Uefi,
        _ => Kind::System,
    };
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, u8::from(relay.is_some())]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    // Firmware asks for broadcasts, the rest does not.
    bytes[10] = if kind == Kind::System { 0 } else { 0x80 };
    bytes[12..16].copy_from_slice(&what.ciaddr().octets());
    bytes[24..28].copy_from_slice(&relay.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    bytes[28..34].copy_from_slice(&mac(index));
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let number = match what {
        What::Discover => 1,
        What::Inform(_) => 8,
        What::Release(_) => 7,
        What::Selecting(_)
        | What::Renewing(_)
        | What::Rebinding(_)
        | What::Rebooting(_)
        | What::Remembering(_) => 3,
    };
    bytes.extend([53, 1, number, 57, 2, 5, 0xc0]);
    let mut address = |code: u8, address: Ipv4Addr| {
        bytes.extend([code, 4]);
        bytes.extend(address.octets());
    };
    match what {
        What::Selecting(offered) => {
            address(50, offered);
            address(54, server);
        }
        What::Rebooting(had) | What::Remembering(had) => address(50, had),
        What::Release(_) => address(54, server),
        What::Discover | What::Renewing(_) | What::Rebinding(_) | What::Inform(_) => {}
    }
    match kind {
        Kind::Bios => bytes.extend(*b"\x3c\x20PXEClient:Arch:00000:UNDI:002001\x5d\x02\x00\x00"),
        Kind::Uefi => bytes.extend(*b"\x3c\x20PXEClient:Arch:00007:UNDI:003016\x5d\x02\x00\x07"),
        Kind::System => {
            bytes.extend([61, 7, 1]);
            bytes.extend(mac(index));
        }
    }
    bytes.extend([55, 7, 1, 3, 6, 51, 54, 66, 67, 255]);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// Locally administered, and recognisable in a capture.
fn mac(machine: u32) -> Mac {
    let [_, a, b, c] = machine.to_be_bytes();
    [0x02, 0x78, 0, a, b, c]
}

fn bridge_mac() -> Result<Mac> {
    let path = format!("/sys/class/net/{BRIDGE}/address");
    let text = std::fs::read_to_string(&path).context(path)?;
    let bytes: Vec<u8> =
        text.trim().split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("six bytes")
}
