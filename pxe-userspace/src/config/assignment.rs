//! Which nodes a workload may run on, and which volumes it keeps there.

use toml::Spanned;

use super::file::OnTable;
use super::findings::Findings;
use super::{ENGINE_DATA, Group, Node, On, Profile, Run, StoragePlan, Volume};

/// A declared node that runs a Docker engine.
pub(super) struct DockerNode<'a> {
    node: &'a Node,
    profile: &'a str,
    keeps_volumes: bool,
}

pub(super) fn docker_nodes<'a>(
    nodes: &'a [Node],
    profiles: &'a [Profile],
    storage: &[StoragePlan],
    default_profile: Option<&String>,
) -> Vec<DockerNode<'a>> {
    let engine = |node: &'a Node| {
        let name = node.profile.as_ref().or(default_profile)?;
        let profile = profiles.iter().find(|p| p.name == *name && p.run == Run::Docker)?;
        let plan = storage.iter().find(|plan| Some(&plan.name) == profile.storage.as_ref());
        let keeps_volumes = plan.is_some_and(|plan| plan.volumes.iter().any(|v| v.mount == ENGINE_DATA));
        Some(DockerNode { node, profile: &profile.name, keeps_volumes })
    };
    nodes.iter().filter_map(engine).collect()
}

pub(super) fn labels(labels: &[Spanned<String>], findings: &mut Findings<'_>) -> Vec<String> {
    for label in labels.iter().filter(|label| label.get_ref().trim().is_empty()) {
        findings.add(label.span(), "a label is a word", "write labels = [\"rack-1\"], or remove it");
    }
    labels.iter().map(|label| label.get_ref().clone()).collect()
}

/// Where a workload runs. One with volumes needs at least one node that keeps them.
pub(super) fn on(
    table: &Spanned<OnTable>,
    has_volumes: bool,
    nodes: &[DockerNode<'_>],
    findings: &mut Findings<'_>,
) -> Option<On> {
    let OnTable { node, label, profile, count } = table.get_ref();
    let (name, group) = match (node, label, profile) {
        (Some(node), None, None) => (node, Group::Node(node.get_ref().clone())),
        (None, Some(label), None) => (label, Group::Label(label.get_ref().clone())),
        (None, None, Some(profile)) => (profile, Group::Profile(profile.get_ref().clone())),
        _ => {
            findings.add(
                table.span(),
                "`on` names nodes in one way",
                "write { node = \"NAME\" }, { label = \"LABEL\" } or { profile = \"NAME\" }, the latter two with a count or without",
            );
            return None;
        }
    };
    if let Some(count) = count {
        if matches!(group, Group::Node(_)) {
            findings.add(count.span(), "a node is one node", "remove `count`, or name a label or profile");
        } else if *count.get_ref() == 0 {
            findings.add(
                count.span(),
                "it would run nowhere",
                "give it a count from 1, or remove the workload",
            );
        }
    }
    let members: Vec<_> = nodes.iter().filter(|node| group.has(node.node, node.profile)).collect();
    if members.is_empty() {
        findings.add(
            name.span(),
            format!("no declared node that runs a Docker engine is meant by {group}"),
            "add a [[node]] with it, whose profile has run = \"docker\"",
        );
    } else if has_volumes && !members.iter().any(|node| node.keeps_volumes) {
        findings.add(
            name.span(),
            format!("the workload has volumes, and {group} keeps none: they would be gone with a reboot"),
            format!("give the nodes' profile a storage plan with a volume whose mount is \"{ENGINE_DATA}\""),
        );
    }
    Some(On { group, count: count.as_ref().map(|c| *c.get_ref()) })
}

impl Group {
    /// Whether the group includes this node, which boots `profile`.
    pub fn has(&self, node: &Node, profile: &str) -> bool {
        match self {
            Self::Node(name) => node.name == *name,
            Self::Label(label) => node.labels.contains(label),
            Self::Profile(name) => profile == name,
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node `{name}`"),
            Self::Label(label) => write!(f, "label `{label}`"),
            Self::Profile(name) => write!(f, "profile `{name}`"),
        }
    }
}

pub(super) fn volumes(volumes: &[Spanned<String>], findings: &mut Findings<'_>) -> Vec<Volume> {
    let mut read: Vec<Volume> = Vec::new();
    for text in volumes {
        let Some(volume) = volume(text.get_ref()) else {
            findings.add(
                text.span(),
                format!("`{}` is no volume", text.get_ref()),
                "write it as \"data:/var/lib/data\": letters, digits and hyphens, and a path in the container",
            );
            continue;
        };
        if read.iter().any(|other| other.name == volume.name || other.path == volume.path) {
            findings.add(
                text.span(),
                format!("the workload has another volume of that name or path: `{}`", text.get_ref()),
                "remove one",
            );
        }
        read.push(volume);
    }
    read
}

fn volume(text: &str) -> Option<Volume> {
    let (name, path) = text.split_once(':')?;
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let plain = path.starts_with('/') && path != "/" && !path.contains(':');
    (good && plain).then(|| Volume { name: name.to_owned(), path: path.to_owned() })
}
