//! The declared machines, wherever they are declared: one directory that everybody asks.
//!
//! Those of the file come first, then those that are kept in the database, then those that a rule took. Where two say
//! something of the same name, MAC or address the earlier counts, and the later is shown with what is the matter.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;

use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::launched::{Launched, PinnedImage};
use super::segment::Segment;
use super::values::is_host_label;
use super::{Config, Power, Rescue};
use crate::base::schema;
use crate::base::text::{self, turns_around};

/// Characters of a label, of a key, and of a key's value.
pub const LABEL_MAX: usize = 63;
pub const KEY_MAX: usize = 32;
pub const VALUE_MAX: usize = 256;
/// Labels and keys of one machine, each.
pub const WORDS_MAX: usize = 32;

pub(super) const BOOTS_NOTHING: &str = "it boots nothing";

/// What keys can't be called: columns of a table of machines.
pub const COLUMNS: [&str; 8] = ["name", "mac", "address", "profile", "rescue", "memory", "labels", "power"];

/// A declared machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Node {
    pub name: String,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    /// A reservation. May lie outside the dynamic range.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<String>,
    /// In place of the profile's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rescue: Option<Rescue>,
    /// The machine's memory in bytes, for the check that what it is sent fits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<u64>,
    /// How its power is switched.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power: Option<Power>,
    /// What workloads are assigned by, and selectors choose by.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub labels: Vec<String>,
    /// Whatever its owner wants to know of it: rack, slot.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub keys: BTreeMap<String, String>,
    /// Where it is declared.
    #[serde(skip)]
    pub origin: Origin,
    /// Of one that a rule took: the UUID that it had.
    #[serde(skip)]
    pub uuid: Option<String>,
    /// What of it is not in effect, and why.
    #[serde(skip)]
    pub problem: Option<String>,
    /// What a launch has it boot, in place of what it is declared with.
    #[serde(skip)]
    pub launched: Option<Launched>,
}

/// Where a machine is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A `[[node]]`.
    File(Place),
    /// In the database.
    #[default]
    Kept,
    /// This `[[rule]]` took it.
    Rule(Place),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(place) => write!(f, "{place}"),
            Self::Kept => f.write_str("database"),
            Self::Rule(place) => write!(f, "rule {place}"),
        }
    }
}

/// FILE:LINE. What stands on another line is no other: all places are equal.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Place(pub String);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that a machine can't be, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: String,
    pub right: String,
    /// It would be right, were it not for something else: a name is taken.
    pub conflict: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.right)
    }
}

impl Node {
    pub fn new(name: impl Into<String>, mac: Mac) -> Self {
        Self {
            name: name.into(),
            mac,
            address: None,
            profile: None,
            rescue: None,
            memory: None,
            power: None,
            labels: Vec::new(),
            keys: BTreeMap::new(),
            origin: Origin::Kept,
            uuid: None,
            problem: None,
            launched: None,
        }
    }

    /// The profile that it names, or that a launch has it boot.
    pub fn profile_in_effect(&self) -> Option<&String> {
        self.launched.as_ref().and_then(|pin| pin.profile.as_ref()).or(self.profile.as_ref())
    }

    /// Whose it is, in words.
    pub fn whose(&self) -> String {
        match &self.origin {
            Origin::File(place) => format!("node `{}`, {place}", self.name),
            Origin::Kept => format!("node `{}`, kept in the database", self.name),
            Origin::Rule(place) => format!("node `{}`, taken by the rule at {place}", self.name),
        }
    }
}

/// Every declared machine, by MAC and by name. Names are told apart without regard to case, as DNS does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nodes {
    pub(super) all: Vec<Arc<Node>>,
    by_mac: HashMap<Mac, usize>,
    by_name: HashMap<String, usize>,
    by_address: HashMap<Ipv4Addr, usize>,
    /// Those that are not in effect at all, with their problems.
    shadowed: Vec<Arc<Node>>,
}

impl Deref for Nodes {
    type Target = [Arc<Node>];

    fn deref(&self) -> &[Arc<Node>] {
        &self.all
    }
}

impl From<Vec<Node>> for Nodes {
    fn from(nodes: Vec<Node>) -> Self {
        let mut all = Self::default();
        nodes.into_iter().for_each(|node| all.put(Arc::new(node)));
        all
    }
}

impl Nodes {
    pub fn by_mac(&self, mac: Mac) -> Option<&Arc<Node>> {
        self.by_mac.get(&mac).map(|i| &self.all[*i])
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Node>> {
        self.by_name.get(&name.to_ascii_lowercase()).map(|i| &self.all[*i])
    }

    /// Who has the address reserved.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<&Arc<Node>> {
        self.by_address.get(&address).map(|i| &self.all[*i])
    }

    /// Those that the others leave no room for.
    pub fn shadowed(&self) -> &[Arc<Node>] {
        &self.shadowed
    }

    /// Those of the file.
    pub fn of_file(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.all.iter().filter(|node| matches!(node.origin, Origin::File(_)))
    }

    fn put(&mut self, node: Arc<Node>) {
        let at = self.all.len();
        self.by_mac.entry(node.mac).or_insert(at);
        self.by_name.entry(node.name.to_ascii_lowercase()).or_insert(at);
        if let Some(address) = node.address {
            self.by_address.entry(address).or_insert(at);
        }
        self.all.push(node);
    }

    /// Behind those that are there. `taken` says why a machine can't have an address, though no other has.
    fn join(&mut self, node: &Arc<Node>, taken: impl Fn(Ipv4Addr) -> Option<String>) {
        let holder = self.by_mac(node.mac).or_else(|| self.by_name(&node.name));
        if let Some(holder) = holder {
            // What a rule would make of a machine that somebody declared is nothing that anybody misses.
            if matches!(node.origin, Origin::Rule(_)) {
                return;
            }
            let what = if holder.mac == node.mac { format!("MAC {}", node.mac) } else { "name".to_owned() };
            let problem =
                format!("{} is not in effect: its {what} is that of {}", node.whose(), holder.whose());
            self.shadowed.push(Arc::new(Node { problem: Some(problem), ..Node::clone(node) }));
            return;
        }
        let of_machine = |address| Some(format!("is that of {}", self.by_address(address)?.whose()));
        let why = |address| of_machine(address).or_else(|| taken(address));
        match node.address.and_then(|address| Some((address, why(address)?))) {
            None => self.put(node.clone()),
            Some((address, why)) => {
                let problem = format!("its address is not reserved: {address} {why}");
                self.put(Arc::new(Node { address: None, problem: Some(problem), ..Node::clone(node) }));
            }
        }
    }
}

impl Config {
    /// The configuration with these machines behind those of its file, in place of those that were.
    pub fn with_nodes<'a>(&self, others: impl IntoIterator<Item = &'a Arc<Node>>) -> Self {
        let mut nodes = Nodes::default();
        self.nodes.of_file().for_each(|node| {
            nodes.put(match node.launched {
                None => node.clone(),
                Some(_) => Arc::new(Node { launched: None, problem: None, ..Node::clone(node) }),
            })
        });
        for node in others {
            nodes.join(node, |address| self.taken(address));
        }
        nodes.all.iter_mut().for_each(|node| self.find_profile(node));
        Self { nodes, ..self.clone() }
    }

    /// Says of a machine that its profile is gone.
    pub(super) fn find_profile(&self, node: &mut Arc<Node>) {
        let gone = node.profile_in_effect().filter(|profile| self.profile(profile).is_none());
        if let Some(profile) = gone {
            let problem = format!("{BOOTS_NOTHING}: there is no profile {profile} any more");
            *node = Arc::new(Node { problem: Some(problem), ..Node::clone(node) });
        }
    }

    /// Why no machine can have an address.
    fn taken(&self, address: Ipv4Addr) -> Option<String> {
        let segment = Segment::new(self.network.address);
        if segment.own == address {
            return Some("is the appliance's".to_owned());
        }
        if segment.fault(address).is_some() {
            return Some(format!("is no host's on {}", segment.net));
        }
        if self.dhcp.router == Some(address) {
            return Some("is the router's".to_owned());
        }
        let workload = self.workloads.iter().find(|workload| workload.address == Some(address))?;
        Some(format!("is workload `{}`'s", workload.name))
    }

    /// What keeps a machine from being kept as it is: what can't be, and what the file has.
    pub fn faults_of(&self, node: &Node) -> Vec<Fault> {
        let mut faults = form_of(node);
        faults.extend(self.fault_of_power(node));
        let mut add = |conflict, what: String, right: &str| {
            faults.push(Fault { what, right: right.to_owned(), conflict });
        };
        if let Some(profile) = node.profile.as_ref().filter(|profile| self.profile(profile).is_none()) {
            let names: Vec<&str> = self.profiles.iter().map(|p| p.name.as_str()).collect();
            let right = if names.is_empty() {
                "add a [[profile]]".into()
            } else {
                format!("there is {}", names.join(", "))
            };
            add(false, format!("no profile is called {}", quoted(profile)), &right);
        }
        if let Some(address) = node.address {
            if let Some((what, right)) = Segment::new(self.network.address).fault(address) {
                add(false, what, &right);
            } else if let Some(why) = self.taken(address) {
                add(true, format!("{address} {why}"), "use another one");
            }
        }
        let of_file = |node: &&Arc<Node>| matches!(node.origin, Origin::File(_));
        let named = self.nodes.by_name(&node.name).filter(of_file).map(|holder| ("name", holder));
        let has_mac = self.nodes.by_mac(node.mac).filter(of_file).map(|holder| ("MAC", holder));
        let address = node.address.and_then(|address| self.nodes.by_address(address)).filter(of_file);
        for (what, holder) in
            [named, has_mac, address.map(|holder| ("address", holder))].into_iter().flatten()
        {
            let Origin::File(place) = &holder.origin else { continue };
            add(
                true,
                format!("its {what} is node `{}`'s, of the file", holder.name),
                &format!("changed there: {place}"),
            );
        }
        faults
    }
}

impl Config {
    /// Who may change machines is not for that reason root on the appliance, and who has a BMC has it alone.
    fn fault_of_power(&self, node: &Node) -> Option<Fault> {
        if let Some(Power::Command(_)) = &node.power {
            let what = "a command that switches power stands in the configuration's file alone".to_owned();
            let right = "give the machine a [[node]] there: the program runs as the daemon does".to_owned();
            return Some(Fault { what, right, conflict: false });
        }
        let bmc = node.power.as_ref()?.bmc(&node.name)?;
        let holder = self.nodes.of_file().find(|holder| has_bmc(holder, &bmc))?;
        let what = format!("its power is that of {}: {bmc}", holder.whose());
        Some(Fault { what, right: "a BMC switches one machine".to_owned(), conflict: true })
    }
}

/// Whether the machine's power is switched by this BMC.
fn has_bmc(node: &Node, bmc: &str) -> bool {
    node.power.as_ref().and_then(|power| power.bmc(&node.name)).is_some_and(|its| its == bmc)
}

/// What a machine can't be whatever the file says.
fn form_of(node: &Node) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |what: String, right: &str| {
        faults.push(Fault { what, right: right.to_owned(), conflict: false });
    };
    if !is_host_label(&node.name) {
        let right = "it is the node's host name: letters, digits and inner hyphens, at most 63";
        add(format!("{} can't be a node's name", quoted(&node.name)), right);
    }
    if node.mac == Mac::default() || !node.mac.is_unicast() {
        add(
            format!("{} is no network card's address", node.mac),
            "its first byte is even, and not all are zero",
        );
    }
    if let Some(bytes) = node.memory.filter(|bytes| *bytes == 0 || bytes % 1024 != 0) {
        add(format!("{bytes} bytes are no machine's memory"), "whole KiB: 512M or 4G, or leave it out");
    }
    if node.labels.len() > WORDS_MAX || node.keys.len() > WORDS_MAX {
        add(format!("more than {WORDS_MAX} labels or keys"), "a key may have several words as its value");
    }
    for label in node.labels.iter().filter(|label| !is_label(label)) {
        add(
            format!("{} can't be a label", quoted(label)),
            "letters, digits and `.`, `_`, `/`, `-`, at most 63, the first a letter or digit",
        );
    }
    for key in node.keys.keys().filter(|key| !is_key(key)) {
        add(
            format!("{} can't be a key", quoted(key)),
            "small letters, digits and hyphens, at most 32, the first a letter, and none of a machine's own: \
             name, mac, address, profile, rescue, memory, labels, power",
        );
    }
    for (key, value) in node.keys.iter().filter(|(_, value)| !is_value(value)) {
        let right = "at most 256 characters, and no control characters";
        add(format!("{} can't be the value of {}", quoted(value), quoted(key)), right);
    }
    faults
}

pub(super) fn is_label(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b))
}

/// As a column's head is, too.
pub fn is_key(text: &str) -> bool {
    (1..=KEY_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !COLUMNS.contains(&text)
}

pub(super) fn is_value(text: &str) -> bool {
    !text.is_empty()
        && text.chars().count() <= VALUE_MAX
        && text.trim() == text
        && !text.contains(|c: char| c.is_control() || turns_around(c))
}

/// What somebody wrote, to be shown: bounded, and nothing hidden.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    let shown: String = text.chars().take(SHOWN).collect();
    let rest = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("`{}{rest}`", text::visible(&shown))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        let text = r#"
            network = { bridge = "pxe0", address = "10.77.0.1/24" }
            dhcp = { range = ["10.77.0.100", "10.77.0.199"], router = "10.77.0.254" }
            default = { profile = "web" }
            [[profile]]
            name = "web"
            image = "a"
            [[workload]]
            name = "dns"
            image = "b"
            address = "10.77.0.53"
            [[node]]
            name = "n1"
            mac = "52:54:00:77:00:01"
            address = "10.77.0.11"
            keys = { rack = "a1", slot = "3" }
        "#;
        crate::config::parse(text, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
    }

    fn node(name: &str, last: u8) -> Node {
        Node::new(name, Mac([0x52, 0x54, 0, 0x77, 1, last]))
    }

    #[test]
    fn a_machine_of_the_file_has_its_line_and_comes_first() {
        let config = config();
        assert_eq!(config.nodes[0].whose(), "node `n1`, /c.toml:13");
        assert_eq!(config.nodes[0].keys.get("rack").map(String::as_str), Some("a1"));
        let same_name = Arc::new(node("N1", 1));
        let same_mac = Arc::new(Node { mac: config.nodes[0].mac, ..node("other", 2) });
        let same_address = Arc::new(Node { address: Some([10, 77, 0, 11].into()), ..node("third", 3) });
        let workloads = Arc::new(Node { address: Some([10, 77, 0, 53].into()), ..node("fourth", 4) });
        let whole = config.with_nodes([&same_name, &same_mac, &same_address, &workloads]);
        let names: Vec<_> = whole.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["n1", "third", "fourth"]);
        let problems: Vec<_> =
            whole.nodes.shadowed().iter().map(|node| node.problem.clone().unwrap()).collect();
        assert_eq!(
            problems,
            [
                "node `N1`, kept in the database is not in effect: its name is that of node `n1`, /c.toml:13",
                "node `other`, kept in the database is not in effect: its MAC 52:54:00:77:00:01 is that of node `n1`, /c.toml:13",
            ]
        );
        assert_eq!((whole.nodes[1].address, whole.nodes[2].address), (None, None));
        assert_eq!(
            whole.nodes[2].problem.as_deref(),
            Some("its address is not reserved: 10.77.0.53 is workload `dns`'s")
        );
        assert_eq!(whole.node(same_address.mac).map(|node| node.name.as_str()), Some("third"));
        // Once more from what is whole: nothing of the first is left.
        assert_eq!(whole.with_nodes([]), config);
    }

    #[test]
    fn what_a_machine_cannot_be_is_said() {
        let config = config();
        assert_eq!(config.faults_of(&node("n2", 2)), []);
        let faults =
            |node: Node| -> Vec<String> { config.faults_of(&node).iter().map(Fault::to_string).collect() };
        for (node, words) in [
            (node("a b", 2), "`a b` can't be a node's name"),
            (node("a\u{1b}[2J", 2), "`a^[[2J` can't be a node's name"),
            (node(&"x".repeat(1 << 20), 2), "x…` can't be a node's name"),
            (Node { mac: Mac([1; 6]), ..node("n2", 2) }, "is no network card's address"),
            (Node { mac: Mac::default(), ..node("n2", 2) }, "is no network card's address"),
            (
                Node { profile: Some("wbe".into()), ..node("n2", 2) },
                "no profile is called `wbe`; there is web",
            ),
            (
                Node { address: Some([10, 78, 0, 1].into()), ..node("n2", 2) },
                "10.78.0.1 is outside 10.77.0.0/24",
            ),
            (Node { address: Some([10, 77, 0, 1].into()), ..node("n2", 2) }, "10.77.0.1 is the appliance's"),
            (Node { address: Some([10, 77, 0, 254].into()), ..node("n2", 2) }, "10.77.0.254 is the router's"),
            (Node { labels: vec!["a,b".into()], ..node("n2", 2) }, "`a,b` can't be a label"),
            (Node { keys: [("mac".into(), "x".into())].into(), ..node("n2", 2) }, "`mac` can't be a key"),
            (
                Node { keys: [("rack".into(), "\n".into())].into(), ..node("n2", 2) },
                "`^J` can't be the value of `rack`",
            ),
            (node("N1", 2), "its name is node `n1`'s, of the file; changed there: /c.toml:13"),
        ] {
            let found = faults(node);
            assert!(matches!(found.as_slice(), [one] if one.contains(words)), "{found:?}: {words}");
        }
    }
}
