//! The lists of a configuration: profiles, nodes, and what they refer to. Workloads have a file of their own.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use pxe_common::Mac;
use toml::Spanned;

use super::file::{File, NodeTable, ProfileTable};
use super::findings::Findings;
use super::nodes::{is_key, is_value, quoted};
use super::segment::Segment;
use super::values::is_host_label;
use super::{DOCKER_NODE, ENROL, ENROL_PROFILE, Rescue, Stages};
use super::{
    Dhcp, DhcpMode, Node, OnExit, Origin, Power, PowerTable, Profile, Run, Source, Unknown, assignment,
    storage, values,
};

pub(super) fn profiles(raw: &File, findings: &mut Findings<'_>) -> Vec<Profile> {
    let mut profiles: Vec<Profile> = Vec::new();
    for entry in &raw.profiles {
        let table = entry.get_ref();
        let name = table.name.get_ref();
        if name.is_empty() {
            findings.add(table.name.span(), "a profile needs a name", "nodes refer to it by that");
        } else if profiles.iter().any(|p| p.name == *name) {
            findings.add(table.name.span(), format!("two profiles are called `{name}`"), "rename one");
        }
        if let Some(storage) = &table.storage {
            storage::known(storage, raw, findings);
            if table.image.is_none() && table.kernel.is_some() {
                findings.add(
                    storage.span(),
                    "`storage` works through the init that an image's initrd has",
                    "remove it, or give `image` in place of `kernel`",
                );
            }
        }
        if let Some(restarts) = &table.restarts
            && table.on_exit.as_ref().is_none_or(|on_exit| *on_exit.get_ref() != OnExit::Restart)
        {
            findings.add(
                restarts.span(),
                "`restarts` bounds what `on-exit = \"restart\"` does",
                "set on-exit = \"restart\", or remove it",
            );
        }
        if let Some(cmdline) =
            table.cmdline.as_ref().filter(|c| c.get_ref().contains(|c: char| c.is_control()))
        {
            findings.add(cmdline.span(), "the command line has control characters", "write it on one line");
        }
        let run = table.run.as_ref().map(|r| *r.get_ref()).unwrap_or_default();
        let on_exit = match run {
            Run::Image => OnExit::default(),
            // The engine is what the node is for.
            Run::Docker => OnExit::Restart,
            Run::Enrol => OnExit::Stay,
        };
        if let Some(on_exit) = table.on_exit.as_ref().filter(|_| run == Run::Enrol)
            && !matches!(on_exit.get_ref(), OnExit::Stay | OnExit::PowerOff)
        {
            findings.add(
                on_exit.span(),
                "a machine that told its facts waits, or powers off",
                "set on-exit = \"stay\" or \"power-off\"",
            );
        }
        profiles.push(Profile {
            name: name.clone(),
            run,
            source: source(raw, table, entry.span(), findings),
            cmdline: table.cmdline.as_ref().map_or_else(String::new, |c| c.get_ref().trim().to_owned()),
            on_exit: table.on_exit.as_ref().map_or(on_exit, |o| *o.get_ref()),
            restarts: table.restarts.as_ref().map(|r| *r.get_ref()),
            rescue: table.rescue.as_ref().map(|r| *r.get_ref()).unwrap_or_default(),
            logs: table.logs.as_ref().is_none_or(|l| *l.get_ref()),
            stages: table.stages.as_ref().map(|s| *s.get_ref()).unwrap_or_default(),
            storage: table.storage.as_ref().map(|s| s.get_ref().clone()),
            kernel: table.kernel.as_ref().filter(|_| table.image.is_some()).map(|k| k.get_ref().clone()),
            modules: modules(table, findings),
        });
    }
    profiles
}

fn modules(table: &ProfileTable, findings: &mut Findings<'_>) -> Vec<String> {
    for module in &table.modules {
        let name = module.get_ref();
        if table.image.is_none() {
            findings.add(
                module.span(),
                "`modules` works through the init that an image's initrd has",
                "remove it, or give `image`",
            );
        } else if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            findings.add(module.span(), format!("`{name}` is no module's name"), "write it as \"bonding\"");
        }
    }
    table.modules.iter().map(|module| module.get_ref().clone()).collect()
}

fn source(
    raw: &File,
    table: &ProfileTable,
    span: std::ops::Range<usize>,
    findings: &mut Findings<'_>,
) -> Source {
    let name = table.name.get_ref();
    let brings = table.run.as_ref().and_then(|run| match run.get_ref() {
        Run::Docker => Some(("docker", DOCKER_NODE)),
        Run::Enrol => Some(("enrol", ENROL)),
        Run::Image => None,
    });
    if let Some((run, image)) = brings {
        let others = [&table.image, &table.kernel].into_iter().flatten().map(Spanned::span);
        for span in others.chain(table.initrd.as_ref().map(Spanned::span)) {
            findings.add(
                span,
                format!("profile `{name}` has `run = \"{run}\"`, which brings an image of its own"),
                "remove one of them; containers' images are named by [[workload]]",
            );
        }
        return Source::Image(image.to_owned());
    }
    match (&table.image, &table.kernel) {
        (Some(image), kernel) => {
            if let Some(kernel) =
                kernel.as_ref().filter(|k| k.get_ref().contains('/') || k.get_ref().is_empty())
            {
                findings.add(
                    kernel.span(),
                    format!(
                        "with `image`, `kernel` is the name of a kernel in the store, and `{}` is none",
                        kernel.get_ref()
                    ),
                    "`bridgehead kernel list` has them; for a kernel by hand, remove `image`",
                );
            }
            image_reference(image, "hello-metal:latest", "bridgehead image add", findings);
            if let Some(initrd) = &table.initrd {
                findings.add(
                    initrd.span(),
                    "an image brings its own initrd",
                    "remove `initrd`, or give `kernel` in place of `image`",
                );
            }
            Source::Image(image.get_ref().clone())
        }
        (None, Some(kernel)) => {
            if raw.files.is_none() {
                findings.add(
                    kernel.span(),
                    "there is no files root that `kernel` could be below",
                    "set [files] root",
                );
            }
            let of_init = [
                ("on-exit", table.on_exit.as_ref().map(Spanned::span)),
                ("logs", table.logs.as_ref().map(Spanned::span)),
                ("rescue", table.rescue.as_ref().map(Spanned::span)),
            ];
            for (key, span) in of_init {
                let Some(span) = span else { continue };
                findings.add(
                    span,
                    format!("`{key}` works through the init that an image's initrd has"),
                    "remove it, or give `image` in place of `kernel`",
                );
            }
            if let Some(stages) = &table.stages {
                findings.add(
                    stages.span(),
                    "`stages` is about how an image comes to the machine",
                    "remove it, or give `image` in place of `kernel`",
                );
            }
            let initrd = table.initrd.as_ref().map(|i| i.get_ref().to_vec()).unwrap_or_default();
            let initrd_span = table.initrd.as_ref().map_or(0..0, Spanned::span);
            let paths = initrd.iter().map(|path| (path, initrd_span.clone()));
            for (path, span) in std::iter::once((kernel.get_ref(), kernel.span())).chain(paths) {
                if path.is_empty()
                    || path.contains(char::is_whitespace)
                    || path.split('/').any(|part| part == "..")
                {
                    findings.add(
                        span,
                        format!("`{path}` is no path below the files root"),
                        "write it as \"debian/vmlinuz\"",
                    );
                }
            }
            Source::Kernel { kernel: kernel.get_ref().clone(), initrd }
        }
        (None, None) => {
            let right = "give it image = \"REFERENCE\", kernel = \"PATH\", or run = \"docker\"";
            findings.add(span, format!("profile `{name}` has nothing to boot"), right);
            Source::Image(String::new())
        }
    }
}

/// The profile of unknown machines that are to enrol, where none says how.
pub(super) fn enrolling(dhcp: &Dhcp, profiles: &mut Vec<Profile>, raw: &File, findings: &mut Findings<'_>) {
    if dhcp.unknown != Unknown::Enrol || profiles.iter().any(|profile| profile.run == Run::Enrol) {
        return;
    }
    if let Some(profile) = raw.profiles.iter().find(|p| p.get_ref().name.get_ref() == ENROL_PROFILE) {
        findings.add(
            profile.span(),
            format!(
                "the profile of machines that enrol is called `{ENROL_PROFILE}`, and this is another one"
            ),
            "give it run = \"enrol\", or another name",
        );
    }
    profiles.push(Profile {
        name: ENROL_PROFILE.to_owned(),
        source: Source::Image(ENROL.to_owned()),
        cmdline: String::new(),
        on_exit: OnExit::Stay,
        restarts: None,
        rescue: Rescue::default(),
        logs: false,
        stages: Stages::One,
        storage: None,
        run: Run::Enrol,
        kernel: None,
        modules: Vec::new(),
    });
}

pub(super) fn default_profile(
    raw: &File,
    profiles: &[Profile],
    dhcp: &Dhcp,
    findings: &mut Findings<'_>,
) -> Option<String> {
    match &raw.default {
        Some(table) => {
            known_profile(&table.profile, profiles, findings);
            Some(table.profile.get_ref().clone())
        }
        None => {
            if dhcp.unknown == Unknown::Boot && dhcp.mode != DhcpMode::Off {
                findings.add(
                    raw.dhcp.as_ref().map_or(0..0, Spanned::span),
                    "machines that no [[node]] declares are to boot, but there is no default profile",
                    "set [default] profile, or [dhcp] unknown = \"address-only\"",
                );
            }
            None
        }
    }
}

pub(super) fn known_profile(name: &Spanned<String>, profiles: &[Profile], findings: &mut Findings<'_>) {
    if profiles.iter().all(|p| p.name != *name.get_ref()) {
        let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
        let right = if names.is_empty() {
            "add a [[profile]]".to_owned()
        } else {
            format!("there is {}", names.join(", "))
        };
        findings.add(name.span(), format!("no profile is called `{}`", name.get_ref()), right);
    }
}

/// Takes `address` for `owner`, or says who has it.
pub(super) fn claim(
    address: &Spanned<Ipv4Addr>,
    owner: String,
    segment: &Segment,
    claimed: &mut HashMap<Ipv4Addr, String>,
    findings: &mut Findings<'_>,
) {
    if let Some((what, right)) = segment.fault(*address.get_ref()) {
        findings.add(address.span(), what, right);
    }
    if let Some(holder) = claimed.get(address.get_ref()) {
        findings.add(address.span(), format!("{} is {holder} address", address.get_ref()), "use another one");
    } else {
        claimed.insert(*address.get_ref(), owner);
    }
}

pub(super) fn nodes(
    raw: &File,
    segment: &Segment,
    profiles: &[Profile],
    claimed: &mut HashMap<Ipv4Addr, String>,
    findings: &mut Findings<'_>,
) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut bmcs: HashMap<String, &str> = HashMap::new();
    for NodeTable { name, mac, address, profile, rescue, memory, power, labels, keys } in &raw.nodes {
        if !is_host_label(name.get_ref()) {
            findings.add(
                name.span(),
                format!("`{}` can't be a node's name", name.get_ref()),
                "it is the node's host name: letters, digits and inner hyphens, at most 63",
            );
        } else if nodes.iter().any(|n| n.name.eq_ignore_ascii_case(name.get_ref())) {
            findings.add(name.span(), format!("two nodes are called `{}`", name.get_ref()), "rename one");
        }
        let parsed = mac.get_ref().parse::<Mac>().unwrap_or_else(|error| {
            findings.add(mac.span(), format!("`{}` is no MAC address", mac.get_ref()), error.to_string());
            Mac::default()
        });
        if parsed != Mac::default() && !parsed.is_unicast() {
            findings.add(
                mac.span(),
                format!("{parsed} is a group address"),
                "a network card's first byte is even",
            );
        } else if let Some(other) = nodes.iter().find(|n| n.mac == parsed && parsed != Mac::default()) {
            findings.add(
                mac.span(),
                format!("node `{}` has the MAC {parsed}, too", other.name),
                "remove one",
            );
        }
        if let Some(address) = address {
            claim(address, format!("node `{}`'s", name.get_ref()), segment, claimed, findings);
        }
        if let Some(profile) = profile {
            known_profile(profile, profiles, findings);
        }
        let memory = memory.as_ref().and_then(|text| {
            let bytes = values::size(text.get_ref());
            if bytes.is_none() {
                findings.add(
                    text.span(),
                    format!("`{}` is no size", text.get_ref()),
                    "write it as \"512M\" or \"4G\"",
                );
            }
            bytes
        });
        let power = power.as_ref().and_then(|table| {
            let power = self::power(table, findings)?;
            let bmc = power.bmc(name.get_ref());
            if let Some(other) = bmc.and_then(|bmc| bmcs.insert(bmc, name.get_ref())) {
                let what = format!("node `{other}` has the same BMC");
                findings.add(table.span(), what, "a BMC switches one machine");
            }
            Some(power)
        });
        nodes.push(Node {
            name: name.get_ref().clone(),
            mac: parsed,
            address: address.as_ref().map(|a| *a.get_ref()),
            profile: profile.as_ref().map(|p| p.get_ref().clone()),
            rescue: *rescue,
            memory,
            power,
            labels: assignment::labels(labels, findings),
            keys: free_keys(keys, findings),
            origin: Origin::File(findings.place(name.span())),
            uuid: None,
            problem: None,
            launched: None,
        });
    }
    nodes
}

/// How a node's or a rule's power is switched.
pub(super) fn power(table: &Spanned<PowerTable>, findings: &mut Findings<'_>) -> Option<Power> {
    let power = Power::try_from(table.get_ref().clone());
    power.map_err(|fault| findings.add(table.span(), fault.what, fault.right)).ok()
}

fn free_keys(
    keys: &BTreeMap<Spanned<String>, Spanned<String>>,
    findings: &mut Findings<'_>,
) -> BTreeMap<String, String> {
    for (key, value) in keys {
        if !is_key(key.get_ref()) {
            findings.add(
                key.span(),
                format!("{} can't be a key of a node", quoted(key.get_ref())),
                "small letters, digits and hyphens, at most 32, the first a letter, and no key that a node has",
            );
        }
        if !is_value(value.get_ref()) {
            let right = "at most 256 characters, and no control characters";
            findings.add(value.span(), format!("{} can't be its value", quoted(value.get_ref())), right);
        }
    }
    keys.iter().map(|(key, value)| (key.get_ref().clone(), value.get_ref().clone())).collect()
}

/// `add` is the command that takes an image from a file, to where its reference is looked up.
pub(super) fn image_reference(
    image: &Spanned<String>,
    example: &str,
    add: &str,
    findings: &mut Findings<'_>,
) {
    let text = image.get_ref();
    let right = if ["/", "./", "../"].iter().any(|start| text.starts_with(start)) {
        format!(
            "`{add} {text}` brings an image in from there; name it here by its reference, as in \"{example}\""
        )
    } else if text.is_empty() || text.contains(char::is_whitespace) {
        format!("write it as \"{example}\"")
    } else {
        return;
    };
    findings.add(image.span(), format!("`{text}` is no image reference"), right);
}
