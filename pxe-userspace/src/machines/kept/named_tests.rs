use std::path::Path;

use super::*;
use crate::config;
use crate::config::facts::Hardware;

const RULES: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/16" }
    dhcp = { range = ["10.77.0.100", "10.77.0.199"], unknown = "ignore" }
    [[profile]]
    name = "web"
    image = "a"
    [[rule]]
    match = { mac = "52:54:01", port = "eth2" }
    name = "edge{n}"
    [[rule]]
    match = { mac = ["52:54", "06"] }
    name = "c{n:03}"
    profile = "web"
    labels = ["rack-1"]
"#;

const UUID: &str = "4c4c4544-0042-3010-8054-b7c04f4c3332";

fn config(text: &str) -> Config {
    config::parse(text, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn seen(last: u8, uuid: Option<&str>) -> Facts {
    Facts { uuid: uuid.map(str::to_owned), ..Facts::new(mac(last)) }
}

/// Names, and the configuration with them.
struct Room {
    names: Names,
    config: Config,
}

impl Room {
    fn open(dir: &Path, text: &str) -> Self {
        let names = Names::open(Store::open(&dir.join("db")).unwrap()).unwrap();
        let mut room = Self { names, config: config(text) };
        room.publish();
        room
    }

    fn publish(&mut self) {
        self.config = self.config.with_nodes(&self.names.nodes(&self.config.rules));
    }

    fn take(&mut self, seen: impl IntoIterator<Item = Facts>) -> bool {
        let changed = self.names.take(&self.config, seen.into_iter().collect()).unwrap();
        self.publish();
        changed
    }

    fn name(&self, last: u8) -> Option<&str> {
        self.config.node(mac(last)).map(|node| node.name.as_str())
    }
}

#[test]
fn names_are_given_in_turn_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path(), RULES);
    assert!(room.take((1..=50).map(|n| seen(n, None))));
    assert!(!room.take((1..=50).map(|n| seen(n, None))), "and written once");
    for round in 0..2 {
        drop(room);
        room = Room::open(dir.path(), RULES);
        room.take((1..=50).rev().map(|n| seen(n, None)));
        for n in 1..=50 {
            assert_eq!(room.name(n), Some(&*format!("c{n:03}")), "round {round}");
        }
    }
    let node = room.config.node(mac(7)).unwrap();
    assert_eq!((node.profile.as_deref(), &*node.labels), (Some("web"), &["rack-1".to_owned()][..]));
    assert_eq!(node.whose(), "node `c007`, taken by the rule at /c.toml:10");
    assert!(!room.take([Facts::new(Mac([2, 0, 0, 0, 0, 1]))]), "no rule takes it");

    // Another rule says something else of the same names, and none at all takes them away until it is back.
    let other = RULES.replace("rack-1", "rack-2");
    drop(room);
    let mut room = Room::open(dir.path(), &other);
    assert_eq!(room.config.node(mac(7)).unwrap().labels, ["rack-2"]);
    drop(room);
    room = Room::open(dir.path(), &RULES[..RULES.find("[[rule]]").unwrap()]);
    assert_eq!(room.name(7), None);
    drop(room);
    room = Room::open(dir.path(), RULES);
    assert_eq!(room.name(7), Some("c007"));
    room.names.forget(&["C007".to_owned()]).unwrap();
    room.publish();
    room.take([seen(99, None)]);
    assert_eq!((room.name(7), room.name(99)), (None, Some("c007")));
}

#[test]
fn another_network_card_keeps_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path(), RULES);
    room.take([seen(1, Some(UUID)), seen(2, None)]);
    room.take([seen(9, Some(UUID))]);
    assert_eq!((room.name(9), room.name(1)), (Some("c001"), None));
    // As firmware has it that writes the first fields the other way round.
    let turned = Uuid::from_bytes(Uuid::try_parse(UUID).unwrap().to_bytes_le()).to_string();
    room.take([seen(10, Some(&turned))]);
    assert_eq!(room.name(10), Some("c001"));
    // Its loader or system says no UUID: the card is enough.
    assert!(!room.take([seen(10, None)]));

    // The card goes on to another machine, which is no more the first one.
    let other = UUID.replace("4c4c", "5d5d");
    room.take([seen(10, Some(&other))]);
    assert_eq!(room.name(10), Some("c003"));
    room.take([seen(11, Some(UUID))]);
    assert_eq!((room.name(11), room.name(10)), (Some("c001"), Some("c003")));
}

/// The machine with this card, as it tells of itself.
fn told(last: u8, uuid: Option<&str>, serial: &str) -> Facts {
    let hardware = Hardware {
        vendor: Some("Dell Inc.".into()),
        serial: Some(serial.into()),
        memory: Some(64 << 30),
        ..Hardware::default()
    };
    Facts { hardware: Some(Arc::new(hardware)), ..seen(last, uuid) }
}

const DUD: &str = "03000200-0400-0500-0006-000700080009";

#[test]
fn a_serial_number_is_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path(), RULES);
    room.take([seen(1, Some(DUD)), seen(2, Some(DUD))]);
    room.take([told(1, Some(DUD), "ABC1234"), told(2, Some(DUD), "XYZ9876")]);
    assert_eq!((room.name(1), room.name(2)), (Some("c001"), Some("c002")), "nothing is new about them");

    // Another card: until it tells of itself it is a stranger, and its name for that time is free again.
    room.take([seen(9, Some(DUD))]);
    assert_eq!(room.name(9), Some("c003"));
    room.take([told(9, Some(DUD), "abc1234 ")]);
    assert_eq!((room.name(9), room.name(1)), (Some("c001"), None));
    room.take([seen(10, Some(DUD))]);
    assert_eq!(room.name(10), Some("c003"));

    // Its first card goes on in another machine, and the second one's into a third.
    room.take([told(1, Some(DUD), "NEW0001")]);
    assert_eq!((room.name(1), room.name(9)), (Some("c004"), Some("c001")));
    room.take([told(2, Some(DUD), "NEW0002")]);
    assert_eq!(room.name(2), Some("c005"));
    room.take([told(11, Some(DUD), "XYZ9876")]);
    assert_eq!(room.name(11), Some("c002"));

    // It outlives the daemon.
    drop(room);
    let mut room = Room::open(dir.path(), RULES);
    room.take([told(12, Some(UUID), "ABC1234")]);
    assert_eq!((room.name(12), room.name(9)), (Some("c001"), None), "before its UUID");
    for serial in ["To Be Filled By O.E.M.", "Default string", "0", "........", "123456789", ""] {
        let dir = tempfile::tempdir().unwrap();
        let mut room = Room::open(dir.path(), RULES);
        room.take([told(1, Some(DUD), serial), told(2, Some(DUD), serial)]);
        assert_eq!((room.name(1), room.name(2)), (Some("c001"), Some("c002")), "{serial}");
    }
}

#[test]
fn a_rule_goes_by_what_machines_tell() {
    let dir = tempfile::tempdir().unwrap();
    let rules = RULES.replace(
        "match = { mac = \"52:54:01\", port = \"eth2\" }",
        "match = { vendor = \"dell*\", memory = [\">=64G\", \"16G\"] }",
    );
    let mut room = Room::open(dir.path(), &rules[..rules.rfind("[[rule]]").unwrap()]);
    room.take([seen(1, None)]);
    assert_eq!(room.name(1), None, "nothing is known of it");
    room.take([told(1, None, "ABC1234")]);
    assert_eq!(room.name(1), Some("edge1"));
    let mut small = told(2, None, "ABC1235");
    small.hardware =
        Some(Arc::new(Hardware { memory: Some(32 << 30), ..Hardware::clone(&small.hardware.unwrap()) }));
    room.take([small]);
    assert_eq!(room.name(2), None);
}

#[test]
fn what_thousands_of_boards_share_is_nobodys_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path(), RULES);
    for (n, dud) in [
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "00000000-0000-0000-0000-000000000000",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "not a uuid",
    ]
    .iter()
    .enumerate()
    {
        let (one, two) = (2 * n as u8 + 1, 2 * n as u8 + 2);
        room.take([seen(one, Some(dud)), seen(two, Some(dud))]);
        assert_eq!(room.name(one), Some(&*format!("c{one:03}")), "{dud}");
        assert_eq!(room.name(two), Some(&*format!("c{two:03}")), "{dud}");
    }
}

#[test]
fn the_first_rule_that_fits_takes_a_machine_and_none_that_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{RULES}\n[[node]]\nname = \"c001\"\nmac = \"52:54:00:00:00:01\"\n");
    let mut room = Room::open(dir.path(), &text);
    let edge = |port: Option<&str>| Facts {
        port: port.map(str::to_owned),
        ..Facts::new(Mac([0x52, 0x54, 1, 0, 0, 1]))
    };
    room.take([seen(1, None), seen(2, None), edge(Some("eth2"))]);
    assert_eq!((room.name(1), room.name(2)), (Some("c001"), Some("c002")), "one name is the file's");
    assert_eq!(room.config.node(edge(None).mac).unwrap().name, "edge1");
    room.take([edge(None)]);
    assert_eq!(
        room.config.node(edge(None).mac).unwrap().name,
        "edge1",
        "where it was, as long as nothing else is known"
    );

    // Somebody declares another machine by a name that a rule gave: that one is named anew.
    let taken = format!("{text}\n[[node]]\nname = \"c002\"\nmac = \"02:00:00:00:00:09\"\n");
    drop(room);
    let mut room = Room::open(dir.path(), &taken);
    assert_eq!(room.name(2), None);
    room.take([seen(2, None)]);
    assert_eq!(room.name(2), Some("c003"));
}
