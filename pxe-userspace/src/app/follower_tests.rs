//! A storm of boots while the disk is blocked: every part that depends on a boot's beginning or end is notified.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api;
use crate::config;
use crate::machines::timeline::{Happened, Timeline, Who};
use crate::machines::{Hold, Machines};
use crate::provision::boot::{KernelFacts, Part};
use crate::store::testing::Brake;
use crate::store::{Store, sqlite};

const MACHINES: u16 = 1000;
/// The machines with an open connection, a session and a password, which take seconds to create.
const CONNECTED: u16 = 40;
const REPORTERS: u16 = 4;

const CONFIG: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/24" }
    dhcp = { mode = "off" }
"#;

fn mac(n: u16) -> Mac {
    let [a, b] = n.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

fn address(n: u16) -> Ipv4Addr {
    let [a, b] = n.to_be_bytes();
    Ipv4Addr::new(127, 1, a, b)
}

fn kernel(name: &str) -> KernelFacts {
    let part = |what: &str| Part { sha256: format!("{name}-{what}"), len: 1, unpacked: 1 };
    KernelFacts { name: name.into(), kernel: part("kernel"), stage1: part("stage1"), two_stages: true }
}

struct Appliance {
    timeline: Timeline,
    machines: Machines,
    store: Store,
    brake: Brake,
    boots: Boots,
    dir: tempfile::TempDir,
}

impl Appliance {
    fn start() -> Self {
        let (dir, brake, machines) = (tempfile::tempdir().unwrap(), Brake::default(), Machines::default());
        let store = Store::on(brake.on(sqlite::open(&dir.path().join("db")).unwrap()));
        let timeline = Timeline::open(store.clone(), machines.clone()).unwrap();
        let config = config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
        let boots = Boots {
            connections: Connections::of_nodes(),
            holds: Holds::open(store.clone(), machines.clone()).unwrap(),
            rescues: Rescues::default(),
            trials: Trials::open(store.clone()).unwrap(),
            trust: Trust::open(dir.path(), store.clone(), timeline.clone()).unwrap(),
            dhcp: Dhcp::open(config.into(), store.clone(), &machines, None).unwrap().0,
            launches: Launches::open(store.clone(), Timestamp::UNIX_EPOCH).unwrap().0,
        };
        timeline.call(boots.clone());
        Self { timeline, machines, store, brake, boots, dir }
    }

    /// The machine ran a boot that had been held once, and should try another kernel.
    fn ran(&self, n: u16) {
        let Boots { holds, trials, .. } = &self.boots;
        self.machines.bound(mac(n), address(n));
        holds.hold(mac(n), Hold::Once).unwrap();
        assert!(holds.stopped(mac(n)));
        trials.asked(mac(n), &kernel("old"));
        trials.came_up(mac(n));
    }

    /// It also had a session. Returns its rescue's document.
    fn had_session(&self, n: u16, request: &[u8]) -> String {
        let Boots { rescues, trust, .. } = &self.boots;
        let (mac, address) = (mac(n), address(n));
        let token = trust.issue(mac, address, None).unwrap();
        trust.trade(mac, address, &token, request).unwrap();
        rescues.document(mac, Timestamp::UNIX_EPOCH)
    }

    /// It boots again, with another kernel. The loader's requests are reported as the catalogue reports them.
    fn boots(&self, n: u16) {
        let mac = mac(n);
        let record = |stage| self.timeline.record(Happened::new(Who::Mac(mac), stage));
        [Stage::Discover, Stage::Offer, Stage::Request, Stage::Ack, Stage::Loader]
            .into_iter()
            .for_each(record);
        assert_eq!(self.boots.trials.asked(mac, &kernel("new")), None);
        record(Stage::Config);
        self.boots.trials.fetches(mac, "new-kernel");
        [Stage::Kernel, Stage::Initrd, Stage::Stage1, Stage::Image, Stage::Workload]
            .into_iter()
            .for_each(record);
    }

    fn request() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_while_the_disk_stands_still_misses_nothing() {
    let appliance = std::sync::Arc::new(Appliance::start());
    let (connections, stop) = (appliance.boots.connections.clone(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(api::serve(listener, axum::Router::new(), connections, stop.clone()));
    let mut open = Vec::new();
    for n in 0..CONNECTED {
        let mut connection = connect(address(n), server).await;
        // It is answered, so that the appliance counts it as an open connection.
        tokio::io::AsyncWriteExt::write_all(&mut connection, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        assert!(connection.read(&mut [0; 4096]).await.unwrap() > 0);
        open.push(connection);
    }
    let request = Appliance::request();
    let rescues: Vec<String> = tokio::task::block_in_place(|| {
        (0..MACHINES).for_each(|n| appliance.ran(n));
        (0..CONNECTED).map(|n| appliance.had_session(n, &request)).collect()
    });

    // A mere observer, as the daemon itself once was.
    let mut watcher = appliance.timeline.subscribe();
    appliance.brake.hold();
    let (done, reported) = mpsc::channel();
    for reporter in 0..REPORTERS {
        let (appliance, done) = (appliance.clone(), done.clone());
        thread::spawn(move || {
            (reporter..MACHINES).step_by(REPORTERS.into()).for_each(|n| appliance.boots(n));
            done.send(()).unwrap();
        });
    }
    // None of them waits for the disk, which is blocked until they are all done.
    tokio::task::block_in_place(|| (0..REPORTERS).for_each(|_| reported.recv().unwrap()));
    assert!(matches!(watcher.recv().await, Err(RecvError::Lagged(_))), "who watched has missed events");

    let Boots { trials, trust, .. } = &appliance.boots;
    for n in 0..MACHINES {
        assert_eq!(appliance.machines.get(mac(n)).unwrap().hold, None, "machine {n}: held once");
        // It reached stage 1 with this kernel: later boots without any report are not the kernel's fault.
        for _ in 0..4 {
            assert_eq!(trials.asked(mac(n), &kernel("new")), None, "machine {n}");
            trials.fetches(mac(n), "new-kernel");
        }
    }
    for (n, (mut connection, rescue)) in open.into_iter().zip(&rescues).enumerate() {
        let mac = mac(n as u16);
        assert_ne!(appliance.boots.rescues.document(mac, Timestamp::UNIX_EPOCH), *rescue, "machine {n}");
        let error = connection.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "machine {n}");
    }
    appliance.brake.release();
    tokio::task::block_in_place(|| {
        for n in 0..CONNECTED {
            trust.issue(mac(n), address(n), None).unwrap_or_else(|e| panic!("machine {n}: {e}"));
        }
        appliance.store.flush();
    });
    stop.cancel();

    // The next daemon knows the same.
    let store = Store::open(&appliance.dir.path().join("db")).unwrap();
    let machines = Machines::default();
    let _timeline = Timeline::open(store.clone(), machines.clone()).unwrap();
    let _holds = Holds::open(store, machines.clone()).unwrap();
    for n in 0..MACHINES {
        let machine = machines.get(mac(n)).unwrap();
        assert_eq!((machine.stage, machine.hold), (Some(Stage::Workload), None), "machine {n}");
    }
}

#[test]
fn a_late_event_is_nobodys_beginning() {
    let appliance = Appliance::start();
    let request = Appliance::request();
    appliance.ran(1);
    appliance.had_session(1, &request);
    let record = |stage| appliance.timeline.record(Happened::new(Who::Mac(mac(1)), stage));
    [Stage::Stage1, Stage::Workload].into_iter().for_each(record);
    let late = Happened::new(Who::Mac(mac(1)), Stage::Initrd);
    appliance.timeline.record(Happened { began_ago: Some(Duration::from_secs(60)), ..late });
    assert_eq!(appliance.machines.get(mac(1)).unwrap().hold, Some(Hold::Reached), "its boot goes on");
    assert!(appliance.boots.trust.issue(mac(1), address(1), None).is_err());
}
