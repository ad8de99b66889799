//! Every machine seen or declared: who it is, which address it holds, how far it got.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::lock::Unpoisoned as _;
use crate::base::{schema, text};
use crate::config::facts::{self, Hardware};
use crate::config::{Config, Launched, Node, Origin};

/// The approximate limit of machines that are neither declared nor hold an address. More are not a rack, but somebody
/// who forges MAC addresses.
const MACHINES_MAX: usize = 8192;

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The stage of its last boot; `None` when it was declared and never seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    /// When it reached that stage.
    #[serde(serialize_with = "text::micros_if_any", skip_serializing_if = "Option::is_none", default)]
    pub since: Option<Timestamp>,
    /// When that stage's transfer began, if known: whatever began earlier has also ended earlier.
    #[serde(skip)]
    pub began: Option<Timestamp>,
    /// The file of its boot that it is fetching by TFTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetching: Option<Fetching>,
    /// It waits for an address, because the links carry no more boots at a time: the number of machines before it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<usize>,
    /// In how many stages its last boot loads an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<u8>,
    /// What its firmware said it is.
    #[serde(with = "text::firmware", skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Firmware>")]
    pub firmware: Option<Firmware>,
    /// Its SMBIOS UUID (option 97), as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Somebody wants it to stop in stage 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<Hold>,
    /// Where it is declared; `None` when it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
    /// The address that is reserved for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reserved: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub labels: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub keys: BTreeMap<String, String>,
    /// How its power is switched: `redfish`, `ipmi`, `wol` or `command`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power: Option<String>,
    /// What of its declaration is not in effect, and why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// What a launch has it boot, until the next launch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub launched: Option<Launched>,
    /// The gist of its facts, as it told them last.
    #[serde(with = "facts::shared", skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<Hardware>")]
    pub facts: Option<Arc<Hardware>>,
}

/// Which boots stop in stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The next one.
    Once,
    /// That boot has stopped; the one after it won't.
    Reached,
    UntilReleased,
}

/// A file on its way to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Fetching {
    pub path: String,
    /// How much of it the machine has, updated at each quarter.
    pub percent: u8,
}

impl Machine {
    /// A machine of which only the MAC is known.
    pub fn new(mac: Mac) -> Self {
        Self {
            name: None,
            mac,
            address: None,
            profile: None,
            stage: None,
            since: None,
            began: None,
            fetching: None,
            waiting: None,
            stages: None,
            firmware: None,
            uuid: None,
            hold: None,
            origin: None,
            reserved: None,
            labels: Vec::new(),
            keys: BTreeMap::new(),
            power: None,
            problem: None,
            launched: None,
            facts: None,
        }
    }

    /// Takes over what is declared of it, or that nothing is.
    fn declare(&mut self, node: Option<&Node>, profile: Option<&str>) {
        self.name = node.map(|n| n.name.clone());
        self.profile = profile.map(str::to_owned);
        self.origin = node.map(|n| n.origin.clone());
        self.reserved = node.and_then(|n| n.address);
        self.labels = node.map(|n| n.labels.clone()).unwrap_or_default();
        self.keys = node.map(|n| n.keys.clone()).unwrap_or_default();
        self.power = node.and_then(|n| n.power.as_ref()).map(|power| power.driver().to_owned());
        self.problem = node.and_then(|n| n.problem.clone());
        self.launched = node.and_then(|n| n.launched.clone());
    }

    /// Whether the firmware it booted with last is a UEFI.
    pub fn is_uefi(&self) -> bool {
        self.firmware.is_some_and(Firmware::is_uefi)
    }

    /// Whether its next boot is to stop in stage 1.
    pub fn stops_in_stage1(&self) -> bool {
        matches!(self.hold, Some(Hold::Once | Hold::UntilReleased))
    }

    /// How its boot stands, in words; `none` where none was seen.
    pub fn state(&self, none: &str) -> String {
        let fetching = self.fetching.as_ref().map(|f| format!(", {} % of {}", f.percent, f.path));
        let waiting = self.waiting.map(|before| format!(" (waiting: {before} before it)"));
        let parts = self.stage.map(text::word).into_iter().chain(fetching).chain(waiting);
        let stage = parts.reduce(|a, b| a + &b).unwrap_or_else(|| none.to_owned());
        match (self.hold, self.stage) {
            (None, _) => stage,
            (Some(_), _) if self.is_held() => format!("{stage} (held)"),
            (Some(_), _) => format!("{stage} (to be held)"),
        }
    }

    /// Whether its boot has stopped in stage 1 because somebody wants that.
    pub fn is_held(&self) -> bool {
        matches!(self.hold, Some(Hold::Reached | Hold::UntilReleased)) && self.stage == Some(Stage::Stage1)
    }

    /// What people call it: its name, else its MAC.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.mac.to_string())
    }
}

/// The machines' shared register. Cloning it is cheap.
#[derive(Clone, Default)]
pub struct Machines(Arc<RwLock<Register>>);

#[derive(Default)]
struct Register {
    by_mac: HashMap<Mac, Machine>,
    /// All of them, in the order that they are shown in.
    order: BTreeSet<Place>,
    by_address: HashMap<Ipv4Addr, Mac>,
    /// Machines that may have changed, while somebody wants to know.
    touched: Option<HashSet<Mac>>,
    /// At this many machines some are to be forgotten. It grows, so that not every new machine causes a search.
    look_at: usize,
}

/// Where a machine stands among the others: those with names first, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    unnamed: bool,
    name: String,
    mac: Mac,
}

impl Place {
    fn of(machine: &Machine) -> Self {
        let name = machine.name.clone();
        Self { unnamed: name.is_none(), name: name.unwrap_or_default(), mac: machine.mac }
    }
}

/// As a cursor: what comes behind it is not changed by what comes and goes before.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", text::hex(&self.mac.0), self.name)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (mac, name) = text.split_at_checked(12).ok_or(())?;
        let mac = text::unhex(mac).and_then(|mac| mac.try_into().ok()).ok_or(())?;
        Ok(Self { unnamed: name.is_empty(), name: name.to_owned(), mac: Mac(mac) })
    }
}

impl Machines {
    /// A register that knows the declared nodes.
    pub fn new(config: &Config) -> Self {
        let machines = Self::default();
        machines.declare(config);
        machines
    }

    /// Applies names and profiles of a configuration, also of a changed one.
    pub fn declare(&self, config: &Config) {
        let mut register = self.write();
        for node in config.nodes.iter() {
            register.machine(node.mac);
        }
        for node in config.nodes.shadowed() {
            register.machine(node.mac);
        }
        if register.touched.is_some() {
            register.touched = Some(register.by_mac.keys().copied().collect());
        }
        for machine in register.by_mac.values_mut() {
            let node = config.node(machine.mac);
            machine.declare(node, config.profile_for(node).map(|p| p.name.as_str()));
        }
        for node in config.nodes.shadowed() {
            register.machine(node.mac).problem = node.problem.clone();
        }
        register.order = register.by_mac.values().map(Place::of).collect();
    }

    /// The machine with this MAC, entered now if it is new.
    pub fn get_or_insert(&self, mac: Mac) -> Machine {
        self.write().machine(mac).clone()
    }

    pub fn get(&self, mac: Mac) -> Option<Machine> {
        self.read().by_mac.get(&mac).cloned()
    }

    /// Whose the address is.
    pub fn holder_of(&self, address: Ipv4Addr) -> Option<Mac> {
        self.read().by_address.get(&address).copied()
    }

    /// The machine that holds `address`.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<Machine> {
        let register = self.read();
        register.by_mac.get(register.by_address.get(&address)?).cloned()
    }

    /// All of them, by name, then MAC.
    pub fn all(&self) -> Vec<Machine> {
        let register = self.read();
        register.in_order(None).map(|(_, machine)| machine.clone()).collect()
    }

    /// The one of this name.
    pub fn by_name(&self, name: &str) -> Option<Machine> {
        let register = self.read();
        let first = Place { unnamed: false, name: name.to_owned(), mac: Mac::default() };
        let place =
            register.order.range(first..).next().filter(|place| !place.unnamed && place.name == name)?;
        register.by_mac.get(&place.mac).cloned()
    }

    /// The first `limit` of those behind a place that are wanted, in the order of [`all`](Machines::all), and the place
    /// of the last one where there may be more. Others than these are looked at, and not copied.
    pub fn page(
        &self,
        after: Option<&Place>,
        limit: usize,
        wanted: impl Fn(&Machine) -> bool,
    ) -> (Vec<Machine>, Option<Place>) {
        let register = self.read();
        let mut found = register.in_order(after).filter(|(_, machine)| wanted(machine));
        let mut page = Vec::new();
        let mut last = None;
        for (place, machine) in found.by_ref().take(limit) {
            page.push(machine.clone());
            last = Some(place);
        }
        let more = found.next().is_some();
        (page, last.filter(|_| more).cloned())
    }

    /// Calls `look` with all machines, in their order.
    pub fn look<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = &Machine>) -> T) -> T {
        let register = self.read();
        look(&mut register.in_order(None).map(|(_, machine)| machine))
    }

    /// The machines that may have changed since the last call, those that are gone included. From the first call on they
    /// are noted, until [`Machines::forget_touched`]; so there is one caller.
    pub fn touched(&self) -> HashSet<Mac> {
        self.write().touched.replace(HashSet::new()).unwrap_or_default()
    }

    /// Nobody wants to know any more.
    pub fn forget_touched(&self) {
        self.write().touched = None;
    }

    /// How many there are at each stage of their last boot; `None` for those that have not booted.
    pub fn count_by_stage(&self) -> BTreeMap<Option<Stage>, u64> {
        let mut counts = BTreeMap::new();
        for machine in self.read().by_mac.values() {
            *counts.entry(machine.stage).or_default() += 1;
        }
        counts
    }

    /// Those that were seen since then, in no order.
    pub fn seen_since(&self, since: Timestamp) -> Vec<Machine> {
        let register = self.read();
        register.by_mac.values().filter(|m| m.since.is_some_and(|seen| seen >= since)).cloned().collect()
    }

    /// A lease binds `address` to the machine; whoever held it before no longer does.
    pub fn bound(&self, mac: Mac, address: Ipv4Addr) {
        let mut register = self.write();
        if let Some(old) = register.machine(mac).address.replace(address) {
            register.by_address.remove(&old);
        }
        if let Some(other) = register.by_address.insert(address, mac).filter(|o| *o != mac) {
            register.machine(other).address = None;
        }
    }

    /// The machine no longer holds an address.
    pub fn released(&self, mac: Mac) {
        let mut register = self.write();
        if let Some(old) = register.machine(mac).address.take() {
            register.by_address.remove(&old);
        }
    }

    /// Records what the machine's requests say about it; `profile` is the one it would boot.
    pub fn described(
        &self,
        mac: Mac,
        firmware: Option<Firmware>,
        uuid: Option<String>,
        profile: Option<String>,
    ) {
        let mut register = self.write();
        let machine = register.machine(mac);
        machine.firmware = firmware.or(machine.firmware);
        machine.uuid = uuid.or(machine.uuid.take());
        machine.profile = profile;
    }

    /// The machine told what it is made of, or that is forgotten. Whether it is other than what was known.
    pub fn made_of(&self, mac: Mac, facts: Option<Arc<Hardware>>) -> bool {
        let mut register = self.write();
        let machine = register.machine(mac);
        let changed = machine.facts != facts;
        machine.facts = facts;
        changed
    }

    /// The machine was told to load an image in one or two stages.
    pub fn planned(&self, mac: Mac, stages: u8) {
        self.write().machine(mac).stages = Some(stages);
    }

    /// The machine reached a stage, by something that `began` then.
    pub fn reached(&self, mac: Mac, stage: Stage, time: Timestamp, began: Option<Timestamp>) {
        if stage == Stage::Warning {
            return;
        }
        let mut register = self.write();
        let machine = register.machine(mac);
        machine.stage = Some(stage);
        machine.since = Some(time);
        machine.began = began;
        machine.fetching = None;
        machine.waiting = None;
    }

    /// Whether the machine's present stage began after `other`.
    pub fn is_past(&self, mac: Mac, other: Option<Timestamp>) -> bool {
        let began = self.read().by_mac.get(&mac).and_then(|machine| machine.began);
        began.zip(other).is_some_and(|(began, other)| other < began)
    }

    /// The machine waits for an address, until it reaches its next stage.
    pub fn waits(&self, mac: Mac, before: usize) {
        self.write().machine(mac).waiting = Some(before);
    }

    /// Records the progress of the file that the machine fetches; `None` when it fetches none.
    pub fn fetching(&self, mac: Mac, fetching: Option<Fetching>) {
        self.write().machine(mac).fetching = fetching;
    }

    /// Changes whether the machine is to be held. When it was changed, `then` gets the new value before anybody else
    /// can change it.
    pub fn change_hold<T>(
        &self,
        mac: Mac,
        change: impl FnOnce(Option<Hold>) -> Option<Hold>,
        then: impl FnOnce(Option<Hold>) -> T,
    ) -> Option<T> {
        let mut register = self.write();
        let before = register.by_mac.get(&mac).and_then(|machine| machine.hold);
        let after = change(before);
        if before == after {
            return None;
        }
        register.machine(mac).hold = after;
        Some(then(after))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Register> {
        self.0.read().unpoisoned()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Register> {
        self.0.write().unpoisoned()
    }
}

impl Register {
    fn machine(&mut self, mac: Mac) -> &mut Machine {
        if self.by_mac.len() >= self.look_at.max(MACHINES_MAX) && !self.by_mac.contains_key(&mac) {
            self.forget_some();
            self.look_at = self.by_mac.len() + MACHINES_MAX / 2;
        }
        self.touched.iter_mut().for_each(|touched| touched.extend([mac]));
        self.by_mac.entry(mac).or_insert_with(|| {
            let machine = Machine::new(mac);
            self.order.insert(Place::of(&machine));
            machine
        })
    }

    fn in_order<'a>(&'a self, after: Option<&Place>) -> impl Iterator<Item = (&'a Place, &'a Machine)> {
        let from = after.map_or(Bound::Unbounded, |place| Bound::Excluded(place.clone()));
        let places = self.order.range((from, Bound::Unbounded));
        places.filter_map(|place| Some((place, self.by_mac.get(&place.mac)?)))
    }

    /// Forgets half of the machines that are neither declared nor hold an address, those first that
    /// were not seen for the longest time.
    fn forget_some(&mut self) {
        let forgettable = self
            .by_mac
            .values()
            .filter(|m| m.name.is_none() && m.address.is_none() && m.hold.is_none() && m.problem.is_none())
            // Their number is bounded where they are kept.
            .filter(|m| m.facts.is_none());
        let mut forgettable: Vec<_> = forgettable.map(|m| (m.since, m.mac)).collect();
        forgettable.sort_unstable();
        forgettable.truncate(forgettable.len().div_ceil(2));
        for (_, mac) in forgettable {
            if let Some(machine) = self.by_mac.remove(&mac) {
                self.order.remove(&Place::of(&machine));
                self.touched.iter_mut().for_each(|touched| touched.extend([mac]));
            }
        }
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
