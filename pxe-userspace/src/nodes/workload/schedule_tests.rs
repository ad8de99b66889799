use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config;

const HEAD: &str = r#"
[network]
bridge = "pxe0"
address = "10.77.0.1/24"
[dhcp]
range = ["10.77.0.100", "10.77.0.199"]
unknown = "ignore"
[[profile]]
name = "plain"
run = "docker"
[[profile]]
name = "keeping"
run = "docker"
storage = "data"
[[storage]]
name = "data"
[[storage.disks]]
name = "one"
[[storage.volume]]
name = "engine"
disks = "one"
mount = "/var/lib/docker"
"#;

/// Nodes n1 to n6: odd ones have the label `odd`, n5 and n6 keep volumes.
fn config(workloads: &str) -> Config {
    let mut text = HEAD.to_owned();
    for n in 1..=6 {
        let profile = if n >= 5 { "keeping" } else { "plain" };
        let labels = if n % 2 == 1 { "[\"all\", \"odd\"]" } else { "[\"all\"]" };
        text += &format!(
            "[[node]]\nname = \"n{n}\"\nmac = \"52:54:00:77:00:0{n}\"\nprofile = \"{profile}\"\nlabels = {labels}\n"
        );
    }
    config::parse(&(text + workloads), Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

fn conditions(all: &[(&str, Condition)]) -> BTreeMap<String, Condition> {
    all.iter().map(|(node, condition)| ((*node).to_owned(), *condition)).collect()
}

fn all_up() -> BTreeMap<String, Condition> {
    (1..=6).map(|n| (format!("n{n}"), Condition::Up)).collect()
}

fn nodes<'a>(schedule: &'a Schedule, workload: &str) -> Vec<&'a str> {
    schedule.placed.get(workload).into_iter().flatten().map(String::as_str).collect()
}

#[test]
fn by_name_by_label_and_by_count() {
    let config = config(
        r#"
[[workload]]
name = "one"
image = "a"
on = { node = "n4" }
[[workload]]
name = "each"
image = "a"
on = { label = "odd" }
[[workload]]
name = "some"
image = "a"
on = { profile = "plain", count = 2 }
[[workload]]
name = "here"
image = "a"
"#,
    );
    // A node that is named need not be up; one that is chosen must be.
    let none = schedule(&config, &BTreeMap::new(), &Placed::new());
    assert_eq!(nodes(&none, "one"), ["n4"]);
    assert_eq!(nodes(&none, "each"), ["n1", "n3", "n5"]);
    assert_eq!(none.short["some"], "it has 0 of 2 nodes: no other node is up");
    let all = schedule(&config, &all_up(), &none.placed);
    assert_eq!(nodes(&all, "some"), ["n1", "n2"], "n2 is idle, and of the others n1 is the first");
    assert!(all.short.is_empty() && !all.placed.contains_key("here"));
}

#[test]
fn what_runs_stays_until_its_node_is_lost_and_data_stays_for_ever() {
    let config = config(
        r#"
[[workload]]
name = "cattle"
image = "a"
on = { label = "all", count = 1 }
[[workload]]
name = "pet"
image = "a"
volumes = ["data:/data"]
on = { label = "all", count = 1 }
"#,
    );
    let current =
        schedule(&config, &conditions(&[("n3", Condition::Up), ("n6", Condition::Up)]), &Placed::new());
    assert_eq!(nodes(&current, "cattle"), ["n3"]);
    assert_eq!(nodes(&current, "pet"), ["n6"], "the only one that keeps volumes and is up");
    let mut later = all_up();
    for condition in [Condition::Up, Condition::Away] {
        later.extend([("n3".to_owned(), condition), ("n6".to_owned(), condition)]);
        assert_eq!(schedule(&config, &later, &current.placed), current, "{condition:?}");
    }
    later.extend([("n3".to_owned(), Condition::Lost), ("n6".to_owned(), Condition::Lost)]);
    let moved = schedule(&config, &later, &current.placed);
    assert_eq!((nodes(&moved, "cattle"), nodes(&moved, "pet")), (vec!["n1"], vec!["n6"]));
    assert_eq!(schedule(&config, &all_up(), &moved.placed), moved, "and it does not move back");
}

#[test]
fn a_port_of_a_node_is_published_once() {
    let config = config(
        r#"
[[workload]]
name = "first"
image = "a"
ports = ["80:80"]
on = { label = "odd" }
[[workload]]
name = "second"
image = "a"
ports = ["80:8080"]
on = { label = "odd", count = 1 }
[[workload]]
name = "third"
image = "a"
ports = ["80:80/udp"]
on = { label = "odd", count = 1 }
"#,
    );
    let schedule = schedule(&config, &all_up(), &Placed::new());
    assert_eq!(schedule.short["second"], "it has 0 of 1 nodes: port 80 of n1 is workload first's");
    assert_eq!(nodes(&schedule, "third"), ["n1"]);
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Up), Just(Condition::Away), Just(Condition::Lost)]
}

/// Group, count, whether it has a volume, published port.
type Drawn = (usize, Option<u32>, bool, Option<u16>);

fn text(workloads: &[Drawn]) -> String {
    let one = |(n, (group, count, pet, port)): (usize, &Drawn)| {
        let group =
            ["label = \"all\"", "label = \"odd\"", "profile = \"plain\"", "profile = \"keeping\""][*group];
        let count = count.map(|count| format!(", count = {count}")).unwrap_or_default();
        let volumes = if *pet && !group.contains("plain") { "volumes = [\"data:/data\"]\n" } else { "" };
        let ports = port.map(|port| format!("ports = [\"{port}:80\"]\n")).unwrap_or_default();
        format!("[[workload]]\nname = \"w{n}\"\nimage = \"a\"\n{volumes}{ports}on = {{ {group}{count} }}\n")
    };
    workloads.iter().enumerate().map(one).collect()
}

proptest! {
    #[test]
    fn assignments_hold_their_promises(
        drawn in prop::collection::vec((0..4usize, prop::option::of(1..5u32), any::<bool>(), prop::option::of(80..82u16)), 1..6),
        before in prop::collection::vec(condition(), 6),
        after in prop::collection::vec(condition(), 6),
    ) {
        let config = config(&text(&drawn));
        let named = |all: Vec<Condition>| -> BTreeMap<String, Condition> {
            all.into_iter().enumerate().map(|(n, condition)| (format!("n{}", n + 1), condition)).collect()
        };
        let (before, after) = (named(before), named(after));
        let first = schedule(&config, &before, &Placed::new());
        prop_assert_eq!(&schedule(&config, &before, &first.placed), &first, "nothing changed, and it moved");
        let second = schedule(&config, &after, &first.placed);
        for workload in &config.workloads {
            let on = workload.on.as_ref().unwrap();
            let (old, new) = (first.placed.get(&workload.name), second.placed.get(&workload.name));
            for name in new.into_iter().flatten() {
                let node = config.nodes.iter().find(|node| node.name == *name).unwrap();
                prop_assert!(on.group.has(node, node.profile.as_ref().unwrap()));
                prop_assert!(workload.volumes.is_empty() || config.keeps_volumes(node), "its data would be lost");
                let stayed = old.is_some_and(|old| old.contains(name));
                prop_assert!(on.count.is_none() || stayed || after[name] == Condition::Up, "moved to one that is down");
            }
            if let Some(count) = on.count {
                prop_assert!(new.map_or(0, BTreeSet::len) <= count as usize);
                for name in old.into_iter().flatten() {
                    let may_go = after[name] == Condition::Lost && workload.volumes.is_empty();
                    prop_assert!(may_go || new.is_some_and(|new| new.contains(name)), "a needless move");
                }
            }
            let full = new.map_or(0, BTreeSet::len) >= on.count.unwrap_or(0) as usize && new.is_some();
            prop_assert!(full || second.short.contains_key(&workload.name), "short, and nobody is told");
        }
        for node in config.nodes.iter() {
            let here = config.workloads.iter().filter(|w| second.placed.get(&w.name).is_some_and(|on| on.contains(&node.name)));
            let mut ports: Vec<u16> = here.flat_map(|w| w.ports.iter().map(|port| port.host)).collect();
            let published = ports.len();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(ports.len(), published, "a port is published twice");
        }
    }
}
