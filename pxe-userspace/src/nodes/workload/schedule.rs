//! Which nodes each workload runs on. Pure. A running workload stays where it is as long as that node may run it.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, Node, Protocol, Workload};

/// The nodes of each workload, by name.
pub(super) type Placed = BTreeMap<String, BTreeSet<String>>;

/// A node's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Its engine answers.
    Up,
    /// It does not answer at present: it is booting, or will.
    Away,
    /// It has been away for so long that its workloads shall run elsewhere.
    Lost,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) placed: Placed,
    /// Workloads that run on fewer nodes than configured, and why.
    pub(super) short: BTreeMap<String, String>,
}

/// Assigns the configuration's workloads to its Docker nodes. `current` is the assignment so far.
///
/// - A workload for one node, or for each node of a group, is assigned to those, whatever their condition.
/// - One with a count stays where it is, unless that node is lost; missing instances go to nodes that are up, the
///   least loaded first.
/// - One with volumes goes to a node that keeps volumes, and stays even on a lost node: its data is there.
/// - Two workloads that publish the same port never share a node. The earlier one in the file has priority.
pub(super) fn schedule(
    config: &Config,
    conditions: &BTreeMap<String, Condition>,
    current: &Placed,
) -> Schedule {
    let condition = |node: &str| conditions.get(node).copied().unwrap_or(Condition::Away);
    let mut board = Board::default();
    let wanted: Vec<Wanted<'_>> = config.workloads.iter().filter_map(|w| Wanted::new(config, w)).collect();

    for wanted in wanted.iter().filter(|wanted| wanted.count.is_none()) {
        for node in &wanted.members {
            board.place(wanted.workload, node);
        }
    }
    for wanted in &wanted {
        let Some(count) = wanted.count else { continue };
        let here = |node: &&&str| current.get(&wanted.workload.name).is_some_and(|on| on.contains(**node));
        let pet = !wanted.workload.volumes.is_empty();
        let mut stay: Vec<&&str> = wanted.members.iter().filter(here).collect();
        stay.retain(|node| pet || condition(node) != Condition::Lost);
        // If there are too many, nodes that are not up are removed first.
        stay.sort_by_key(|node| (condition(node) != Condition::Up, **node));
        for node in stay {
            if board.placed_on(wanted.workload) < count {
                board.place(wanted.workload, node);
            }
        }
    }
    for wanted in &wanted {
        let Some(count) = wanted.count else { continue };
        let mut free: Vec<&&str> = wanted.members.iter().collect();
        free.retain(|node| condition(node) == Condition::Up && !board.has(wanted.workload, node));
        while board.placed_on(wanted.workload) < count && !free.is_empty() {
            free.sort_by_key(|node| std::cmp::Reverse((board.load(node), **node)));
            if let Some(node) = free.pop() {
                board.place(wanted.workload, node);
            }
        }
    }

    let short = wanted.iter().filter_map(|wanted| Some((wanted.workload.name.clone(), board.short(wanted)?)));
    Schedule { short: short.collect(), placed: board.placed }
}

/// A workload for nodes, and the nodes that may run it.
struct Wanted<'a> {
    workload: &'a Workload,
    members: Vec<&'a str>,
    count: Option<usize>,
}

impl<'a> Wanted<'a> {
    fn new(config: &'a Config, workload: &'a Workload) -> Option<Self> {
        let on = workload.on.as_ref()?;
        let fits = |node: &&Node| {
            let profile = config.profile_of(node.mac).map_or("", |profile| &profile.name);
            on.group.has(node, profile) && (workload.volumes.is_empty() || config.keeps_volumes(node))
        };
        let members = config.docker_nodes().filter(fits).map(|node| node.name.as_str()).collect();
        Some(Self { workload, members, count: on.count.map(|count| count as usize) })
    }
}

/// The assignments so far.
#[derive(Default)]
struct Board {
    placed: Placed,
    /// Published ports by node, and the workload that has them.
    ports: BTreeMap<(String, u16, bool), String>,
}

impl Board {
    /// Assigns it to the node, unless another workload there has one of its ports.
    fn place(&mut self, workload: &Workload, node: &str) {
        let ports: Vec<_> = ports(workload).map(|(port, udp)| (node.to_owned(), port, udp)).collect();
        if ports.iter().any(|port| self.ports.contains_key(port)) {
            return;
        }
        self.ports.extend(ports.into_iter().map(|port| (port, workload.name.clone())));
        self.placed.entry(workload.name.clone()).or_default().insert(node.to_owned());
    }

    fn has(&self, workload: &Workload, node: &str) -> bool {
        self.placed.get(&workload.name).is_some_and(|on| on.contains(node))
    }

    fn placed_on(&self, workload: &Workload) -> usize {
        self.placed.get(&workload.name).map_or(0, BTreeSet::len)
    }

    fn load(&self, node: &str) -> usize {
        self.placed.values().filter(|on| on.contains(node)).count()
    }

    fn short(&self, wanted: &Wanted<'_>) -> Option<String> {
        let (placed, count) = (self.placed_on(wanted.workload), wanted.count.unwrap_or(wanted.members.len()));
        if placed >= count && count > 0 {
            return None;
        }
        let taken = wanted.members.iter().filter(|node| !self.has(wanted.workload, node)).find_map(|node| {
            let holder = |(port, udp)| Some((port, self.ports.get(&(node.to_string(), port, udp))?));
            let (port, holder) = ports(wanted.workload).find_map(holder)?;
            Some(format!("port {port} of {node} is workload {holder}'s"))
        });
        let why = taken.unwrap_or_else(|| match wanted.members.len() {
            members if members < count => format!("{members} nodes may run it"),
            _ => "no other node is up".to_owned(),
        });
        Some(format!("it has {placed} of {count} nodes: {why}"))
    }
}

fn ports(workload: &Workload) -> impl Iterator<Item = (u16, bool)> {
    workload.ports.iter().map(|port| (port.host, port.protocol == Protocol::Udp))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
