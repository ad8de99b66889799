//! What people want of the machines that are kept, and why it can't be.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::selector::{Nothing, Selectable, Selector};
use super::table::{self, Wrong};
use super::{ByName, NODES_MAX};
use crate::base::{schema, text};
use crate::config::facts::Hardware;
use crate::config::nodes::{Fault, quoted};
use crate::config::power::PowerFault;
use crate::config::{Config, Node, Origin, Power, PowerTable, Rescue};
use crate::store::WriteError;

/// Something that is wanted.
#[derive(Clone, Debug)]
pub enum Order {
    Add(Box<Node>),
    Set(Selector, Box<Patch>),
    Remove(Selector),
    /// A machine that was seen, by that name or one of its MAC address; or one that a rule took, as it is.
    Adopt(Mac, Option<String>),
    /// Machines as CSV, each added or put in place of the one of its name.
    Import(Vec<u8>),
}

/// What is to be different. Absent keys stay as they are; null takes a value away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Patch {
    /// Of one machine, as its MAC and address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default, with = "mac_if_any")]
    #[schemars(with = "Option<schema::Mac>")]
    pub mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "said")]
    pub address: Option<Option<Ipv4Addr>>,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "said")]
    pub profile: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "said")]
    pub rescue: Option<Option<Rescue>>,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "said")]
    pub memory: Option<Option<u64>>,
    /// Each key in place of the same one that there is; another way in place of all.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "said")]
    pub power: Option<Option<PowerTable>>,
    /// In place of all that there are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub labels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub add_labels: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub remove_labels: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub keys: BTreeMap<String, Option<String>>,
}

/// What was changed: machines as they were, and as they are now. Those that stay as they were are in neither.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    pub before: Vec<Arc<Node>>,
    pub after: Vec<Arc<Node>>,
    /// Machines that were meant.
    pub meant: usize,
    /// Machines that rules took, and whose names are to be forgotten.
    pub forgotten: Vec<Arc<Node>>,
}

/// Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Nothing(#[from] Nothing),
    #[error("{}", joined(.0))]
    Faults(Vec<Fault>),
    /// Of a table, each line.
    #[error("{} and nothing was imported:\n{}", counted(.0), lines(.0))]
    Lines(Vec<Wrong>),
    #[error("{0}")]
    Elsewhere(String),
    #[error("a name, a MAC address and an address are one machine's, and {0} are meant")]
    Several(usize),
    #[error("more than {NODES_MAX} machines can't be kept")]
    Full,
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl OrderError {
    /// Whether it is only other machines, or the file, that keep it from being done.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Faults(faults) => faults.iter().all(|fault| fault.conflict),
            Self::Elsewhere(_) | Self::Full => true,
            Self::Nothing(_) | Self::Lines(_) | Self::Several(_) | Self::Write(_) => false,
        }
    }
}

fn joined(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

fn counted(wrong: &[Wrong]) -> String {
    let mut lines: Vec<u64> = wrong.iter().map(|wrong| wrong.line).collect();
    lines.dedup();
    if let [line] = lines.as_slice() {
        format!("line {line} is wrong,")
    } else {
        format!("{} lines are wrong,", lines.len())
    }
}

fn lines(wrong: &[Wrong]) -> String {
    let line = |Wrong { line, what }: &Wrong| format!("line {line}: {what}");
    wrong.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The machines as they are to be kept from now on, and what that changes.
pub(super) fn plan(config: &Config, kept: &ByName, order: Order) -> Result<(ByName, Done), OrderError> {
    let (mut new, mut forgotten) = (kept.clone(), Vec::new());
    let meant = match order {
        Order::Add(node) => {
            let mut faults = config.faults_of(&node);
            if let Some(holder) = kept.get(&id(&node.name)) {
                faults.push(taken(
                    "name",
                    holder,
                    &format!("`bridgehead node set {}` changes it", holder.name),
                ));
            }
            if !faults.is_empty() {
                return Err(OrderError::Faults(faults));
            }
            vec![put(&mut new, *node)]
        }
        Order::Adopt(mac, name) => {
            let node = adopted(config, mac, name)?;
            vec![put(&mut new, node)]
        }
        Order::Set(selector, patch) => {
            let Chosen { kept: chosen, ruled } = choose(config, kept, &selector)?;
            if !ruled.is_empty() {
                return Err(OrderError::Elsewhere(
                    ruled.iter().map(|node| made_by_rule(node)).collect::<Vec<_>>().join("\n"),
                ));
            }
            if chosen.len() > 1 && patch.is_of_one() {
                return Err(OrderError::Several(chosen.len()));
            }
            let mut set = |name: &String| {
                let node = new.remove(name).expect("it was chosen among them");
                let node =
                    patch.apply(Node::clone(&node)).map_err(|fault| OrderError::Faults(vec![fault]))?;
                // A name that another has is found below.
                if let Some(holder) = new.get(&id(&node.name)) {
                    return Err(OrderError::Faults(vec![taken("name", holder, "name another")]));
                }
                Ok(put(&mut new, node))
            };
            chosen.iter().map(&mut set).collect::<Result<_, _>>()?
        }
        Order::Remove(selector) => {
            let Chosen { kept: chosen, ruled } = choose(config, kept, &selector)?;
            for name in &chosen {
                new.remove(name);
            }
            forgotten = ruled;
            chosen
        }
        Order::Import(table) => return import(config, kept, &table),
    };
    if new.len() > NODES_MAX {
        return Err(OrderError::Full);
    }
    let faults = faults_among(config, kept, &new).into_iter().flat_map(|(_, faults)| faults);
    let faults: Vec<Fault> = faults.collect();
    if !faults.is_empty() {
        return Err(OrderError::Faults(faults));
    }
    let meant = meant.len() + forgotten.len();
    Ok((new.clone(), Done { forgotten, ..done(kept, &new, meant) }))
}

fn made_by_rule(node: &Node) -> String {
    format!("{}; `bridgehead node adopt {}` keeps it, to be changed", node.whose(), node.mac)
}

fn id(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn put(new: &mut ByName, mut node: Node) -> String {
    (node.origin, node.uuid, node.problem, node.launched) = (Origin::Kept, None, None, None);
    node.labels.sort();
    node.labels.dedup();
    let id = id(&node.name);
    new.insert(id.clone(), Arc::new(node));
    id
}

fn taken(what: &str, holder: &Node, right: &str) -> Fault {
    Fault {
        what: format!("its {what} is that of {}", holder.whose()),
        right: right.to_owned(),
        conflict: true,
    }
}

/// What is wrong with each machine that is new or different, by its id.
fn faults_among(config: &Config, old: &ByName, new: &ByName) -> Vec<(String, Vec<Fault>)> {
    let mut macs: HashMap<Mac, Vec<&str>> = HashMap::new();
    let mut addresses: HashMap<Ipv4Addr, Vec<&str>> = HashMap::new();
    let mut bmcs: HashMap<String, Vec<&str>> = HashMap::new();
    for (id, node) in new {
        macs.entry(node.mac).or_default().push(id);
        if let Some(address) = node.address {
            addresses.entry(address).or_default().push(id);
        }
        if let Some(bmc) = node.power.as_ref().and_then(|power| power.bmc(&node.name)) {
            bmcs.entry(bmc).or_default().push(id);
        }
    }
    let other = |holders: &[&str], id: &str| {
        holders.iter().find(|holder| **holder != id).map(|holder| new[*holder].clone())
    };
    let changed = new.iter().filter(|(id, node)| old.get(*id) != Some(node));
    let judged = changed.map(|(id, node)| {
        let mut faults = config.faults_of(node);
        if let Some(holder) = other(&macs[&node.mac], id) {
            faults.push(taken("MAC", &holder, "a machine is declared once"));
        }
        if let Some(holder) = node.address.and_then(|address| other(&addresses[&address], id)) {
            faults.push(taken("address", &holder, "use another one"));
        }
        if let Some(bmc) = node.power.as_ref().and_then(|power| power.bmc(&node.name))
            && let Some(holder) = bmcs.get(&bmc).and_then(|holders| other(holders, id))
        {
            faults.push(taken("power", &holder, "a BMC switches one machine"));
        }
        // What a rule made of another machine. Of this one, it counts no more.
        let ruled =
            config.nodes.by_name(&node.name).filter(|holder| matches!(holder.origin, Origin::Rule(_)));
        if let Some(holder) = ruled.filter(|holder| holder.mac != node.mac) {
            faults.push(taken("name", holder, "name another"));
        }
        (id.clone(), faults)
    });
    judged.filter(|(_, faults)| !faults.is_empty()).collect()
}

fn done(old: &ByName, new: &ByName, meant: usize) -> Done {
    let differ = |of: &ByName, from: &ByName| -> Vec<Arc<Node>> {
        of.iter().filter(|(id, node)| from.get(*id) != Some(node)).map(|(_, node)| node.clone()).collect()
    };
    Done { before: differ(old, new), after: differ(new, old), meant, forgotten: Vec::new() }
}

fn adopted(config: &Config, mac: Mac, name: Option<String>) -> Result<Node, OrderError> {
    let made_up = || format!("m{}", text::hex(&mac.0));
    let node = match config.nodes.by_mac(mac) {
        None => Node::new(name.unwrap_or_else(made_up), mac),
        Some(node) if matches!(node.origin, Origin::Rule(_)) => {
            let node = Node::clone(node);
            Node { name: name.unwrap_or_else(|| node.name.clone()), ..node }
        }
        Some(node) => {
            return Err(OrderError::Elsewhere(format!("{mac} is that of {} already", node.whose())));
        }
    };
    let clash = config.nodes.by_name(&node.name).filter(|holder| holder.mac != mac);
    match clash {
        Some(holder) => Err(OrderError::Faults(vec![taken("name", holder, "name another")])),
        None => Ok(node),
    }
}

/// Puts each line's machine in place of the one of its name. All that is wrong is told with its line.
fn import(config: &Config, kept: &ByName, table: &[u8]) -> Result<(ByName, Done), OrderError> {
    let nodes = table::read(table).map_err(OrderError::Lines)?;
    let mut new = kept.clone();
    let mut lines: HashMap<String, u64> = HashMap::new();
    let mut wrong = Vec::new();
    let meant = nodes.len();
    for (line, node) in nodes {
        let name = quoted(&node.name);
        let id = put(&mut new, node);
        if let Some(other) = lines.insert(id, line) {
            wrong.push(Wrong { line, what: format!("{name} is on line {other}, too") });
        }
    }
    if new.len() > NODES_MAX {
        return Err(OrderError::Full);
    }
    for (id, faults) in faults_among(config, kept, &new) {
        let line = lines[&id];
        wrong.extend(faults.into_iter().map(|fault| Wrong { line, what: fault.to_string() }));
    }
    wrong.sort_by_key(|wrong| wrong.line);
    match wrong.is_empty() {
        true => {
            let done = done(kept, &new, meant);
            Ok((new, done))
        }
        false => Err(OrderError::Lines(wrong)),
    }
}

/// A machine that may be meant, with the profile that it boots.
pub struct Declared<'a> {
    pub node: &'a Arc<Node>,
    profile: Option<&'a str>,
}

impl<'a> Declared<'a> {
    pub fn of(config: &'a Config, node: &'a Arc<Node>) -> Self {
        Self { node, profile: config.profile_for(Some(node)).map(|profile| profile.name.as_str()) }
    }
}

impl Selectable for Declared<'_> {
    fn name(&self) -> Option<&str> {
        Some(&self.node.name)
    }
    fn mac(&self) -> Mac {
        self.node.mac
    }
    fn profile(&self) -> Option<&str> {
        self.profile
    }
    fn has_label(&self, label: &str) -> bool {
        self.node.labels.iter().any(|its| its == label)
    }
    /// Whoever asks for facts has put MAC addresses in their place.
    fn hardware(&self) -> Option<&Hardware> {
        None
    }
}

/// Machines that are meant, none of which is the file's.
struct Chosen {
    /// By their ids.
    kept: Vec<String>,
    ruled: Vec<Arc<Node>>,
}

fn choose(config: &Config, kept: &ByName, selector: &Selector) -> Result<Chosen, OrderError> {
    // One that the file's leaves no room for can still be changed.
    let is_elsewhere = |node: &&Arc<Node>| node.origin != Origin::Kept && !kept.contains_key(&id(&node.name));
    let all = kept.values().chain(config.nodes.iter().filter(is_elsewhere));
    let meant = selector.choose(all.map(|node| Declared::of(config, node)))?;
    let (mut chosen, mut refused) = (Chosen { kept: Vec::new(), ruled: Vec::new() }, Vec::new());
    for Declared { node, .. } in meant {
        match &node.origin {
            Origin::Kept => chosen.kept.push(id(&node.name)),
            Origin::Rule(_) => chosen.ruled.push(node.clone()),
            Origin::File(place) => {
                refused.push(format!("{} is of the file; changed there: {place}", node.name))
            }
        }
    }
    if refused.is_empty() { Ok(chosen) } else { Err(OrderError::Elsewhere(refused.join("\n"))) }
}

impl Patch {
    fn is_of_one(&self) -> bool {
        self.name.is_some() || self.mac.is_some() || self.address.is_some_and(|address| address.is_some())
    }

    fn apply(&self, mut node: Node) -> Result<Node, Fault> {
        let patch = self.clone();
        node.name = patch.name.unwrap_or(node.name);
        node.mac = patch.mac.unwrap_or(node.mac);
        node.address = patch.address.unwrap_or(node.address);
        node.profile = patch.profile.unwrap_or(node.profile);
        node.rescue = patch.rescue.unwrap_or(node.rescue);
        node.memory = patch.memory.unwrap_or(node.memory);
        node.labels = patch.labels.unwrap_or(node.labels);
        node.labels.extend(patch.add_labels);
        node.labels.retain(|label| !patch.remove_labels.contains(label));
        for (key, value) in patch.keys {
            match value {
                Some(value) => drop(node.keys.insert(key, value)),
                None => drop(node.keys.remove(&key)),
            }
        }
        node.power = match patch.power {
            None => node.power,
            Some(None) => None,
            Some(Some(table)) => Some(changed(node.power, table)?),
        };
        Ok(node)
    }
}

fn changed(power: Option<Power>, table: PowerTable) -> Result<Power, Fault> {
    let table = table.over(power.map(PowerTable::from).unwrap_or_default());
    let fault = |fault: PowerFault| Fault { what: fault.what, right: fault.right.into(), conflict: false };
    Power::try_from(table).map_err(fault)
}

/// What is there, null as well.
fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(d).map(Some)
}

mod mac_if_any {
    use pxe_common::Mac;
    use serde::{Deserializer, Serializer};

    use crate::base::text;

    pub(super) fn serialize<S: Serializer>(mac: &Option<Mac>, s: S) -> Result<S::Ok, S::Error> {
        match mac {
            Some(mac) => text::mac::serialize(mac, s),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Mac>, D::Error> {
        text::mac::deserialize(d).map(Some)
    }
}
