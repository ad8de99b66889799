//! Millions of exchanges with an appliance that is killed again and again; every answer is verified.
//!
//! The clients are DHCP machines that remember what they were promised, and TFTP readers that know every content
//! that a file ever had. One thread drives all of them, so that "before" and "after" are well defined. Another kills
//! the daemon at random moments and starts it again.

mod machines;
mod promises;
mod readers;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::appliance::{Appliance, address_only};
use crate::load::Numbers;
use crate::net::Host;
use crate::world::World;
use machines::Machines;
use readers::Readers;

/// The shortest life of a daemon: in a shorter one, clients that need the daemon make no progress.
const LIFE: Duration = Duration::from_secs(4);
/// The most faults that are described in words.
const TOLD: usize = 20;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// At least this many exchanges.
    pub exchanges: u64,
    /// How often the daemon is killed (SIGKILL) and started again.
    pub kills: u32,
    /// It determines what the clients do and the times of kills, but not how packets and kills interleave.
    pub seed: u64,
}

/// What happened. An exchange is one packet of a client's and the server's answer to it: a DHCP request, or a
/// TFTP request or ACK with the blocks that it asks for. A DHCPRELEASE has no answer, and counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub seconds: f64,
    pub dhcp: u64,
    pub tftp: u64,
    pub kills: u32,
    /// Requests for a live lease: renewing, rebinding, after a reboot.
    pub renewals: u64,
    pub releases: u64,
    pub transfers: u64,
    /// Transfers of files that only the daemon sends, and that ended with it: their clients ask again.
    pub interrupted: u64,
    pub bytes: u64,
    /// Files that were replaced during transfers.
    pub replaced: u64,
    /// Packets that clients of either kind retransmitted.
    pub retries: u64,
    /// Machines without a lease that gave up asking for a while: the daemon is dead, or no address is free.
    pub gave_up: u64,
    /// Renewals that were refused or not answered, although the lease was live.
    pub renewals_lost: u64,
    /// Offers that were refused when the machine requested them.
    pub offers_lost: u64,
    /// Addresses offered or given to a machine while they were promised to another.
    pub addresses_twice: u64,
    /// Transfers with bytes that match no content that could have been opened.
    pub wrong_bytes: u64,
    /// Transfers that stopped, or were refused.
    pub transfers_lost: u64,
    /// The first faults, in words.
    pub told: Vec<String>,
}

impl Tally {
    pub fn exchanges(&self) -> u64 {
        self.dhcp + self.tftp
    }

    /// The sum of all faults, which must be zero.
    pub fn faults(&self) -> u64 {
        self.renewals_lost + self.offers_lost + self.addresses_twice + self.wrong_bytes + self.transfers_lost
    }

    fn tell(&mut self, fault: impl FnOnce() -> String) {
        if self.told.len() < TOLD {
            self.told.push(format!("{:8.3} s: {}", self.seconds, fault()));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("exchanges", self.exchanges()),
            ("  DHCP", self.dhcp),
            ("    of live leases", self.renewals),
            ("    releases", self.releases),
            ("    gave up for a while", self.gave_up),
            ("  TFTP", self.tftp),
            ("    transfers", self.transfers),
            ("    small, ended by a kill", self.interrupted),
            ("    MB", self.bytes / 1_000_000),
            ("    files replaced", self.replaced),
            ("retries", self.retries),
            ("daemon killed", self.kills.into()),
            ("renewals lost", self.renewals_lost),
            ("offers lost", self.offers_lost),
            ("addresses twice", self.addresses_twice),
            ("wrong bytes", self.wrong_bytes),
            ("transfers lost", self.transfers_lost),
        ];
        rows.iter().try_for_each(|(what, count)| writeln!(f, "{what:<28}{count:>12}"))?;
        self.told.iter().try_for_each(|fault| writeln!(f, "{fault}"))
    }
}

/// Clients of both kinds.
pub struct Clients {
    machines: Machines,
    readers: Readers,
    now: Now,
}

/// Two clocks, because time without a daemon must not count as a missing answer.
#[derive(Clone, Copy)]
struct Now {
    wall: Instant,
    /// The time during which there was a daemon.
    served: Duration,
}

impl Clients {
    /// DHCP clients on one host, and TFTP clients on another, which has an address, of files in `root`. The
    /// appliance runs.
    pub fn new([machines, readers]: [&Host; 2], root: &Path, seed: u64) -> Result<Self> {
        Ok(Self {
            machines: machines.inside(|| Machines::new(seed))?,
            readers: Readers::new(readers, root, seed)?,
            now: Now { wall: Instant::now(), served: Duration::ZERO },
        })
    }

    /// Lets each of them have its turn, and waits a moment when none has anything to do. `served` says whether
    /// there is a daemon.
    pub fn turn(&mut self, served: bool, tally: &mut Tally) -> Result<()> {
        let wall = Instant::now();
        if served {
            // If this thread or the disk stalled, nothing was requested meanwhile.
            self.now.served += (wall - self.now.wall).min(Duration::from_millis(50));
        }
        self.now.wall = wall;
        if !(self.machines.turn(self.now, tally)? | self.readers.turn(self.now, tally)?) {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

/// Runs the plan in this world. `progress` is shown the tally about every second.
pub fn run(world: &World, plan: &Plan, mut progress: impl FnMut(&Tally)) -> Result<Tally> {
    let hosts = [Host::new("machines", 1)?, Host::new("readers", 2)?];
    hosts[1].address("10.77.1.2/16")?;
    let config = config(world, "auto", &hosts.each_ref().map(Host::port));
    let appliance = Appliance::start(world, &config)?;
    let mut clients = Clients::new(hosts.each_ref(), &world.path("files"), plan.seed)?;
    let clock = Clock::default();
    std::thread::scope(|scope| {
        let reaper = scope.spawn(|| reap(world, &config, appliance, plan, &clock));
        let begun = Instant::now();
        let mut tally = Tally::default();
        let mut shown = begun;
        let driven = loop {
            tally.seconds = begun.elapsed().as_secs_f64();
            tally.kills = clock.kills.load(Ordering::Relaxed);
            clock.exchanges.store(tally.exchanges(), Ordering::Relaxed);
            // The reaper ends on its own, and early after an error.
            if reaper.is_finished() && (tally.exchanges() >= plan.exchanges || tally.kills < plan.kills) {
                break Ok(());
            }
            if shown.elapsed() > Duration::from_secs(1) {
                shown = Instant::now();
                progress(&tally);
            }
            if let Err(error) = clients.turn(!clock.dead.load(Ordering::Relaxed), &mut tally) {
                break Err(error);
            }
        };
        clock.over.store(true, Ordering::Relaxed);
        let reaped = reaper.join().expect("the reaper does not panic");
        driven?;
        reaped?.stop().context("the last daemon's end")?;
        Ok(tally)
    })
}

/// The two threads' view of each other.
#[derive(Default)]
struct Clock {
    exchanges: AtomicU64,
    kills: AtomicU32,
    /// From a kill until the next daemon is ready.
    dead: AtomicBool,
    over: AtomicBool,
}

/// Kills the daemon at random moments, each in its share of the run, and leaves it dead for a while.
fn reap(
    world: &World,
    config: &str,
    mut appliance: Appliance,
    plan: &Plan,
    clock: &Clock,
) -> Result<Appliance> {
    let mut numbers = Numbers::new(plan.seed ^ 0x5ca1_ab1e);
    let share = plan.exchanges / u64::from(plan.kills.max(1));
    let mut started = Instant::now();
    for kill in 0..plan.kills {
        let moment = share * u64::from(kill) + share * u64::from(10 + numbers.below(80)) / 100;
        while clock.exchanges.load(Ordering::Relaxed) < moment || started.elapsed() < LIFE {
            if clock.over.load(Ordering::Relaxed) {
                return Ok(appliance);
            }
            appliance.ensure_running()?;
            std::thread::sleep(Duration::from_micros(u64::from(500 + numbers.below(1000))));
        }
        clock.dead.store(true, Ordering::Relaxed);
        appliance.crash()?;
        clock.kills.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(numbers.below(1500).into()));
        appliance = Appliance::start(world, config).with_context(|| format!("after kill {}", kill + 1))?;
        clock.dead.store(false, Ordering::Relaxed);
        started = Instant::now();
    }
    Ok(appliance)
}

/// A configuration with fewer addresses than [`Clients`] have machines, so that addresses change hands, and with the
/// shortest possible leases.
pub fn config(world: &World, fast_path: &str, ports: &[String]) -> String {
    address_only(world, ports, fast_path)
        .replace("10.77.0.1/24", "10.77.0.1/16")
        .replace(r#"["10.77.0.100", "10.77.0.199"]"#, r#"["10.77.16.0", "10.77.27.255"]"#)
        .replace("lease-time = \"1h\"", "lease-time = \"30s\"")
}
