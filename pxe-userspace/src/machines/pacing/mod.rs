//! Admission: which machine is offered an address now, and which one waits for its turn.
//!
//! Firmware that gets no OFFER sends its DISCOVER again, for half a minute: waiting there costs nothing. Firmware
//! whose transfer stalls retransmits, which makes the stall worse, and gives up. So only as many boots are admitted
//! at a time as the links carry without delaying blocks; all others wait at their DISCOVER, in order of arrival, but
//! never past their firmware's last one.
//!
//! Each port of the bridge has places of its own, because each has a link of its own: who fills one port's holds up
//! nobody behind another. Machines that are declared wait for each other, and for nobody else: who makes up MAC addresses, or plugs in a
//! thousand machines, holds up none of them.
//!
//! Pure: time is passed in. `docs/pacing.md` has the reasons and the numbers.

pub mod patience;
pub mod progress;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;

pub use patience::Patience;

/// How long a block may wait for those of other machines. That must be less than the shortest retry timers: iPXE's
/// (250 ms) and the server's own (300 ms).
pub const BLOCK_WAIT: Duration = Duration::from_millis(100);

/// What one boot has in flight at most: EDK2's window of 4 blocks of 1468 bytes, with their headers. GRUB has
/// one block of 1024, iPXE and other ROMs one of less than 1500.
pub const IN_FLIGHT: u64 = 4 * (1468 + 46);

/// The least number of boots at a time, however slow a link is, so that one stalled machine does not block all others.
const AT_LEAST: usize = 4;

/// A boot that was silent for this long is not counted any more. It is longer than the 16 s that admitted firmware
/// may take until its next DISCOVER, if the OFFER was lost.
pub const QUIET: Duration = Duration::from_secs(20);

/// A boot that has an initrd gives up its place after this long without a transfer. If there is another initrd, the
/// loader asks for it at once.
pub const SETTLED: Duration = Duration::from_secs(1);

/// The most machines that wait, and boots that are counted. Any beyond are answered at once: so many are not a rack,
/// but somebody who forges MAC addresses, and must not make real machines wait.
const REMEMBERED: usize = 16_384;

/// What to do about a DISCOVER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Offer,
    /// Nothing is sent. [`Pacing::admit`] returns it when its turn has come.
    Wait {
        /// How many are before it.
        before: usize,
    },
}

/// Who boots now, and who waits.
#[derive(Debug, Default)]
pub struct Pacing {
    /// Boots at a time; `None` when the links' speed is unknown, and nobody waits.
    most: Option<usize>,
    under_way: HashMap<Mac, Place>,
    /// How many of them each port has.
    taken: HashMap<Port, Taken>,
    /// Machines that the configuration names.
    declared: HashSet<Mac>,
    /// Of each port the declared before the others, each in order of arrival.
    queue: BTreeMap<Turn, Mac>,
    waiting: HashMap<Mac, Waiting>,
    /// The same machines, by their firmware's last DISCOVER.
    due: BTreeSet<(Timestamp, Turn)>,
    arrivals: u64,
}

/// A port of the bridge, by its index, or [`ANYWHERE`].
pub type Port = u32;

/// Nobody knows behind which port the machine is. It counts at each of them.
pub const ANYWHERE: Port = 0;

/// The port, whether it is a stranger, then its arrival.
type Turn = (Port, bool, u64);

/// Boots behind one port.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    all: usize,
    declared: usize,
}

/// A boot that is counted.
#[derive(Debug)]
struct Place {
    /// When something was last seen of it.
    sign: Timestamp,
    /// After this long without a sign of life it is over.
    quiet: Duration,
    port: Port,
}

#[derive(Debug)]
struct Waiting {
    turn: Turn,
    asked: Timestamp,
    /// When its firmware sends its last DISCOVER.
    due: Timestamp,
}

impl Pacing {
    /// For links that carry this many bytes a second.
    pub fn new(capacity: Option<u64>) -> Self {
        Self { most: capacity.map(boots_at_a_time), ..Self::default() }
    }

    /// The links have become faster or slower.
    pub fn set_capacity(&mut self, capacity: Option<u64>) {
        self.most = capacity.map(boots_at_a_time);
    }

    /// Sets the declared machines, which do not wait for others.
    pub fn set_declared(&mut self, declared: HashSet<Mac>) {
        self.declared = declared;
        self.taken.clear();
        for (mac, place) in &self.under_way {
            let taken = self.taken.entry(place.port).or_default();
            taken.all += 1;
            taken.declared += usize::from(self.declared.contains(mac));
        }
    }

    /// How many boots go on at a time behind one port, if that is limited.
    pub fn most(&self) -> Option<usize> {
        self.most
    }

    /// Boots that have a place.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Those who wait, and how many are before each, at its port.
    pub fn turns(&self) -> impl Iterator<Item = (Mac, usize)> {
        self.queue.iter().scan((ANYWHERE, 0), |(port, next), ((at, ..), mac)| {
            let before = if at == port { *next } else { 0 };
            (*port, *next) = (*at, before + 1);
            Some((*mac, before))
        })
    }

    /// Whether the machine has a place.
    pub fn is_under_way(&self, mac: Mac) -> bool {
        self.under_way.contains_key(&mac)
    }

    /// A machine that would boot sends a DISCOVER, by this port of the bridge.
    pub fn asked(&mut self, mac: Mac, port: Port, patience: Patience, now: Timestamp) -> Verdict {
        if self.most.is_none() || self.is_under_way(mac) {
            self.enter(mac, port, now);
            return Verdict::Offer;
        }
        let stranger = !self.declared.contains(&mac);
        let known = self.waiting.get_mut(&mac).map(|waiting| {
            let gap = now.duration_since(waiting.asked).unsigned_abs();
            self.due.remove(&(waiting.due, waiting.turn));
            waiting.due = waiting.due.min(after(now, patience.left_after(gap)));
            waiting.asked = now;
            self.due.insert((waiting.due, waiting.turn));
            (waiting.turn, waiting.due)
        });
        let may_wait = known.map_or(self.queue.len() < REMEMBERED, |(_, due)| due > now);
        let turn = known.map_or((port, stranger, self.arrivals), |(turn, _)| turn);
        let before = self.before(turn);
        if !may_wait || before < self.places(turn.0, stranger) {
            self.enter(mac, turn.0, now);
            return Verdict::Offer;
        }
        if known.is_none() {
            let due = after(now, patience.last());
            self.arrivals += 1;
            self.queue.insert(turn, mac);
            self.due.insert((due, turn));
            self.waiting.insert(mac, Waiting { turn, asked: now, due });
        }
        Verdict::Wait { before }
    }

    /// How many machines wait whose turn comes before this one, as far as that matters to anybody.
    fn before(&self, turn @ (port, ..): Turn) -> usize {
        // Where all are behind one port, who comes last needs no count.
        let is_last = self.queue.last_key_value().is_none_or(|(last, _)| *last < turn);
        match is_last && self.queue.first_key_value().is_none_or(|((first, ..), _)| *first == port) {
            true => self.queue.len(),
            false => self.queue.range((port, false, 0)..turn).count(),
        }
    }

    /// The kernel offered an address to a machine that boots.
    pub fn offered(&mut self, mac: Mac, now: Timestamp) {
        self.enter(mac, ANYWHERE, now);
    }

    /// The machine reached a stage of its boot.
    pub fn reached(&mut self, mac: Mac, stage: Stage, now: Timestamp) {
        match stage {
            // These belong to a DISCOVER, which `asked` has seen; or they are no stage.
            Stage::Discover | Stage::Offer | Stage::Warning => {}
            // A boot that makes progress has a place, also after a silence, or if an earlier daemon admitted it.
            Stage::Request | Stage::Ack | Stage::Loader | Stage::Config | Stage::Kernel | Stage::Stage1 => {
                self.enter(mac, ANYWHERE, now);
            }
            // It has what it needs for now, or all but another initrd, while its kernel starts. Stage 1 comes
            // back for the image.
            Stage::Initrd => {
                self.enter(mac, ANYWHERE, now);
                if let Some(place) = self.under_way.get_mut(&mac) {
                    place.quiet = SETTLED;
                }
            }
            Stage::Image | Stage::Workload | Stage::Failed => self.leave(mac),
        }
    }

    /// Frees the places of boots that have been silent for too long, and returns these machines. A transfer in progress,
    /// of which `fetches` knows, is a sign of life.
    pub fn forget_quiet(&mut self, now: Timestamp, fetches: impl Fn(Mac) -> bool) -> Vec<Mac> {
        let mut gone = Vec::new();
        for (mac, place) in &mut self.under_way {
            let quiet = now.duration_since(place.sign).unsigned_abs() >= place.quiet;
            match quiet && fetches(*mac) {
                true => place.sign = now,
                false if quiet => gone.push(*mac),
                false => {}
            }
        }
        for mac in &gone {
            self.leave(*mac);
        }
        gone
    }

    /// Time passed, or a place became free: returns who is to be offered an address now, without another DISCOVER.
    pub fn admit(&mut self, now: Timestamp) -> Vec<Mac> {
        let mut admitted = Vec::new();
        let mut next = (ANYWHERE, false, 0);
        while let Some((&(port, stranger, _), &mac)) = self.queue.range(next..).next() {
            if self.places(port, stranger) > 0 {
                self.enter(mac, port, now);
                admitted.push(mac);
            } else {
                // Where the first has no place, no other of its port has.
                let Some(port) = port.checked_add(1) else { break };
                next = (port, false, 0);
            }
        }
        while let Some(&(due, turn)) = self.due.first()
            && due <= now
        {
            let mac = self.queue[&turn];
            self.enter(mac, turn.0, now);
            admitted.push(mac);
        }
        admitted
    }

    /// How many more may boot now behind a port.
    fn places(&self, port: Port, stranger: bool) -> usize {
        let taken = |port| {
            let taken = self.taken.get(&port).copied().unwrap_or_default();
            if stranger { taken.all } else { taken.declared }
        };
        let taken = if port == ANYWHERE { self.everywhere(stranger) } else { taken(port) + taken(ANYWHERE) };
        self.most.map_or(usize::MAX, |most| most.saturating_sub(taken))
    }

    fn everywhere(&self, stranger: bool) -> usize {
        self.taken.values().map(|taken| if stranger { taken.all } else { taken.declared }).sum()
    }

    /// `port` is where a new one is, unless it waited there.
    fn enter(&mut self, mac: Mac, port: Port, now: Timestamp) {
        let waited = self.waiting.get(&mac).map(|waiting| waiting.turn.0);
        if let Some(Waiting { turn, due, .. }) = self.waiting.remove(&mac) {
            self.queue.remove(&turn);
            self.due.remove(&(due, turn));
        }
        // Without a limit nobody needs to be remembered.
        let declared = self.declared.contains(&mac);
        let room = declared || self.under_way.len() < REMEMBERED || self.is_under_way(mac);
        if self.most.is_some() && room {
            let before = self.under_way.get(&mac).map(|place| place.port);
            let port = before.or(waited).unwrap_or(port);
            self.under_way.insert(mac, Place { sign: now, quiet: QUIET, port });
            if before.is_none() {
                let taken = self.taken.entry(port).or_default();
                taken.all += 1;
                taken.declared += usize::from(declared);
            }
        }
    }

    fn leave(&mut self, mac: Mac) {
        let Some(place) = self.under_way.remove(&mac) else { return };
        if let Some(taken) = self.taken.get_mut(&place.port) {
            taken.all -= 1;
            taken.declared -= usize::from(self.declared.contains(&mac));
        }
    }
}

/// As many boots as can have all their data in flight sent within [`BLOCK_WAIT`].
fn boots_at_a_time(bytes_per_second: u64) -> usize {
    let at_once = u128::from(bytes_per_second) * BLOCK_WAIT.as_millis() / 1000 / u128::from(IN_FLIGHT);
    usize::try_from(at_once).unwrap_or(usize::MAX).max(AT_LEAST)
}

fn after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}
