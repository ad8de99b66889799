use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::machines::rescue::Rescues;
use crate::machines::timeline::Timeline;
use crate::nodes::engine::Engine;
use crate::nodes::trust::Trust;
use crate::nodes::workload::fleet::Fleet;
use crate::provision::image::Images;
use crate::provision::planner::Planner;
use crate::provision::trials::Trials;
use crate::serve::files;
use crate::store::{self, Store};

fn config(rest: &str) -> Config {
    let text = format!(
        "[network]\nbridge = \"pxe0\"\naddress = \"10.77.0.1/24\"\n\
         [default]\nprofile = \"web\"\n[[profile]]\nname = \"web\"\nimage = \"a\"\n{rest}"
    );
    config::parse(&text, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

fn dhcp(mode: &str, lease: &str) -> Config {
    config(&format!(
        "[dhcp]\nmode = \"{mode}\"\nrange = [\"10.77.0.100\", \"10.77.0.199\"]\nlease-time = \"{lease}\"\n"
    ))
}

#[test]
fn what_is_said_to_wait_is_not_applied_and_the_rest_is() {
    let old = dhcp("authoritative", "1h");
    assert_eq!(decide(&old, old.clone()), (old.clone(), Reloaded::default()));

    let longer = dhcp("authoritative", "2h");
    let (taken_over, done) = decide(&old, longer.clone());
    assert_eq!((taken_over, done.changed), (longer, vec!["[dhcp] lease-time".to_owned()]));

    let mut moved = old.clone();
    moved.boot.assets = "/elsewhere".into();
    moved.api.listen = Some("127.0.0.1:1".parse().unwrap());
    let (taken_over, done) = decide(&old, moved);
    assert_eq!(taken_over, old);
    assert_eq!(
        (done.changed, done.needs_restart),
        (vec![], vec!["[api] listen".into(), "[boot] assets".into()])
    );
}

#[test]
fn what_was_judged_by_something_that_waits_waits_with_it() {
    let old = dhcp("authoritative", "1h");
    let proxy = config("[dhcp]\nmode = \"proxy\"\nlease-time = \"2h\"\n");
    let (taken_over, done) = decide(&old, proxy);
    assert_eq!(taken_over, dhcp("authoritative", "2h"), "it still has a range");
    assert_eq!(
        (done.changed.len(), done.needs_restart),
        (1, vec!["[dhcp] mode".into(), "[dhcp] range".into()])
    );

    let mut moved = dhcp("authoritative", "2h");
    moved.network.address = "10.78.0.1/24".parse().unwrap();
    moved.dhcp.range = Some(([10, 78, 0, 100].into(), [10, 78, 0, 199].into()));
    moved.profiles[0].cmdline.push('x');
    let (taken_over, done) = decide(&old, moved);
    assert_eq!(taken_over, old);
    assert_eq!(
        (done.changed, done.needs_restart.join(", ")),
        (vec![], "[network] address, [dhcp] range, [dhcp] lease-time, profiles".to_owned())
    );
}

/// The parts that use the configuration, with a state directory of their own.
struct Running {
    config: watch::Sender<Arc<Config>>,
    kept: Kept,
    names: Names,
    launches: Launches,
    catalog: Catalog,
    dhcp: dhcp::Dhcp,
    machines: Machines,
    wanted: Wanted,
    workloads: Workloads,
}

impl Running {
    async fn start(config: Config, dir: &Path) -> Self {
        let config = Arc::new(Config { state_dir: dir.to_owned(), ..config });
        let (sender, receiver) = watch::channel(config.clone());
        let store = Store::open(&dir.join(store::FILE)).unwrap();
        let engine = Engine::new(&Docker { socket: Some(dir.join("no-engine")) });
        let machines = Machines::new(&config);
        let timeline = Timeline::open(store.clone(), machines.clone()).unwrap();
        let images = Images::open(dir, dir, engine.clone()).unwrap();
        let wanted = Wanted::new(images.clone(), CancellationToken::new());
        let trials = Trials::open(store.clone()).unwrap();
        let planner =
            Planner::new(images.clone(), wanted.clone(), machines.clone(), timeline.clone(), trials);
        let of_boots = files::Kept {
            rescues: Rescues::default(),
            trust: Trust::open(dir, store.clone(), timeline.clone()).unwrap(),
            segment: None,
        };
        let catalog = Catalog::new(receiver.clone(), planner, images, machines.clone(), of_boots);
        let (kept, names) = (Kept::open(store.clone()).unwrap(), Names::open(store.clone()).unwrap());
        let (launches, _) = Launches::open(store.clone(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        let (dhcp, _) = dhcp::Dhcp::open(config, store.clone(), &machines, None).unwrap();
        let fleet = Fleet::open(dir, store.clone(), machines.clone(), timeline).unwrap();
        let workloads = Workloads::start(receiver, engine, fleet).await;
        let catalog = catalog.unwrap();
        Self { config: sender, kept, names, launches, catalog, dhcp, machines, wanted, workloads }
    }

    async fn take_over(&self, new: Config) -> Result<Reloaded, RootError> {
        self.parts().take_over(new).await
    }

    fn parts(&self) -> Parts<'_> {
        let Self { config, kept, names, launches, catalog, dhcp, machines, wanted, workloads } = self;
        Parts { config, kept, names, launches, catalog, dhcp, machines, wanted, workloads }
    }

    /// As [`Appliance::order`] does.
    async fn order(&self, order: Order) {
        let config = self.config.borrow().clone();
        self.kept.order(&config, order).unwrap();
        self.parts().publish(config.with_nodes(&self.kept.all())).await;
    }

    /// Checks that every part uses this configuration, and not a copy.
    fn all_go_by(&self, config: &Arc<Config>) {
        for (part, its) in [
            ("owner", self.config.borrow().clone()),
            ("catalog", self.catalog.config()),
            ("dhcp", self.dhcp.config()),
            ("workloads", self.workloads.config()),
        ] {
            assert!(Arc::ptr_eq(&its, config), "{part}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_go_by_one_configuration_and_a_refused_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dhcp("authoritative", "1h"), dir.path()).await;
    let first = running.config.borrow().clone();
    running.all_go_by(&first);

    let mut new = dhcp("authoritative", "2h");
    new.state_dir = first.state_dir.clone();
    let done = running.take_over(new.clone()).await.unwrap();
    assert_eq!(done.changed, ["[dhcp] lease-time"]);
    let second = running.config.borrow().clone();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(*second, new);
    running.all_go_by(&second);

    let missing = Config { files_root: Some(dir.path().join("missing")), nodes: Default::default(), ..new };
    let error = running.take_over(missing).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    running.all_go_by(&second);
    running.workloads.stop().await;
}

/// A machine that is kept is one of the configuration's for all parts, and stays through reloads, also where the file
/// takes its name.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_are_kept_go_with_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dhcp("authoritative", "1h"), dir.path()).await;
    let mac = pxe_common::Mac([2, 0, 0, 0, 0, 7]);
    let node = config::Node { address: Some([10, 77, 0, 7].into()), ..config::Node::new("n7", mac) };
    running.order(Order::Add(Box::new(node))).await;
    let present = running.config.borrow().clone();
    running.all_go_by(&present);
    assert_eq!(present.node(mac).map(|node| node.name.as_str()), Some("n7"));
    assert_eq!(running.machines.get(mac).and_then(|machine| machine.name).as_deref(), Some("n7"));

    let with = |node: &str| {
        let base = dhcp("authoritative", "1h");
        let range = "[dhcp]\nrange = [\"10.77.0.100\", \"10.77.0.199\"]\n";
        let other = config(&format!("{range}[[node]]\nname = \"n7\"\nmac = \"{node}\"\n"));
        Config { state_dir: present.state_dir.clone(), nodes: other.nodes, ..base }
    };
    let done = running.take_over(with("02:00:00:00:00:08")).await.unwrap();
    assert_eq!(done.changed, ["nodes"]);
    let machine = running.machines.get(mac).unwrap();
    assert_eq!((machine.name, machine.reserved), (None, None));
    assert!(machine.problem.unwrap().contains("its name is that of node `n7`, /c.toml:"));
    assert_eq!(running.kept.all().len(), 1, "and nothing of it is lost");

    let gone = Config { nodes: Default::default(), ..with("02:00:00:00:00:08") };
    running.take_over(gone).await.unwrap();
    assert_eq!(running.machines.get(mac).unwrap().reserved, Some([10, 77, 0, 7].into()));
    let last = running.config.borrow().clone();
    running.all_go_by(&last);
    running.workloads.stop().await;
}
