//! Admission: which machine is offered an address now, and which one waits for its turn.
//!
//! Firmware that gets no OFFER sends its DISCOVER again, for half a minute: waiting there costs nothing. Firmware
//! whose transfer stalls retransmits, which makes the stall worse, and gives up. So only as many boots are admitted
//! at a time as the links carry without delaying blocks; all others wait at their DISCOVER, in order of arrival, but
//! never past their firmware's last one.
//!
//! Declared machines wait only for each other: whoever forges MAC addresses, or connects a thousand unknown machines,
//! delays none of them.
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
    /// Machines that the configuration names, and how many of them are under way.
    declared: HashSet<Mac>,
    declared_under_way: usize,
    /// The declared before the others, each in order of arrival.
    queue: BTreeMap<Turn, Mac>,
    waiting: HashMap<Mac, Waiting>,
    /// The same machines, by their firmware's last DISCOVER.
    due: BTreeSet<(Timestamp, Turn)>,
    arrivals: u64,
}

/// Whether the machine is undeclared, then its order of arrival.
type Turn = (bool, u64);

/// A boot that is counted.
#[derive(Debug)]
struct Place {
    /// When something was last seen of it.
    sign: Timestamp,
    /// After this long without a sign of life it is over.
    quiet: Duration,
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
        self.declared_under_way = self.under_way.keys().filter(|mac| declared.contains(mac)).count();
        self.declared = declared;
    }

    /// How many boots are admitted at a time, if that is limited.
    pub fn most(&self) -> Option<usize> {
        self.most
    }

    /// Boots that have a place.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The waiting machines, in order.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = Mac> {
        self.queue.values().copied()
    }

    /// Whether the machine has a place.
    pub fn is_under_way(&self, mac: Mac) -> bool {
        self.under_way.contains_key(&mac)
    }

    /// A machine that would boot sends a DISCOVER.
    pub fn asked(&mut self, mac: Mac, patience: Patience, now: Timestamp) -> Verdict {
        if self.most.is_none() || self.is_under_way(mac) {
            self.enter(mac, now);
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
        let turn = known.map_or((stranger, self.arrivals), |(turn, _)| turn);
        let before = self.before(turn);
        if !may_wait || before < self.places(stranger) {
            self.enter(mac, now);
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

    /// How many waiting machines come before this turn.
    fn before(&self, turn: Turn) -> usize {
        // For the last in the queue nothing has to be counted.
        match self.queue.last_key_value().is_none_or(|(last, _)| *last < turn) {
            true => self.queue.len(),
            false => self.queue.range(..turn).count(),
        }
    }

    /// The kernel offered an address to a machine that boots.
    pub fn offered(&mut self, mac: Mac, now: Timestamp) {
        self.enter(mac, now);
    }

    /// The machine reached a stage of its boot.
    pub fn reached(&mut self, mac: Mac, stage: Stage, now: Timestamp) {
        match stage {
            // These belong to a DISCOVER, which `asked` has seen; or they are no stage.
            Stage::Discover | Stage::Offer | Stage::Warning => {}
            // A boot that makes progress has a place, also after a silence, or if an earlier daemon admitted it.
            Stage::Request | Stage::Ack | Stage::Loader | Stage::Config | Stage::Kernel | Stage::Stage1 => {
                self.enter(mac, now);
            }
            // It has what it needs for now, or all but another initrd, while its kernel starts. Stage 1 comes
            // back for the image.
            Stage::Initrd => {
                self.enter(mac, now);
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
        while let Some((&(stranger, _), &mac)) = self.queue.first_key_value()
            && self.places(stranger) > 0
        {
            self.enter(mac, now);
            admitted.push(mac);
        }
        while let Some(&(due, turn)) = self.due.first()
            && due <= now
        {
            let mac = self.queue[&turn];
            self.enter(mac, now);
            admitted.push(mac);
        }
        admitted
    }

    /// How many more may boot now.
    fn places(&self, stranger: bool) -> usize {
        let taken = if stranger { self.under_way.len() } else { self.declared_under_way };
        self.most.map_or(usize::MAX, |most| most.saturating_sub(taken))
    }

    fn enter(&mut self, mac: Mac, now: Timestamp) {
        if let Some(Waiting { turn, due, .. }) = self.waiting.remove(&mac) {
            self.queue.remove(&turn);
            self.due.remove(&(due, turn));
        }
        // Without a limit nobody needs to be remembered.
        let declared = self.declared.contains(&mac);
        let room = declared || self.under_way.len() < REMEMBERED || self.is_under_way(mac);
        if self.most.is_some() && room {
            let new = self.under_way.insert(mac, Place { sign: now, quiet: QUIET }).is_none();
            self.declared_under_way += usize::from(new && declared);
        }
    }

    fn leave(&mut self, mac: Mac) {
        if self.under_way.remove(&mac).is_some() && self.declared.contains(&mac) {
            self.declared_under_way -= 1;
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
