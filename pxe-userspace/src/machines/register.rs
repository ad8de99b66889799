//! Every machine seen or declared: who it is, which address it holds, how far it got.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;
use serde::{Deserialize, Serialize};

use crate::base::lock::Unpoisoned as _;
use crate::base::text;
use crate::config::facts::{self, Hardware};
use crate::config::{Config, Node, Origin};

/// The approximate limit of machines that are neither declared nor hold an address. More are not a rack, but somebody
/// who forges MAC addresses.
const MACHINES_MAX: usize = 8192;

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(with = "text::mac")]
    pub mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The stage of its last boot; `None` when it was declared and never seen.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// What of its declaration is not in effect, and why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// The gist of its facts, as it told them last.
    #[serde(with = "facts::shared", skip_serializing_if = "Option::is_none", default)]
    pub facts: Option<Arc<Hardware>>,
}

/// Which boots stop in stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The next one.
    Once,
    /// That boot has stopped; the one after it won't.
    Reached,
    UntilReleased,
}

/// A file on its way to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
            problem: None,
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
        self.problem = node.and_then(|n| n.problem.clone());
    }

    /// Whether the firmware it booted with last is a UEFI.
    pub fn is_uefi(&self) -> bool {
        self.firmware.is_some_and(Firmware::is_uefi)
    }

    /// Whether its next boot is to stop in stage 1.
    pub fn stops_in_stage1(&self) -> bool {
        matches!(self.hold, Some(Hold::Once | Hold::UntilReleased))
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
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_address_belongs_to_one_machine() {
        let machines = Machines::default();
        let address = Ipv4Addr::new(10, 77, 0, 100);
        machines.bound(A, address);
        machines.bound(B, address);
        assert_eq!(machines.by_address(address).map(|m| m.mac), Some(B));
        assert_eq!(machines.get(A).and_then(|m| m.address), None);
        machines.released(B);
        assert_eq!(machines.by_address(address), None);
    }

    #[test]
    fn made_up_machines_are_forgotten_and_real_ones_are_not() {
        let machines = Machines::default();
        machines.bound(A, Ipv4Addr::new(10, 77, 0, 100));
        {
            let mut register = machines.write();
            register.machine(B).name = Some("n1".into());
            register.order = register.by_mac.values().map(Place::of).collect();
        }
        let made_up = |n: u32| {
            let [_, b, c, d] = n.to_be_bytes();
            Mac([6, 0, 0, b, c, d])
        };
        let seen = |n: u32| Timestamp::from_second(n.into()).unwrap();
        for n in 0..3 * MACHINES_MAX as u32 {
            machines.reached(made_up(n), Stage::Discover, seen(n), None);
        }
        assert!(machines.all().len() <= MACHINES_MAX);
        assert!(machines.get(A).is_some() && machines.get(B).is_some());
        let last = 3 * MACHINES_MAX as u32 - 1;
        assert!(machines.get(made_up(last)).is_some() && machines.get(made_up(0)).is_none());
        assert_eq!(machines.all().len(), machines.read().by_mac.len(), "the order has those that there are");
    }

    /// Ten thousand, a page at a time: each once, in order, and no more of them are looked at than a page has.
    #[test]
    fn pages_are_all_machines_once_and_copy_no_others() {
        let machines = Machines::default();
        {
            let mut register = machines.write();
            for n in 0..10_000u32 {
                let [_, b, c, d] = n.to_be_bytes();
                let name = (n < 7_000).then(|| format!("n{n}"));
                let mac = Mac([2, 0, 0, b, c, d]);
                register.by_mac.insert(mac, Machine { name, ..Machine::new(mac) });
            }
            register.order = register.by_mac.values().map(Place::of).collect();
        }
        let all = machines.all();
        assert!(all.is_sorted_by_key(|m| (m.name.is_none(), m.name.clone(), m.mac)));
        let (mut after, mut paged) = (None, Vec::new());
        loop {
            let looked = std::cell::Cell::new(0);
            let wanted = |_: &Machine| {
                looked.set(looked.get() + 1);
                true
            };
            let (page, next) = machines.page(after.as_ref(), 100, wanted);
            assert!(page.len() == 100 && looked.get() <= 101, "{} of {}", looked.get(), page.len());
            paged.extend(page);
            let Some(next) = next else { break };
            // As it goes over the wire.
            after = Some(next.to_string().parse::<Place>().unwrap());
            assert_eq!(after, Some(next));
        }
        assert_eq!(paged, all);
        assert_eq!(machines.by_name("n42").and_then(|m| m.name).as_deref(), Some("n42"));
        assert_eq!(machines.by_name("n7000"), None);
        for text in ["", "0", "xyz000000000", "00000000000é"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
