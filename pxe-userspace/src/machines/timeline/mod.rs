//! The timeline: all events of machines on their way from power-on to workload, whoever caused them,
//! in one order. It is kept in the database, so that a restart of the daemon loses none.

mod store;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use tokio::sync::broadcast;

use crate::base::lock::Unpoisoned as _;
use crate::machines::diagnosis::{NotLoaded, Note, Watch, Why};
use crate::machines::{Fetching, Machine, Machines};
use crate::store::{ReadError, Store};

pub use super::event::{AnsweredBy, Event, Happened, Who};
pub use pxe_contract::stage::Stage;

/// Machines that a reader looks at under one lock, while events wait.
const LOOKED_AT_AT_ONCE: usize = 64;

/// Whatever depends on the progress of boots.
///
/// The thread that records an event calls it, in the timeline's order, before the event is shown to anybody: no burst
/// of events and no slow disk makes it miss one. So a follower may neither block nor record.
pub trait Follower: Send + Sync {
    /// The machine asks for an address, so it no longer runs what it ran. `address` is the one that it had.
    fn began(&self, mac: Mac, address: Option<Ipv4Addr>);

    /// The machine reached a stage, DISCOVER included; `detail` is the event's, for a file its path.
    fn reached(&self, mac: Mac, stage: Stage, detail: Option<&str>);

    /// An event was recorded, whatever it is: the last of these calls for it.
    fn happened(&self, _event: &Event) {}
}

/// The timeline's handle. Cloning it is cheap; recording never waits for the disk.
#[derive(Clone)]
pub struct Timeline(Arc<Inner>);

struct Inner {
    machines: Machines,
    /// The newest event's id. Locked while an event is passed on, so that ids arrive everywhere in order.
    last_id: Mutex<u64>,
    store: Store,
    live: broadcast::Sender<Event>,
    watch: Mutex<Watch>,
    follower: OnceLock<Box<dyn Follower>>,
}

/// Events that are read again at the start, so that boots in progress are known.
const REMEMBERED: u64 = 20_000;

impl Timeline {
    /// Continues the stored timeline, and tells `machines` the stage of each machine.
    pub fn open(store: Store, machines: Machines) -> Result<Self, ReadError> {
        for event in store::last_of_each_machine(&store)? {
            machines.reached(event.mac, event.stage, event.time, began(event.stage, event.time, None));
        }
        let last_id = store.reader().last_event_id()?;
        let mut watch = Watch::default();
        for event in store::since(&store, last_id.saturating_sub(REMEMBERED), REMEMBERED as usize)? {
            watch.reached(&event);
        }
        // Of a failed boot, whose loader goes round, the last event is another.
        for (mac, time) in watch.failed() {
            machines.reached(mac, Stage::Failed, time, None);
        }
        let (last_id, watch) = (Mutex::new(last_id), Mutex::new(watch));
        let (live, _) = broadcast::channel(4096);
        Ok(Self(Arc::new(Inner { machines, last_id, store, live, watch, follower: OnceLock::new() })))
    }

    /// From now on, `follower` is called. There is one; a second is not called.
    pub fn call(&self, follower: impl Follower + 'static) {
        let _ = self.0.follower.set(Box::new(follower));
    }

    /// Adds an event. When no lease has its address, it is dropped with a debug line: a workload container that
    /// fetches a file is not a boot.
    pub fn record(&self, happened: Happened) {
        let Some(machine) = self.machine(happened.who) else {
            tracing::debug!(?happened, "an event of no known machine");
            return;
        };
        let mut last_id = self.0.last_id.lock().unpoisoned();
        let time = Timestamp::now();
        // A machine without a profile gets nothing to boot, so its boot can't fail.
        if happened.stage == Stage::Discover && machine.profile.is_some() {
            let gave_up = self.watch().asks(machine.mac, happened.firmware, time);
            if let Some(cause) = gave_up {
                self.enter(&mut last_id, time, machine.clone(), Happened::failed(happened.who, cause));
            }
        }
        self.enter(&mut last_id, time, machine, happened);
    }

    fn enter(&self, last_id: &mut u64, time: Timestamp, machine: Machine, happened: Happened) {
        let inner = &*self.0;
        *last_id += 1;
        let began = began(happened.stage, time, happened.began_ago);
        let late = happened.began_ago.is_some() && inner.machines.is_past(machine.mac, began);
        let event = Event {
            id: *last_id,
            time,
            node: machine.name,
            mac: machine.mac,
            address: machine.address,
            stage: happened.stage,
            answered_by: happened.answered_by,
            bytes: happened.bytes,
            duration: happened.duration.map(|d| d.as_secs_f64()),
            detail: happened.detail,
            firmware: happened.firmware,
            cause: happened.cause,
            late,
        };
        let over = self.watch().reached(&event);
        // A loader that goes round after its boot has failed is not further for that.
        if !late && (!over || event.stage == Stage::Failed) {
            inner.machines.reached(event.mac, event.stage, event.time, began);
        }
        self.tell(&event);
        tracing::info!(
            mac = %event.mac,
            node = event.node.as_deref(),
            stage = ?event.stage,
            by = ?event.answered_by,
            detail = event.detail.as_deref(),
            cause = event.cause.as_deref(),
            "timeline"
        );
        store::add(&inner.store, &event);
        // Without a receiver nobody is interested.
        let _ = inner.live.send(event);
    }

    fn tell(&self, event: &Event) {
        let Some(follower) = self.0.follower.get() else { return };
        if event.stage == Stage::Discover {
            follower.began(event.mac, event.address);
        }
        if event.moves() {
            follower.reached(event.mac, event.stage, event.detail.as_deref());
        }
        follower.happened(event);
    }

    /// Notes how much a machine has of the file that it fetches, or that it fetches none.
    pub fn fetching(&self, who: Who, fetching: Option<Fetching>) {
        if let Some(Fetching { path, percent }) = fetching.clone() {
            self.note(who, Note::Progress { path, percent });
        }
        if let Some(machine) = self.machine(who) {
            self.0.machines.fetching(machine.mac, fetching);
        }
    }

    /// Keeps an observation of a machine's boot, as evidence for why it failed.
    pub fn note(&self, who: Who, note: Note) {
        let mac = match who {
            Who::Mac(mac) => Some(mac),
            Who::Address(address) => self.0.machines.by_address(address).map(|machine| machine.mac),
        };
        if let Some(mac) = mac {
            self.watch().noticed(mac, note, Timestamp::now());
        }
    }

    /// The machine's boot is refused. Its loader asks again every so often: one event for one cause is enough.
    pub fn refused(&self, mac: Mac, cause: String) {
        if !self.watch().has_said(mac, &cause) {
            self.record(Happened::failed(Who::Mac(mac), cause));
        }
    }

    /// The machine's loader could not load what it was told to, and will try again. Returns why, as far as it shows.
    pub fn not_loaded(&self, mac: Mac, note: Note) -> Option<String> {
        let NotLoaded { words, news } = self.watch().not_loaded(mac, note, Timestamp::now())?;
        if news {
            self.record(Happened::failed(Who::Mac(mac), words.clone()));
        }
        Some(words)
    }

    /// Records the boots of machines that have fallen silent as failed.
    pub fn end_silent_boots(&self) {
        let machines = &self.0.machines;
        let silent = self.watch().silent(Timestamp::now(), |mac, stage| {
            machines.get(mac).is_some_and(|m| {
                let held = m.hold.is_some() && stage == Stage::Stage1;
                m.profile.is_some() && !held
            })
        });
        for (mac, cause) in silent {
            self.record(Happened::failed(Who::Mac(mac), cause));
        }
    }

    /// The state of the machine's last boot, and its causes; `None` if none was seen.
    pub fn why(&self, mac: Mac) -> Option<Why> {
        let why = self.watch().why(mac, Timestamp::now())?;
        Some(self.named(why))
    }

    /// The same of every machine whose boot is in progress, failed, or had problems; the longest first. Only a few machines
    /// are looked at under one lock, so that events have their turn in between.
    pub fn all_why(&self) -> Vec<Why> {
        let now = Timestamp::now();
        let macs = self.watch().machines();
        let mut all = Vec::new();
        for some in macs.chunks(LOOKED_AT_AT_ONCE) {
            {
                let watch = self.watch();
                all.extend(some.iter().filter_map(|mac| watch.notable(*mac, now)));
            }
            // So that a waiting thread, if it has a CPU, gets the lock first.
            std::thread::yield_now();
        }
        all.sort_by_key(|why| (why.began, why.mac));
        all.into_iter().map(|why| self.named(why)).collect()
    }

    /// Those of these machines whose boots have not moved for longer than is usual.
    pub fn stand_still(&self, machines: impl Iterator<Item = Mac>) -> HashSet<Mac> {
        let (watch, now) = (self.watch(), Timestamp::now());
        machines.filter(|mac| watch.stands_still(*mac, now)).collect()
    }

    fn named(&self, why: Why) -> Why {
        Why { node: self.0.machines.get(why.mac).and_then(|m| m.name), ..why }
    }

    /// The boots of all machines. Events wait while it is held.
    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        self.0.watch.lock().unpoisoned()
    }

    fn machine(&self, who: Who) -> Option<Machine> {
        match who {
            Who::Mac(mac) => Some(self.0.machines.get_or_insert(mac)),
            Who::Address(address) => self.0.machines.by_address(address),
        }
    }

    /// Every event with an id above `after`, oldest first, at most `limit`.
    pub fn since(&self, after: u64, limit: usize) -> Result<Vec<Event>, ReadError> {
        store::since(&self.0.store, after, limit)
    }

    /// A machine's newest events with an id above `after`, newest first, at most `limit`.
    pub fn of(&self, mac: Mac, after: u64, limit: usize) -> Result<Vec<Event>, ReadError> {
        store::of(&self.0.store, mac, after, limit)
    }

    /// Events from now on, and the id of the newest one before: up to it, [`Timeline::since`] has
    /// everything, at the latest when the writer has caught up.
    pub fn follow(&self) -> (u64, broadcast::Receiver<Event>) {
        let last_id = self.0.last_id.lock().unpoisoned();
        (*last_id, self.0.live.subscribe())
    }

    /// Waits until everything recorded so far is in the database, for a bounded time.
    pub fn flush(&self) {
        self.0.store.flush();
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.live.subscribe()
    }
}

/// When the cause of a stage began: a file with its first byte, a machine's report when it arrives.
///
/// A machine fetches one file after the other, so everything that began earlier is over. The sender of a file learns of
/// its end from the kernel's ring of events, on another thread, or when it gives up waiting for the last ACK. The next
/// file may have another sender, and the machine's report (it runs what was in the file; it was refused its
/// configuration) takes another path. So the end of a file may be reported after these. Events of DHCP have no such
/// order, because the kernel reports them late, too.
fn began(stage: Stage, told: Timestamp, ago: Option<Duration>) -> Option<Timestamp> {
    match (ago, stage) {
        (Some(ago), _) => told.checked_sub(ago).ok(),
        (None, Stage::Stage1 | Stage::Image | Stage::Workload | Stage::Failed) => Some(told),
        (None, _) => None,
    }
}
