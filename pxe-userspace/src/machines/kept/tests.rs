use std::path::Path;

use proptest::prelude::*;
use pxe_common::Mac;

use super::*;
use crate::config::{self, Origin};
use crate::store::testing::Brake;
use crate::store::{self, sqlite};

const CONFIG: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/16" }
    dhcp = { range = ["10.77.0.100", "10.77.0.199"] }
    default = { profile = "web" }
    [[profile]]
    name = "web"
    image = "a"
    [[profile]]
    name = "db"
    image = "b"
    [[node]]
    name = "filed"
    mac = "52:54:00:77:00:01"
    address = "10.77.0.11"
"#;

fn config() -> Config {
    config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

fn node(name: &str, last: u8) -> Node {
    Node::new(name, Mac([2, 0, 0, 0, 0, last]))
}

/// The machines, and the configuration with them.
struct Room {
    kept: Kept,
    config: Config,
}

impl Room {
    fn open(dir: &Path) -> Self {
        let kept = Kept::open(Store::open(&dir.join("db")).unwrap()).unwrap();
        let config = config().with_nodes(&kept.all());
        Self { kept, config }
    }

    fn order(&mut self, order: Order) -> Result<Done, OrderError> {
        let done = self.kept.order(&self.config, order)?;
        self.config = self.config.with_nodes(&self.kept.all());
        Ok(done)
    }

    fn add(&mut self, node: Node) -> Result<Done, OrderError> {
        self.order(Order::Add(Box::new(node)))
    }

    fn import(&mut self, table: &str) -> Result<Done, OrderError> {
        self.order(Order::Import(table.into()))
    }

    fn set(&mut self, selector: &str, patch: Patch) -> Result<Done, OrderError> {
        self.order(Order::Set(selector.parse().unwrap(), Box::new(patch)))
    }

    fn names(&self) -> Vec<String> {
        self.kept.all().iter().map(|node| node.name.clone()).collect()
    }

    /// What an order is refused with. Nothing has changed.
    fn refused(&mut self, order: Order) -> String {
        let before = self.kept.all();
        let error = self.order(order).unwrap_err().to_string();
        assert_eq!(self.kept.all(), before);
        error
    }
}

#[test]
fn what_is_kept_is_there_after_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path());
    let whole = Node {
        address: Some([10, 77, 0, 12].into()),
        profile: Some("db".into()),
        rescue: Some(config::Rescue::Ssh),
        memory: Some(4 << 30),
        labels: vec!["gpu".into()],
        keys: [("rack".to_owned(), "a1, upper".to_owned())].into(),
        ..node("N1", 1)
    };
    room.add(whole.clone()).unwrap();
    room.add(node("n2", 2)).unwrap();
    room.order(Order::Remove("n2".parse().unwrap())).unwrap();
    drop(room);
    let room = Room::open(dir.path());
    assert_eq!(room.kept.all(), [Arc::new(whole.clone())]);
    assert_eq!(room.config.node(whole.mac), Some(&whole));
    assert_eq!(room.config.profile_of(whole.mac).unwrap().name, "db");
}

#[test]
fn a_disk_that_takes_nothing_changes_nothing() {
    let (dir, brake) = (tempfile::tempdir().unwrap(), Brake::default());
    let store = store::Store::on(brake.on(sqlite::open(&dir.path().join("db")).unwrap()));
    let mut room = Room { kept: Kept::open(store).unwrap(), config: config() };
    brake.fail(true);
    let error = room.refused(Order::Add(Box::new(node("n1", 1))));
    assert_eq!(error, "writing machines to the database: the disk is full");
    brake.fail(false);
    room.add(node("n1", 1)).unwrap();
}

#[test]
fn conflicts_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path());
    room.add(Node { address: Some([10, 77, 0, 12].into()), ..node("n1", 1) }).unwrap();
    let set = |selector: &str, patch: Patch| Order::Set(selector.parse().unwrap(), Box::new(patch));
    let add = |node| Order::Add(Box::new(node));
    room.add(node("n2", 2)).unwrap();
    for (order, words) in [
        (add(node("N1", 9)), "its name is that of node `n1`, kept in the database; `bridgehead node set n1`"),
        (add(node("n9", 1)), "its MAC is that of node `n1`"),
        (
            add(Node { address: Some([10, 77, 0, 12].into()), ..node("n9", 9) }),
            "its address is that of node `n1`",
        ),
        (add(node("FILED", 9)), "its name is node `filed`'s, of the file; changed there: /c.toml:"),
        (
            add(Node { mac: room.config.nodes[0].mac, ..node("n9", 9) }),
            "its MAC is node `filed`'s, of the file",
        ),
        (
            add(Node { address: Some([10, 77, 0, 11].into()), ..node("n9", 9) }),
            "its address is node `filed`'s",
        ),
        (set("filed", Patch::default()), "filed is of the file; changed there: /c.toml:"),
        (set("all", Patch::default()), "filed is of the file; changed there: /c.toml:"),
        (set("n2", Patch { name: Some("n1".into()), ..Patch::default() }), "its name is that of node `n1`"),
        (
            set("n2", Patch { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..Patch::default() }),
            "its MAC is that of node `n1`",
        ),
        (set("n1,n2", Patch { mac: Some(Mac([2; 6])), ..Patch::default() }), "and 2 are meant"),
        (set("n[1-3]", Patch::default()), "no machine is meant by `n3`"),
        (Order::Remove("filed".parse().unwrap()), "changed there: /c.toml:"),
        (Order::Adopt(Mac([2, 0, 0, 0, 0, 1]), None), "is that of node `n1`, kept in the database already"),
        (Order::Adopt(Mac([2, 0, 0, 0, 0, 9]), Some("n1".into())), "its name is that of node `n1`"),
    ] {
        let error = room.refused(order.clone());
        assert!(error.contains(words), "{order:?}: {error}");
    }
    // What one gives up another may take, in one order.
    room.set("n1", Patch { address: Some(None), ..Patch::default() }).unwrap();
    room.set("n2", Patch { address: Some(Some([10, 77, 0, 12].into())), ..Patch::default() }).unwrap();
    room.order(Order::Adopt(Mac([2, 0, 0, 0, 0, 9]), None)).unwrap();
    assert_eq!(room.names(), ["m020000000009", "n1", "n2"]);
}

#[test]
fn a_patch_changes_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path());
    room.add(Node { labels: vec!["a".into(), "b".into()], profile: Some("db".into()), ..node("n1", 1) })
        .unwrap();
    let patch: Patch = serde_json::from_str(
        r#"{"profile": null, "add-labels": ["c", "a"], "remove-labels": ["b"], "keys": {"rack": "1", "slot": null}}"#,
    )
    .unwrap();
    let done = room.set("n1", patch).unwrap();
    assert_eq!((done.before.len(), done.after.len(), done.meant), (1, 1, 1));
    let after = &room.kept.all()[0];
    assert_eq!((after.profile.as_ref(), after.labels.join(" ").as_str()), (None, "a c"));
    assert_eq!(after.keys, [("rack".to_owned(), "1".to_owned())].into());
    let again = room.set("n1", Patch { add_labels: vec!["a".into()], ..Patch::default() }).unwrap();
    assert_eq!(again, Done { meant: 1, ..Done::default() }, "it was so already");
    assert!(serde_json::from_str::<Patch>(r#"{"adress": null}"#).is_err());
}

#[test]
fn all_wrong_lines_of_a_table_are_named_and_nothing_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path());
    room.add(node("n1", 1)).unwrap();
    let table = "name,mac,address,profile,memory,rescue,labels,rack\r\n\
        n1,02:00:00:00:00:01,,,,,,a1\r\n\
        n2,02:00:00:00:00,,,,,,\r\n\
        n3,02:00:00:00:00:03,10.9.0.1,wbe,4,x,\"a,b\",\r\n\
        \r\n\
        n4,02:00:00:00:00:01,,,,,,\r\n\
        N1,02:00:00:00:00:05,,,,,,\r\n\
        filed,02:00:00:00:00:06,,,,,,\r\n\
        n7\r\n\
        n8,02:00:00:00:00:08,,,,,,,extra\r\n\
        \"multi\nline\",02:00:00:00:00:09,,,,,,\r\n\
        n10,02:00:00:00:00:0a,10.77.9.9\r\n";
    let error = room.refused(Order::Import(table.into()));
    // What is wrong with the form is told before what is wrong with the machines.
    for line in [
        "line 3: `02:00:00:00:00` is no MAC address",
        "line 4: `x` is no rescue: ssh, console or off",
        "line 4: `4` is no size",
        "line 9: it has no mac",
        "line 10: it has 9 cells, and there are 8 columns",
    ] {
        assert!(error.contains(line), "{line}: {error}");
    }
    assert!(error.starts_with("4 lines are wrong, and nothing was imported:\n"), "{error}");

    let table = "name,mac,address,profile,labels,rack\n\
        n1,02:00:00:00:00:01,,,,a1\n\
        n3,02:00:00:00:00:03,10.9.0.1,wbe,a;b,\n\
        n4,02:00:00:00:00:01,,,,\n\
        N1,02:00:00:00:00:05,,,,\n\
        filed,02:00:00:00:00:06,,,,\n\
        n8,02:00:00:00:00:08,10.77.9.8,,,\n\
        n9,02:00:00:00:00:09,10.77.9.8,,,\n";
    let error = room.refused(Order::Import(table.into()));
    for line in [
        "line 3: 10.9.0.1 is outside 10.77.0.0/16",
        "line 3: no profile is called `wbe`; there is web, db",
        "line 3: `a;b` can't be a label",
        "line 5: `N1` is on line 2, too",
        "line 6: its name is node `filed`'s, of the file; changed there: /c.toml:",
        "line 7: its address is that of node `n9`",
        "line 8: its address is that of node `n8`",
    ] {
        assert!(error.contains(line), "{line}: {error}");
    }
    for (table, words) in [
        ("", "there is no column name"),
        ("name;mac\nn1;x", "`name;mac` can't be a column's name"),
        ("name,mac,mac\n", "there are two columns mac"),
        ("name,mac,Rack\n", "`Rack` can't be a column's name"),
        (
            "name,mac\nn2,02:00:00:00:00:02\nn\u{1b}3,02:00:00:00:00:03",
            "line 3: `n^[3` can't be a node's name",
        ),
    ] {
        let error = room.refused(Order::Import(table.into()));
        assert!(error.contains(words), "{table:?}: {error}");
    }
    let error = room.refused(Order::Import(b"name,mac\n\xff\xfe,02:00:00:00:00:02\n".to_vec()));
    assert!(error.contains("line 2: it is no UTF-8"), "{error}");

    let done = room.import("\u{feff}mac,name\n02-00-00-00-00-02,n2\n02:00:00:00:00:01,n1\n").unwrap();
    assert_eq!((done.before.len(), done.after.len(), done.meant), (0, 1, 2));
    // Two machines change places in one table.
    room.import("name,mac\nn1,02:00:00:00:00:02\nn2,02:00:00:00:00:01\n").unwrap();
    assert_eq!(room.config.nodes.by_name("n1").unwrap().mac, Mac([2, 0, 0, 0, 0, 2]));
}

/// What the file leaves no room for can be seen, renamed and removed.
#[test]
fn what_the_file_shadows_can_be_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut room = Room::open(dir.path());
    room.add(node("n1", 1)).unwrap();
    let text = format!("{CONFIG}\n[[node]]\nname = \"n1\"\nmac = \"02:00:00:00:00:09\"\n");
    let config = config::parse(&text, Path::new("/c.toml")).unwrap();
    room.config = config.with_nodes(&room.kept.all());
    assert_eq!(room.config.nodes.shadowed().len(), 1);
    assert_eq!(room.config.node(Mac([2, 0, 0, 0, 0, 1])), None);
    let error = room.refused(Order::Set(
        "n1".parse().unwrap(),
        Box::new(Patch { add_labels: vec!["a".into()], ..Patch::default() }),
    ));
    assert!(error.contains("its name is node `n1`'s, of the file; changed there: /c.toml:17"), "{error}");
    room.set("n1", Patch { name: Some("n2".into()), ..Patch::default() }).unwrap();
    assert!(room.config.nodes.shadowed().is_empty());
    assert_eq!(room.config.node(Mac([2, 0, 0, 0, 0, 1])).unwrap().name, "n2");
    assert_eq!(
        room.config.nodes.by_name("n1").map(|node| matches!(node.origin, Origin::File(_))),
        Some(true)
    );
}

fn any_node() -> impl Strategy<Value = Node> {
    let text = || "[ -~äß€]{0,30}".prop_map(|text| text.trim().to_owned());
    (
        (
            any::<u16>(),
            proptest::option::of(any::<u16>()),
            proptest::option::of(prop_oneof![Just("web"), Just("db")]),
        ),
        (proptest::option::of(0..3usize), proptest::option::of(1..1u64 << 40)),
        proptest::collection::btree_set("[A-Za-z0-9][A-Za-z0-9._/-]{0,8}", 0..4),
        proptest::collection::btree_map("[a-z][a-z0-9-]{0,6}x", text(), 0..4),
    )
        .prop_map(|((n, address, profile), (rescue, memory), labels, keys)| {
            let [high, low] = n.to_be_bytes();
            let rescues = [config::Rescue::Ssh, config::Rescue::Console, config::Rescue::Off];
            Node {
                // Outside the file's, and no two alike.
                address: address.map(|_| [10, 77, 4 + high % 200, low].into()),
                profile: profile.map(str::to_owned),
                rescue: rescue.map(|rescue| rescues[rescue]),
                memory: memory.map(|memory| memory << 10),
                labels: labels.into_iter().collect(),
                keys: keys.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
                ..Node::new(format!("n{n}"), Mac([6, 0, 0, 0, high, low]))
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// What is exported is imported again as it was.
    #[test]
    fn a_table_brings_back_what_it_was_made_of(drawn in proptest::collection::vec(any_node(), 0..20)) {
        let mut nodes: BTreeMap<(u8, u8), Node> = BTreeMap::new();
        for node in drawn {
            nodes.insert((node.mac.0[4] % 200, node.mac.0[5]), node);
        }
        let nodes: Vec<Arc<Node>> = nodes.into_values().map(Arc::new).collect();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut room = Room::open(first.path());
        for node in &nodes {
            room.add(Node::clone(node)).unwrap();
        }
        let table = table::write(&room.kept.all());
        let mut other = Room::open(second.path());
        other.import(&table).unwrap();
        prop_assert_eq!(other.kept.all(), room.kept.all());
        let done = room.import(&table).unwrap();
        prop_assert_eq!(done, Done { meant: nodes.len(), ..Done::default() });
    }

    /// Whatever is sent as a table, it is read or refused with lines, and nothing of it can be seen half.
    #[test]
    fn any_bytes_are_a_table_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
        let head: &[u8] = if head { b"name,mac,rack\n" } else { b"" };
        let bytes = [head, &bytes].concat();
        if let Err(wrong) = table::read(&bytes) {
            prop_assert!(!wrong.is_empty() && wrong.iter().all(|wrong| wrong.line > 0));
        }
    }
}
