//! Machines that a rule took, and the names that they have since.
//!
//! A name stays: through restarts, changed rules, and other network cards. A machine is known again by its serial number,
//! once it told its facts, else by its UUID, where it has one of its own, else by its MAC address. What its rule says
//! beside the name is the rule's, and changes with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use pxe_common::Mac;
use uuid::Uuid;

use super::NODES_MAX;
use crate::base::lock::Unpoisoned as _;
use crate::config::rules::{Facts, Rule};
use crate::config::{Config, Node, Origin};
use crate::store::{Change, NamedRow, ReadError, Store, WriteError};

/// UUIDs that makers left in thousands of boards, each in both orders of its first fields.
const DUDS: [Uuid; 4] = [
    Uuid::from_u128(0x03000200_0400_0500_0006_000700080009),
    Uuid::from_u128(0x12345678_1234_5678_90ab_cddeefaabbcc),
    Uuid::from_u128(0x01234567_89ab_cdef_0123_456789abcdef),
    Uuid::from_u128(0x4c4c4544_0000_2010_8020_80c04f202020),
];

/// A UUID that tells its machine from others, in the order of fields that both ways to write it have in common.
fn identity(uuid: Option<&str>) -> Option<Uuid> {
    let uuid = Uuid::try_parse(uuid?).ok()?;
    let turned = Uuid::from_bytes(uuid.to_bytes_le());
    let [first, rest @ ..] = uuid.as_bytes();
    let alike = rest.iter().all(|byte| byte == first);
    let dud = alike || DUDS.contains(&uuid) || DUDS.contains(&turned);
    (!dud).then(|| uuid.min(turned))
}

/// What makers leave in place of a serial number, in small letters and digits alone.
const NO_SERIALS: [&str; 22] = [
    "tobefilledbyoem",
    "tobefilledbyoemtobefilledbyoem",
    "defaultstring",
    "systemserialnumber",
    "chassisserialnumber",
    "serialnumber",
    "systemserialnumb",
    "sernum",
    "notapplicable",
    "notspecified",
    "notavailable",
    "notprovided",
    "unknown",
    "none",
    "empty",
    "invalid",
    "null",
    "0123456789",
    "123456789",
    "1234567890",
    "12345678",
    "1234567",
];

/// A serial number that tells its machine from others of its maker.
fn serial(facts: &Facts) -> Option<String> {
    let hardware = facts.hardware.as_deref()?;
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let serial = plain(hardware.serial.as_deref()?);
    let alike = serial.bytes().all(|byte| Some(byte) == serial.bytes().next());
    let vendor = plain(hardware.vendor.as_deref().unwrap_or_default());
    let says_something = serial.len() > 3 && !alike && !NO_SERIALS.contains(&serial.as_str());
    says_something.then(|| format!("{vendor} {serial}"))
}

/// Whether they are of one machine for sure, or of two; `None` where one of them says nothing.
fn is_same(one: &Facts, other: &Facts) -> Option<bool> {
    if let (Some(one), Some(other)) = (serial(one), serial(other)) {
        return Some(one == other);
    }
    Some(identity(one.uuid.as_deref())? == identity(other.uuid.as_deref())?)
}

/// Whether a UUID says of a machine who it is, and that it is not who it was taken for, or that nobody knew it.
pub fn says_more(known: Option<&str>, seen: Option<&str>) -> bool {
    identity(seen).is_some_and(|seen| identity(known) != Some(seen))
}

/// A machine with its name.
#[derive(Clone, Debug, PartialEq)]
struct Named {
    name: String,
    /// As it was seen last. Its MAC address is nobody's where another machine came with that since.
    facts: Facts,
}

/// By name, in small letters.
type ByName = BTreeMap<String, Named>;

/// The machines that rules took. Cloning it is cheap.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    store: Store,
    by_name: Mutex<ByName>,
}

impl Names {
    /// Those that are stored. One that can't be read is left alone, and the log says so.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let rows = store.reader().named()?;
        let known = rows.into_iter().filter_map(|row| match serde_json::from_str(&row.facts) {
            Ok(facts) => Some((row.name.to_ascii_lowercase(), Named { name: row.name, facts })),
            Err(error) => {
                tracing::warn!(name = row.name, %error, "a name in the database that can't be read: left alone");
                None
            }
        });
        let by_name = Mutex::new(known.collect());
        Ok(Self(Arc::new(Inner { store, by_name })))
    }

    /// The machines as the rules make them, by name. One that no rule takes any more keeps its name for later.
    pub fn nodes(&self, rules: &[Rule]) -> Vec<Arc<Node>> {
        let by_name = self.by_name();
        let known = by_name.values().filter(|named| named.facts.mac != Mac::default());
        let node = |named: &Named| {
            let rule = rules.iter().find(|rule| rule.matches.fits(&named.facts))?;
            Some(Arc::new(Node {
                profile: rule.profile.clone(),
                power: rule.power.clone(),
                labels: rule.labels.clone(),
                origin: Origin::Rule(rule.place.clone()),
                uuid: named.facts.uuid.clone(),
                ..Node::new(&named.name, named.facts.mac)
            }))
        };
        known.filter_map(node).collect()
    }

    /// Names those of the machines that were seen that a rule takes, and remembers how they look now. It is on disk when
    /// this returns, which blocks. `config` is what the daemon goes by. Whether anything has changed.
    pub fn take(&self, config: &Config, seen: Vec<Facts>) -> Result<bool, WriteError> {
        let mut by_name = self.by_name();
        let mut changed = by_name.clone();
        let mut taking = Taking::of(config, &changed);
        for facts in seen {
            taking.one(&mut changed, facts);
        }
        if changed == *by_name {
            return Ok(false);
        }
        self.0.store.write(changes(&by_name, &changed)).wait()?;
        *by_name = changed;
        Ok(true)
    }

    /// Forgets names, which others may be given from now on. It is on disk when this returns, which blocks.
    pub fn forget(&self, names: &[String]) -> Result<(), WriteError> {
        let mut by_name = self.by_name();
        let mut left = by_name.clone();
        left.retain(|name, _| !names.iter().any(|gone| gone.eq_ignore_ascii_case(name)));
        self.0.store.write(changes(&by_name, &left)).wait()?;
        *by_name = left;
        Ok(())
    }

    fn by_name(&self) -> MutexGuard<'_, ByName> {
        self.0.by_name.lock().unpoisoned()
    }
}

/// Who is known by what, while names are given.
struct Taking<'a> {
    config: &'a Config,
    by_serial: HashMap<String, String>,
    by_uuid: HashMap<Uuid, String>,
    by_mac: HashMap<Mac, String>,
    /// Where to look for the next free number of a pattern.
    next: HashMap<String, u32>,
}

impl<'a> Taking<'a> {
    fn of(config: &'a Config, named: &ByName) -> Self {
        let known =
            |(id, named): (&String, &Named)| Some((identity(named.facts.uuid.as_deref())?, id.clone()));
        let by_uuid = named.iter().filter_map(known).collect();
        let known = |(id, named): (&String, &Named)| Some((serial(&named.facts)?, id.clone()));
        let by_serial = named.iter().filter_map(known).collect();
        let by_mac = named.iter().map(|(id, named)| (named.facts.mac, id.clone())).collect();
        Self { config, by_serial, by_uuid, by_mac, next: HashMap::new() }
    }

    /// Who it was, as far as it is known: by its serial number, and where that says nothing, by its UUID, and then by its
    /// MAC address.
    fn known(&self, named: &ByName, facts: &Facts) -> Option<String> {
        let may_be =
            |id: &&String| named.get(*id).is_some_and(|named| is_same(&named.facts, facts) != Some(false));
        let by_serial = serial(facts).and_then(|serial| self.by_serial.get(&serial));
        let by_uuid = || {
            let uuid = identity(facts.uuid.as_deref())?;
            self.by_uuid.get(&uuid).filter(may_be)
        };
        let by_mac = || self.by_mac.get(&facts.mac).filter(may_be);
        by_serial.or_else(by_uuid).or_else(by_mac).cloned()
    }

    fn one(&mut self, named: &mut ByName, mut facts: Facts) {
        let declared = self.config.nodes.by_mac(facts.mac);
        if declared.is_some_and(|node| !matches!(node.origin, Origin::Rule(_))) {
            return;
        }
        let known = self.known(named, &facts);
        // What was known before and is not seen this time stays.
        if let Some(before) = known.as_ref().and_then(|id| named.get(id)).map(|named| &named.facts) {
            facts.uuid = facts.uuid.or_else(|| before.uuid.clone());
            facts.relay = facts.relay.or(before.relay);
            facts.port = facts.port.or_else(|| before.port.clone());
            facts.hardware = facts.hardware.or_else(|| before.hardware.clone());
        }
        let Some(rule) = self.config.rules.iter().find(|rule| rule.matches.fits(&facts)) else { return };
        // Somebody declared another machine of that name since.
        let is_taken = |name: &String| {
            let holder = self.config.nodes.by_name(name);
            holder.is_some_and(|node| !matches!(node.origin, Origin::Rule(_)))
        };
        let (keeps, loses) = known.into_iter().partition::<Vec<_>, _>(|id| !is_taken(id));
        loses.iter().for_each(|id| drop(named.remove(id)));
        let (id, name) = match keeps
            .into_iter()
            .next()
            .and_then(|id| Some((named.get(&id)?.name.clone(), id)))
        {
            Some((name, id)) => (id, name),
            None if named.len() >= NODES_MAX => {
                tracing::warn!(mac = %facts.mac, "no name is given: rules have named {NODES_MAX} machines already");
                return;
            }
            None => {
                let name = self.free_name(named, rule, facts.mac);
                tracing::info!(name, mac = %facts.mac, rule = %rule.place, "a machine was taken by a rule");
                (name.to_ascii_lowercase(), name)
            }
        };
        if let Some(before) = named.get(&id).filter(|before| before.facts.mac != facts.mac) {
            tracing::info!(name, before = %before.facts.mac, now = %facts.mac, "the machine has another network card");
        }
        if let Some(other) = self.by_mac.insert(facts.mac, id.clone()).filter(|other| *other != id) {
            match named.get_mut(&other) {
                // The card was in another machine, which is seen again with another one.
                Some(other) if is_same(&other.facts, &facts) == Some(false) => {
                    other.facts.mac = Mac::default()
                }
                // It is this machine, which was not known yet by its new card.
                Some(_) => drop(named.remove(&other)),
                None => {}
            }
        }
        if let Some(serial) = serial(&facts) {
            self.by_serial.insert(serial, id.clone());
        }
        if let Some(uuid) = identity(facts.uuid.as_deref()) {
            self.by_uuid.insert(uuid, id.clone());
        }
        named.insert(id, Named { name, facts });
    }

    fn free_name(&mut self, named: &ByName, rule: &Rule, mac: Mac) -> String {
        let shadowed: HashSet<String> =
            self.config.nodes.shadowed().iter().map(|node| node.name.to_ascii_lowercase()).collect();
        let next = self.next.entry(rule.name.name(0, mac)).or_insert(1);
        loop {
            let name = rule.name.name(*next, mac);
            let id = name.to_ascii_lowercase();
            let is_free = !named.contains_key(&id)
                && self.config.nodes.by_name(&name).is_none()
                && !shadowed.contains(&id);
            if is_free {
                return name;
            }
            *next += 1;
        }
    }
}

fn changes(old: &ByName, new: &ByName) -> Vec<Change> {
    let gone = old.iter().filter(|(id, _)| !new.contains_key(*id));
    let gone = gone.map(|(_, named)| Change::RemoveNamed(named.name.clone()));
    let put = new.iter().filter(|(id, named)| old.get(*id) != Some(named)).map(|(_, named)| {
        let facts = serde_json::to_string(&named.facts).expect("it has only text keys");
        Change::PutNamed(NamedRow { name: named.name.clone(), facts })
    });
    gone.chain(put).collect()
}

#[cfg(test)]
#[path = "named_tests.rs"]
mod tests;
