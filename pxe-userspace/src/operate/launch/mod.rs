//! Launches: machines, what they are to run, and how to go about it. docs/launch.md tells it to people.
//!
//! [`order`] makes a launch of what somebody asks for, or says why not. [`engine`] decides what happens in it, `driver`
//! does it: it stores what the engine decided, has it done by the [`Site`], and tells the engine what came of it.
//! [`Launches`] is what others see of that. [`launched`] is what machines boot since.

mod driver;
pub mod engine;
pub mod healthy;
mod kept;
pub mod launched;
pub mod model;
pub mod order;
mod site;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::base::lock::Unpoisoned as _;
use crate::config::nodes::Launched;
use crate::machines::event::Event;
use crate::store::{ReadError, Store, WriteError};
use engine::{Engine, Heard, Input};
use launched::AllLaunched;
use model::{Launch, LaunchEvent, Member};
use order::Planned;

pub use driver::drive;
pub use site::{Site, SiteError};

/// Launches that are remembered, beside those that go on.
const LAUNCHES_KEPT: usize = 200;

/// A launch with its machines, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Whole {
    #[serde(flatten)]
    pub launch: Launch,
    /// In the order of their turns.
    pub machines: Vec<Member>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("there is no launch {0}")]
    NoLaunch(u64),
    #[error("{}", taken(.0))]
    Taken(Vec<(String, u64)>),
    #[error("launch {0} goes on")]
    GoesOn(u64),
    #[error("launch {0} is over")]
    Over(u64),
    #[error("launch {0} changed nothing that could be undone")]
    Nothing(u64),
    #[error("{}", since(.0))]
    Since(Vec<(String, u64)>),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

fn taken(machines: &[(String, u64)]) -> String {
    named(machines, |name, launch| format!("{name} is in launch {launch}, which goes on"))
}

fn since(machines: &[(String, u64)]) -> String {
    named(machines, |name, launch| match launch {
        0 => format!("{name} was unpinned since"),
        launch => format!("{name} was launched since, by launch {launch}"),
    })
}

/// The first few in words.
fn named(machines: &[(String, u64)], words: impl Fn(&str, u64) -> String) -> String {
    const NAMED: usize = 5;
    let named: Vec<String> = machines.iter().take(NAMED).map(|(name, launch)| words(name, *launch)).collect();
    match machines.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

/// The launches' handle. Cloning it is cheap.
#[derive(Clone)]
pub struct Launches(Arc<Inner>);

struct Inner {
    store: Store,
    pins: AllLaunched,
    state: Mutex<Going>,
    /// To the driver.
    inputs: mpsc::UnboundedSender<(u64, Input)>,
    /// The newest event's id that is stored.
    stored: watch::Sender<u64>,
}

/// Launches, as far as they are in memory.
struct Going {
    /// Those that go on.
    engines: BTreeMap<u64, Engine>,
    /// Those that are over, the newest [`LAUNCHES_KEPT`] of them, without their machines.
    over: BTreeMap<u64, Launch>,
    /// Which launch has the machine.
    taken: HashMap<Mac, u64>,
    last_id: u64,
    last_event: u64,
}

/// What the driver takes its orders from. There is one.
pub struct Driven {
    pub(self) launches: Launches,
    pub(self) inputs: mpsc::UnboundedReceiver<(u64, Input)>,
}

impl Launches {
    /// Those that are stored. Those that went on go on as soon as they are driven.
    pub fn open(store: Store, now: Timestamp) -> Result<(Self, Driven), ReadError> {
        let pins = AllLaunched::open(store.clone())?;
        let (mut engines, mut over, mut taken) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
        let mut last_id = 0;
        for launch in kept::launches(&store)? {
            last_id = last_id.max(launch.id);
            if launch.phase == model::Phase::Ended {
                over.insert(launch.id, launch);
                continue;
            }
            let (id, members) = (launch.id, kept::members(&store, launch.id)?);
            taken.extend(members.iter().filter(|m| !m.state.is_final()).map(|m| (m.mac, id)));
            engines.insert(id, Engine::resume(launch, members, now));
        }
        let last_event = store.reader().last_launch_event_id()?;
        let (inputs, received) = mpsc::unbounded_channel();
        let state = Mutex::new(Going { engines, over, taken, last_id, last_event });
        let stored = watch::Sender::new(last_event);
        let launches = Self(Arc::new(Inner { store, pins, state, inputs, stored }));
        Ok((launches.clone(), Driven { launches, inputs: received }))
    }

    /// What machines boot since.
    pub fn pins(&self) -> HashMap<Mac, Launched> {
        self.0.pins.all()
    }

    /// Whether no launch that goes on has one of these machines.
    pub fn free<'a>(&self, machines: impl Iterator<Item = (&'a str, Mac)>) -> Result<(), LaunchError> {
        self.state().free(machines)
    }

    /// Begins a launch, unless another has one of its machines. It is on disk when this returns. Nothing was done of it
    /// by then.
    pub async fn begin(&self, planned: Planned, now: Timestamp) -> Result<Whole, LaunchError> {
        let (whole, written) = {
            let mut state = self.state();
            let machines = planned.members.iter().map(|member| (member.name.as_str(), member.mac));
            state.free(machines)?;
            state.last_id += 1;
            let (launch, members) = planned.launch(state.last_id, now);
            let engine = Engine::new(launch.clone(), members.clone());
            let changes = kept::whole(&launch, &members);
            // Under the lock, so that launches are stored in the order of their ids.
            let written = self.0.store.written(changes);
            state.taken.extend(members.iter().map(|member| (member.mac, launch.id)));
            state.engines.insert(launch.id, engine);
            (Whole { launch, machines: members }, written)
        };
        let id = whole.launch.id;
        if let Err(error) = written.await {
            let mut state = self.state();
            state.engines.remove(&id);
            state.taken.retain(|_, launch| *launch != id);
            return Err(error.into());
        }
        self.wake(id);
        Ok(whole)
    }

    /// What would bring each machine back to what it booted before, as far as the launch changed it.
    pub fn undone(&self, id: u64) -> Result<(Launch, Vec<Member>), LaunchError> {
        let Whole { launch, machines } = self.get(id)?;
        if launch.phase != model::Phase::Ended {
            return Err(LaunchError::GoesOn(id));
        }
        let pins = self.pins();
        let mut changed: Vec<Member> = machines.into_iter().filter(|member| member.assigned).collect();
        let by = |member: &Member| pins.get(&member.mac).map_or(0, |pin| pin.launch);
        let is_its = |member: &Member| match (pins.get(&member.mac), &member.target) {
            (None, None) => true,
            (Some(pin), Some(target)) => pin.launch == target.launch && pin.is_same(target),
            (Some(_), None) | (None, Some(_)) => false,
        };
        let others = changed.iter().filter(|member| !is_its(member));
        let others: Vec<(String, u64)> = others.map(|member| (member.name.clone(), by(member))).collect();
        if !others.is_empty() {
            return Err(LaunchError::Since(others));
        }
        for member in &mut changed {
            std::mem::swap(&mut member.target, &mut member.before);
        }
        if changed.is_empty() { Err(LaunchError::Nothing(id)) } else { Ok((launch, changed)) }
    }

    /// Ends a launch: no other machine begins, and power actions in flight are finished.
    pub fn cancel(&self, id: u64, by: &str) -> Result<Whole, LaunchError> {
        {
            let mut state = self.state();
            let is_over = state.over.contains_key(&id);
            let Some(engine) = state.engines.get_mut(&id) else {
                return Err(if is_over { LaunchError::Over(id) } else { LaunchError::NoLaunch(id) });
            };
            if engine.is_over() {
                return Err(LaunchError::Over(id));
            }
            engine.take(Input::Cancel { by: by.to_owned() }, Timestamp::now());
        }
        self.wake(id);
        self.get(id)
    }

    /// All that are remembered, the newest first.
    pub fn all(&self) -> Vec<Launch> {
        let state = self.state();
        let going = state.engines.values().map(|engine| engine.launch().clone());
        let mut all: Vec<Launch> = going.chain(state.over.values().cloned()).collect();
        all.sort_by_key(|launch| std::cmp::Reverse(launch.id));
        all
    }

    /// One of them with its machines. Blocks.
    pub fn get(&self, id: u64) -> Result<Whole, LaunchError> {
        let launch = {
            let state = self.state();
            if let Some(engine) = state.engines.get(&id) {
                let machines = engine.members().cloned().collect();
                return Ok(Whole { launch: engine.launch().clone(), machines });
            }
            state.over.get(&id).cloned().ok_or(LaunchError::NoLaunch(id))?
        };
        Ok(Whole { launch, machines: kept::members(&self.0.store, id)? })
    }

    /// Names of images that machines boot, or booted before a launch that can be undone.
    pub fn images(&self) -> Result<Vec<String>, ReadError> {
        let mut names: Vec<String> = Vec::new();
        let mut add = |pin: Option<&Launched>| {
            names.extend(pin.and_then(|pin| pin.image.as_ref()).map(|image| image.name.clone()));
        };
        self.pins().values().for_each(|pin| add(Some(pin)));
        for launch in self.all() {
            let members = match self.get(launch.id) {
                Ok(whole) => whole.machines,
                Err(LaunchError::Read(error)) => return Err(error),
                Err(_) => continue,
            };
            members.iter().flat_map(|m| [&m.before, &m.target]).for_each(|pin| add(pin.as_ref()));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Events with an id above `after`, oldest first, at most `limit`. Blocks.
    pub fn since(&self, after: u64, limit: usize) -> Result<Vec<LaunchEvent>, ReadError> {
        let rows = self.0.store.reader().launch_events_since(after, limit)?;
        Ok(rows.into_iter().filter_map(|row| serde_json::from_str(&row.body).ok()).collect())
    }

    /// The newest stored event's id.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.stored.subscribe()
    }

    /// An event of the timeline was recorded. Never blocks.
    pub fn happened(&self, event: &Event) {
        let id = self.state().taken.get(&event.mac).copied();
        if let Some(id) = id {
            self.tell(id, Input::Event(Heard::from(event)));
        }
    }

    /// A place among the boots may have become free. Never blocks.
    pub fn look_again(&self) {
        let waiting: Vec<u64> = {
            let state = self.state();
            state.engines.iter().filter(|(_, engine)| engine.waits_for_place()).map(|(id, _)| *id).collect()
        };
        waiting.into_iter().for_each(|id| self.wake(id));
    }

    fn tell(&self, id: u64, input: Input) {
        // Nobody drives them while the daemon ends.
        let _ = self.0.inputs.send((id, input));
    }

    /// Has the driver look at a launch.
    fn wake(&self, id: u64) {
        self.tell(id, Input::Look);
    }

    fn state(&self) -> MutexGuard<'_, Going> {
        self.0.state.lock().unpoisoned()
    }
}

impl Going {
    fn free<'a>(&self, machines: impl Iterator<Item = (&'a str, Mac)>) -> Result<(), LaunchError> {
        let busy = machines.filter_map(|(name, mac)| Some((name.to_owned(), *self.taken.get(&mac)?)));
        let busy: Vec<(String, u64)> = busy.collect();
        if busy.is_empty() { Ok(()) } else { Err(LaunchError::Taken(busy)) }
    }
}

impl From<&Event> for Heard {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id,
            mac: event.mac,
            time: event.time,
            stage: event.stage,
            by_firmware: event.firmware.is_some_and(|firmware| firmware != Firmware::None),
            late: event.late,
            detail: event.detail.clone(),
            cause: event.cause.clone(),
        }
    }
}
