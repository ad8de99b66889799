//! Listeners on the loopback with a fake catalogue. The client is `curl`, or a raw socket where `curl` is
//! too well-behaved.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use pxe_common::Mac;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::documents::{BridgeStatus, PortStatus, Tier};
use super::people::Socket;
use super::*;
use crate::config;
use crate::machines::kept::Kept;
use crate::machines::timeline::{Event, Happened, Stage, Who};
use crate::operate::access::{Logins, Tokens};
use crate::operate::audit::Audit;
use crate::provision::blob::Blob;
use crate::serve::files::{OpenError, Opened};
use crate::store::Store;

pub(crate) const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);

/// A running pair of listeners, stopped when dropped.
pub(crate) struct Daemon {
    /// The API's socket.
    pub(crate) api: &'static Path,
    /// And where it answers by TCP.
    pub(super) api_by_tcp: SocketAddr,
    pub(super) access: Access,
    pub(super) live: page::Live,
    pub(super) boot: SocketAddr,
    connections: Connections,
    pub(crate) timeline: Timeline,
    pub(crate) machines: Machines,
    pub(super) tls: SocketAddr,
    pub(super) trust: Trust,
    pub(super) fleet: Fleet,
    pub(super) launches: Launches,
    stop: CancellationToken,
    state: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Daemon {
    /// Must be called in a runtime that keeps running while clients block.
    pub(crate) async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let machines = Machines::default();
        // curl's connections come from there.
        machines.bound(MAC, Ipv4Addr::LOCALHOST);
        let store = Store::open(&state.path().join("db")).unwrap();
        let timeline = Timeline::open(store.clone(), machines.clone()).unwrap();
        let storage = Storage::new(state.path(), store.clone());
        let consoles = Consoles::open(&state.path().join("consoles")).unwrap();
        let logs = Consoles::open(&state.path().join("logs")).unwrap();
        let holds = Holds::open(store.clone(), machines.clone()).unwrap();
        let trust = Trust::open(state.path(), store.clone(), timeline.clone()).unwrap();
        let fleet = Fleet::open(state.path(), store.clone(), machines.clone(), timeline.clone()).unwrap();
        let boot_state = BootState {
            files: Arc::new(Catalogue),
            machines: machines.clone(),
            timeline: timeline.clone(),
            consoles,
            logs,
            holds,
            rescues: Rescues::default(),
            storage,
            carousel: Carousel::new(config::Carousel::default(), Ipv4Addr::LOCALHOST, 1500),
            fleet: fleet.clone(),
            http_sent: Arc::default(),
            trust: trust.clone(),
            rates: Rates::default(),
            facts: Known::open(store.clone(), machines.clone()).unwrap(),
            fact_rates: Rates::of_facts(),
            is_something: Arc::new(|mac| mac != MAC),
        };
        let stop = CancellationToken::new();
        let connections = Connections::of_nodes();
        let people = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let api_by_tcp = people.local_addr().unwrap();
        let audit = Audit::open(store.clone()).unwrap();
        let hosts = Hosts { addresses: Vec::new(), names: vec!["boot.example.org".into()] };
        let tokens = Tokens::open(store.clone()).unwrap();
        let logins = Logins::open(store.clone()).unwrap();
        let access = Access::new(tokens, logins, audit, hosts, vec![format!("http://{api_by_tcp}")]);
        let launches = super::launches_tests::launches(&store, &timeline, &machines, &stop);
        let fake = Fake::new(store.clone(), machines.clone(), launches.clone());
        let api_state = ApiState {
            boot: boot_state.clone(),
            launches: launches.clone(),
            appliance: Arc::new(fake),
            images: Arc::new(FakeImages(state.path().to_owned())),
            access: access.clone(),
            powers: crate::operate::power::testing::powers(state.path(), store.clone()),
            live: page::Live::new(machines.clone()),
        };
        // Every client keeps it for as long as the test runs.
        let api: &'static Path = Box::leak(state.path().join("api.sock").into_boxed_path());
        let live = api_state.live.clone();
        let router = api_router(api_state.clone());
        tokio::spawn(page::watch(api_state, stop.clone()));
        tokio::spawn(Socket::open(api).unwrap().serve(router.clone(), stop.clone()));
        tokio::spawn(people::serve(people, None, router, stop.clone()));
        let boot = listen(boot_router(boot_state.clone()), connections.clone(), &stop).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tls = listener.local_addr().unwrap();
        let config = trust.authority().server(Ipv4Addr::LOCALHOST).unwrap();
        tokio::spawn(serve_tls(
            listener,
            config,
            boot_router(boot_state),
            Connections::of_nodes(),
            stop.clone(),
        ));
        Self {
            api,
            api_by_tcp,
            access,
            live,
            boot,
            connections,
            timeline,
            machines,
            tls,
            trust,
            fleet,
            launches,
            stop,
            state,
        }
    }
}

impl Daemon {
    /// A path in its state directory.
    pub(super) fn file(&self, name: &str) -> std::path::PathBuf {
        self.state.path().join(name)
    }
}

async fn listen(router: Router, connections: Connections, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, router, connections, stop.clone()));
    address
}

struct Catalogue;

/// Larger than a piece, and no multiple of one.
fn kernel() -> Vec<u8> {
    (0..1_000_003u32).map(|i| (i % 251) as u8).collect()
}

impl Files for Catalogue {
    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError> {
        assert_eq!(client, Ipv4Addr::LOCALHOST);
        let (bytes, stage) = match path {
            "ten" => (b"0123456789".to_vec(), None),
            "empty" => (Vec::new(), None),
            "boot/kernel" => (kernel(), Some(Stage::Kernel)),
            "boot/initrd" => (vec![0; 32 << 20], Some(Stage::Initrd)),
            "grub/grub.cfg" => (b"boot".to_vec(), Some(Stage::Config)),
            "a b/ü" => (b"x".to_vec(), None),
            "dir" => return Err(OpenError::Directory),
            path if path.starts_with("..") => return Err(OpenError::Outside),
            _ => return Err(OpenError::NotFound),
        };
        Ok(Opened { blob: Blob::from_bytes(bytes), stage })
    }
}

/// Machines that are kept, with the configuration that they are kept beside.
struct Fake {
    kept: Kept,
    machines: Machines,
    config: Mutex<config::Config>,
    launches: Launches,
}

impl Fake {
    fn new(store: Store, machines: Machines, launches: Launches) -> Self {
        let config = config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
        Self { kept: Kept::open(store).unwrap(), machines, config: Mutex::new(config), launches }
    }
}

pub(super) const CONFIG: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/24" }
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
    mac = "52:54:00:77:00:f1"
    address = "10.77.0.11"
"#;

/// Keeps what is sent in this directory.
struct FakeImages(PathBuf);

impl Appliance for Fake {
    fn kept(&self) -> Vec<Arc<Node>> {
        self.kept.all()
    }
    fn node(&self, mac: Mac) -> Option<Arc<Node>> {
        self.config.lock().unwrap().nodes.by_mac(mac).cloned()
    }
    fn order(&self, order: Order) -> BoxFuture<'_, Result<Done, OrderError>> {
        let mut config = self.config.lock().unwrap();
        let done = self.kept.order(&config, order);
        *config = config.with_nodes(&self.kept.all());
        self.machines.declare(&config);
        async { done }.boxed()
    }
    fn status(&self) -> Status {
        Status {
            version: "1.2.3".into(),
            started: Timestamp::UNIX_EPOCH,
            bridge: BridgeStatus { name: "pxe0".into(), address: "10.77.0.1/24".parse().unwrap(), mac: MAC },
            pool: None,
            ports: vec![PortStatus {
                name: "eth1".into(),
                tier: Tier::Tc,
                reason: Some("no \"XDP\"".into()),
            }],
            boots: None,
            pacing: Default::default(),
            fast_path: None,
            alerts: Vec::new(),
            counters: [("dhcp-offers".to_owned(), 7)].into(),
        }
    }
    fn measures(&self) -> Measures {
        super::metrics::tests::measures()
    }
    fn leases(&self) -> Result<Vec<Lease>, Failure> {
        Err(Failure::new(Kind::Unavailable, "the database is busy", "try again"))
    }
    fn files(&self) -> Result<Vec<FileEntry>, Failure> {
        Ok(Vec::new())
    }
    fn profiles(&self) -> Vec<Profile> {
        Vec::new()
    }
    fn workloads(&self) -> Vec<Workload> {
        Vec::new()
    }
    fn trace(&self, wanted: Wanted) -> Result<mpsc::Receiver<Bytes>, TraceError> {
        if wanted.follow {
            return Err(TraceError::TooMany);
        }
        let (pieces, receiver) = mpsc::channel(1);
        let piece = format!("{} {}", wanted.mac, wanted.snap_length);
        pieces.try_send(piece.into()).expect("there is room for one");
        Ok(receiver)
    }
    fn launch(
        &self,
        order: LaunchOrder,
        dry: bool,
        by: String,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<documents::Asked, Failure>> {
        let config = self.config.lock().unwrap().clone().with_launched(&self.launches.pins());
        let launches = self.launches.clone();
        super::launches_tests::launch(config, launches, order, dry, by, progress).boxed()
    }
    fn undo(&self, id: u64, by: String) -> BoxFuture<'_, Result<documents::Asked, Failure>> {
        super::launches_tests::undo(self.launches.clone(), id, by).boxed()
    }
    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, Failure>> {
        async { Ok(Reloaded { changed: vec!["profile web".into()], needs_restart: Vec::new() }) }.boxed()
    }
}

fn image(reference: &str) -> Image {
    let blob = serde_json::json!({ "sha256": "00", "size": 5 });
    serde_json::from_value(serde_json::json!({
        "reference": reference, "id": "sha256:11", "digest": "sha256:00", "created": null,
        "added": "1970-01-01T00:00:00Z", "assets": "sha256:22", "profiles": [], "stages": 1,
        "config": { "entrypoint": [], "cmd": ["/bin/sh"], "env": [], "working-dir": "", "user": "", "stop-signal": null },
        "kernel": { "version": "6.1", "source": "assets", "path": "kernel/vmlinuz", "reason": "", "modules": true },
        "kernel-blob": blob, "stage1-blob": blob, "rootfs-blob": blob,
        "unpacked": { "kernel": 1, "stage1": 1, "rootfs": 1 },
    }))
    .expect("a record")
}

impl Images for FakeImages {
    fn work(&self) -> PathBuf {
        self.0.clone()
    }
    fn list(&self) -> Result<Vec<Image>, Failure> {
        Ok(Vec::new())
    }
    fn add(
        &self,
        source: ImageSource,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Image, Failure>> {
        async move {
            let _ = progress.send(Progress { step: "exporting".into(), bytes: Some(5) }).await;
            match source {
                ImageSource::Reference(reference) if reference == "missing" => {
                    Err(Failure::new(Kind::NotFound, "no such image", "docker image ls"))
                }
                ImageSource::Reference(reference) => Ok(image(&reference)),
                ImageSource::Path(path) => {
                    let bytes = std::fs::read(&path).expect("it came");
                    Err(Failure::new(
                        Kind::Invalid,
                        format!("{}: {} bytes", path.display(), bytes.len()),
                        "?",
                    ))
                }
            }
        }
        .boxed()
    }
    fn remove(&self, reference: String) -> BoxFuture<'_, Result<(), Failure>> {
        assert_eq!(reference, "reg.example/a/b:1");
        async { Ok(()) }.boxed()
    }
    fn collect(&self) -> BoxFuture<'_, Result<Collected, Failure>> {
        async { Ok(Collected { files: 2, bytes: 10 }) }.boxed()
    }
    fn kernels(&self) -> KernelList {
        KernelList { default: Some("6.1".into()), kernels: Vec::new() }
    }
    fn add_kernel(&self, new: NewKernel) -> BoxFuture<'_, Result<KernelRecord, Failure>> {
        async move { Err(Failure::new(Kind::NotFound, format!("{:?}", new.source), "add it first")) }.boxed()
    }
    fn default_kernel(&self, name: Option<&str>) -> Result<(), Failure> {
        let error = format!("there is no kernel {name:?}");
        name.map_or(Ok(()), |_| Err(Failure::new(Kind::NotFound, error, "kernel list")))
    }
    fn remove_kernel(&self, name: &str) -> Result<(), Failure> {
        assert_eq!(name, "6.1~rc1");
        Ok(())
    }
}

/// Status, headers in lower case, body.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

/// Where curl goes.
pub(super) enum To {
    Address(SocketAddr),
    Socket(&'static Path),
}

impl From<SocketAddr> for To {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<&'static Path> for To {
    fn from(socket: &'static Path) -> Self {
        Self::Socket(socket)
    }
}

pub(super) async fn curl(to: impl Into<To>, path: &str, arguments: &[&str]) -> Answer {
    curl_with("http", to, path, arguments).await
}

pub(super) async fn curl_with(scheme: &str, to: impl Into<To>, path: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        "--path-as-is",
        "--dump-header",
        "/dev/stderr",
    ]);
    let host = match to.into() {
        To::Address(address) => address.to_string(),
        To::Socket(socket) => {
            command.arg("--unix-socket").arg(socket);
            "localhost".to_owned()
        }
    };
    command.args(arguments).arg(format!("{scheme}://{host}{path}"));
    let output = tokio::task::spawn_blocking(move || command.output().expect("curl runs")).await.unwrap();
    let headers = String::from_utf8(output.stderr).unwrap().to_lowercase();
    let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
    Answer { status, headers, body: output.stdout }
}

async fn events(daemon: &Daemon) -> Vec<Event> {
    let answer = curl(daemon.api, "/api/events", &[]).await;
    String::from_utf8(answer.body).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_whole_and_in_parts() {
    let daemon = Daemon::start().await;
    let whole = curl(daemon.boot, "/files/ten", &[]).await;
    assert_eq!((whole.status, whole.body.as_slice()), (200, &b"0123456789"[..]));
    assert_eq!((whole.header("content-length"), whole.header("accept-ranges")), (Some("10"), Some("bytes")));
    let etag = whole.header("etag").unwrap();

    let head = curl(daemon.boot, "/files/ten", &["--head"]).await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    let part = curl(daemon.boot, "/files/ten", &["--range", "2-4"]).await;
    assert_eq!((part.status, part.body.as_slice()), (206, &b"234"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    let end = curl(daemon.boot, "/files/ten", &["--range", "-3"]).await;
    assert_eq!((end.status, end.body.as_slice()), (206, &b"789"[..]));
    let beyond = curl(daemon.boot, "/files/ten", &["--range", "10-"]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
    let several = curl(daemon.boot, "/files/ten", &["--range", "0-1,3-4"]).await;
    assert_eq!((several.status, several.body.len()), (200, 10));

    let fresh = curl(daemon.boot, "/files/ten", &["-H", &format!("If-None-Match: \"x\", W/{etag}")]).await;
    assert_eq!((fresh.status, fresh.body.len()), (304, 0));
    let same = curl(daemon.boot, "/files/ten", &["--range", "2-4", "-H", &format!("If-Range: {etag}")]).await;
    assert_eq!(same.status, 206);
    let changed = curl(daemon.boot, "/files/ten", &["--range", "2-4", "-H", "If-Range: \"old\""]).await;
    assert_eq!((changed.status, changed.body.len()), (200, 10));

    let empty = curl(daemon.boot, "/files/empty", &[]).await;
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    let named = curl(daemon.api, "/files/a%20b/%C3%BC", &[]).await;
    assert_eq!((named.status, named.body.as_slice()), (200, &b"x"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_served_says_why() {
    let daemon = Daemon::start().await;
    for (path, arguments, status, words) in [
        ("/files/none", &[][..], 404, "no such file"),
        ("/files/dir", &[], 404, "it is a directory"),
        ("/files/../etc/passwd", &[], 403, "outside the files root"),
        ("/files/%2e%2e/x", &[], 403, "outside the files root"),
        ("/files/", &[], 404, "there is nothing at"),
        ("/elsewhere", &[], 404, "there is nothing at /elsewhere"),
        ("/files/ten", &["-X", "PUT"], 405, "takes no PUT"),
        ("/node/report", &[], 405, "takes no GET"),
        ("/node/report", &["-d", "{", "-H", "Content-Type: application/json"], 400, "EOF"),
    ] {
        let answer = curl(daemon.boot, path, arguments).await;
        assert_eq!(answer.status, status, "{path}");
        let json = answer.json();
        assert!(json["error"].as_str().is_some_and(|e| e.contains(words)), "{path}: {json}");
        assert!(json["hint"].as_str().is_some_and(|h| !h.is_empty()), "{path}: {json}");
    }
    let none = curl(daemon.api, "/api/nodes/nobody", &[]).await;
    assert_eq!((none.status, none.json()["hint"].as_str()), (404, Some("`bridgehead nodes` lists them")));
    assert_eq!(curl(daemon.api, "/api/leases", &[]).await.status, 503);
    assert_eq!(curl(daemon.api, "/api/events?fellow=1", &[]).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_is_reached_when_all_was_sent() {
    let daemon = Daemon::start().await;
    curl(daemon.boot, "/boot/kernel", &["--head"]).await;
    curl(daemon.boot, "/boot/kernel", &["--range", "0-99"]).await;
    // A client that disconnects in the middle; the answer does not fit into the socket's buffers.
    let address = daemon.boot;
    let read = tokio::task::spawn_blocking(move || {
        let mut leaver = TcpStream::connect(address).unwrap();
        leaver.write_all(b"GET /boot/initrd HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        leaver.read(&mut [0; 512]).unwrap()
    });
    assert!(read.await.unwrap() > 0);
    let gone = async {
        while !daemon.connections.open().by_peer.is_empty() {
            pause().await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the connection ends");
    assert_eq!(events(&daemon).await, []);

    let whole = curl(daemon.boot, "/boot/kernel", &[]).await;
    assert!(whole.body == kernel());
    curl(daemon.boot, "/grub/grub.cfg", &[]).await;
    let events = events(&daemon).await;
    let [kernel, config] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((kernel.mac, kernel.stage, kernel.bytes), (MAC, Stage::Kernel, Some(1_000_003)));
    assert_eq!(kernel.detail.as_deref(), Some("boot/kernel"));
    assert!(kernel.duration.is_some_and(|d| d > 0.0 && d < 20.0));
    assert_eq!((config.stage, config.bytes), (Stage::Config, Some(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reports_for_itself_only() {
    let daemon = Daemon::start().await;
    let report = async |json: &str| {
        let arguments = ["-H", "Content-Type: application/json", "-d", json];
        curl(daemon.boot, "/node/report", &arguments).await.status
    };
    assert_eq!(
        report(r#"{"mac": "52:54:00:77:00:01", "stage": "workload", "detail": "a\nb", "uptime": 4.25}"#)
            .await,
        204
    );
    assert_eq!(
        report(
            r#"{"mac": "52:54:00:77:00:01", "stage": "exited", "cause": "exit status: 3", "exit-code": 3}"#
        )
        .await,
        204
    );
    assert_eq!(report(r#"{"mac": "52:54:00:77:00:02", "stage": "workload"}"#).await, 403);
    assert_eq!(report(r#"{"mac": "52:54:00:77:00:01", "stage": "ack"}"#).await, 400);
    let huge =
        format!(r#"{{"mac": "52:54:00:77:00:01", "stage": "workload", "detail": "{}"}}"#, "x".repeat(20_000));
    assert_eq!(report(&huge).await, 400);
    let events = events(&daemon).await;
    let [workload, failed] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(workload.detail.as_deref(), Some("a b, 4.2 s after its kernel"));
    assert_eq!((failed.stage, failed.detail.as_deref()), (Stage::Failed, Some("ended with exit code 3")));
    assert_eq!(failed.cause.as_deref(), Some("exit status: 3"));
}

/// Events before, during and after the start of the stream, from several threads. Each has a machine of its own: the
/// database keeps 2,000 events of one, and a follower that falls behind reads there.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_every_event_once_and_in_order() {
    const THREADS: u64 = 4;
    const EACH: u64 = 1500;
    let machine = |n: u64| Mac([0x52, 0x54, 0, 0x77, 1, n as u8]);
    let daemon = Daemon::start().await;
    let (api, timeline) = (daemon.api, daemon.timeline.clone());
    let recorders: Vec<_> = (0..THREADS)
        .map(|n| {
            let timeline = timeline.clone();
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    timeline.record(Happened::new(Who::Mac(machine(n)), Stage::Discover));
                }
            })
        })
        .collect();
    let ids = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(api).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /api/events?follow=1 HTTP/1.0\r\n\r\n").unwrap();
        let mut reader = std::io::BufReader::new(stream);
        let mut ids = Vec::new();
        let mut line = String::new();
        while ids.len() < (THREADS * EACH) as usize {
            line.clear();
            std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
            if line.starts_with('{') {
                ids.push(serde_json::from_str::<Event>(&line).unwrap().id);
            }
        }
        ids
    })
    .await
    .unwrap();
    recorders.into_iter().for_each(|r| r.join().unwrap());
    assert!(ids.into_iter().eq(1..=THREADS * EACH));
    // A client that connects afterwards gets them from the disk, and can begin in the middle.
    let lines = async |query: String| {
        let answer = curl(daemon.api, &format!("/api/events?{query}"), &[]).await;
        String::from_utf8(answer.body).unwrap().lines().count() as u64
    };
    assert_eq!(lines("after=5990".into()).await, 10);
    // The database's numbers end earlier.
    assert!(daemon.timeline.since(u64::MAX, 1).unwrap().is_empty());
    assert!(daemon.access.audit.since(u64::MAX, 1).unwrap().is_empty());
    for n in 0..THREADS {
        assert_eq!(lines(format!("node={}", machine(n))).await, EACH);
    }
}

/// GRUB leaves its connection as it is when it boots; the next boot uses the port again.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_starts_anew_finds_no_old_connection() {
    let daemon = Daemon::start().await;
    let address = daemon.boot;
    let mut left = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /files/ten HTTP/1.1\r\nHost: x\r\nUser-Agent: GRUB 2.06\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"0123456789") {
            let mut piece = [0; 512];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "closed before the answer's end");
            answer.extend(&piece[..n]);
        }
        let head = String::from_utf8_lossy(&answer);
        assert!(
            head.contains("\r\nContent-Length: 10\r\n"),
            "GRUB reads the length in this case only: {head}"
        );
        stream
    })
    .await
    .unwrap();
    let client = left.local_addr().unwrap();
    assert!(sockets(daemon.boot, client).contains("ESTAB"));
    daemon.connections.forget(client.ip());
    let error = tokio::task::spawn_blocking(move || left.read(&mut [0; 16]).unwrap_err()).await.unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(sockets(daemon.boot, client), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_has_neither_all_connections_nor_all_time() {
    let daemon = Daemon::start().await;
    let boot = daemon.boot;
    let held: Vec<_> = (0..PER_NODE).map(|_| TcpStream::connect(boot).unwrap()).collect();
    // Each of them was accepted before this one.
    let mut refused = TcpStream::connect(boot).unwrap();
    let ended = tokio::task::spawn_blocking(move || refused.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "one too many was served: {ended:?}");
    drop(held);
    while !daemon.connections.open().by_peer.is_empty() {
        pause().await;
    }

    let mut slow = TcpStream::connect(boot).unwrap();
    let request = "POST /node/report HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    slow.write_all(request.as_bytes()).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = [0; 12];
        slow.read_exact(&mut answer).map(|()| answer)
    });
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("an end").unwrap();
    assert_eq!(answer.unwrap(), *b"HTTP/1.1 400");
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// What the kernel still has of a client's connection, TIME_WAIT included.
fn sockets(server: SocketAddr, client: SocketAddr) -> String {
    // By both ports, because a client's port may be used with another server at the same time.
    let (server, client) = (format!(":{}", server.port()), format!(":{}", client.port()));
    let output =
        Command::new("ss").args(["-Htan", "sport", "=", &server, "and", "dport", "=", &client]).output();
    String::from_utf8(output.expect("ss runs").stdout).expect("ss prints text")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_first_leaves_nothing_with_us() {
    let daemon = Daemon::start().await;
    let (address, api) = (daemon.boot, daemon.api);
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /files/ten HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"0123456789") {
            let mut piece = [0; 512];
            let n = stream.read(&mut piece).unwrap();
            answer.extend(&piece[..n]);
        }
        let mut people = UnixStream::connect(api).unwrap();
        // Like GRUB, which has other initrds to load before it closes this one: wait until a connection to the API, as old
        // and silent as this one, is closed.
        people.read_to_end(&mut Vec::new()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
        stream.local_addr().unwrap()
    })
    .await
    .unwrap();
    let gone = async {
        while !sockets(address, client).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("no socket is left");
    assert!(daemon.connections.open().by_peer.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_requests() {
    let daemon = Daemon::start().await;
    let status = curl(daemon.api, "/api/status", &[]).await.json();
    assert_eq!(status["started"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(status["ports"][0]["tier"], "tc");
    let node = curl(daemon.api, "/api/nodes/52-54-00-77-00-01", &[]).await.json();
    assert_eq!(node["address"], "127.0.0.1");
    let metrics = String::from_utf8(curl(daemon.api, "/metrics", &[]).await.body).unwrap();
    for line in [
        "bridgehead_build_info{version=\"1.2.3\"} 1",
        "bridgehead_port_info{port=\"eth1\",tier=\"tc\"} 1",
        "bridgehead_nodes{stage=\"none\"} 1",
        "bridgehead_dhcp_offers_total 7",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} not in\n{metrics}");
    }
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
    for (accept, content_type) in
        [("*/*", "text/plain; version=0.0.4"), (prometheus, "application/openmetrics-text; version=1.0.0")]
    {
        let answer = curl(daemon.api, "/metrics", &["-H", &format!("Accept: {accept}")]).await;
        let got = answer.header("content-type").unwrap();
        assert!(got.starts_with(content_type), "{accept}: {got}");
    }
    let page = curl(daemon.api, "/", &[]).await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let lines = curl(
        daemon.api,
        "/api/images",
        &["-H", "Content-Type: application/json", "-d", r#"{"reference": "a"}"#],
    )
    .await;
    let lines = String::from_utf8(lines.body).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[0], r#"{"progress":{"step":"exporting","bytes":5}}"#);
    assert!(lines[1].starts_with(r#"{"done":{"reference":"a""#), "{lines:?}");
    assert_eq!(curl(daemon.api, "/api/images/reg.example/a/b:1", &["-X", "DELETE"]).await.status, 204);
}

#[tokio::test]
async fn kernels_are_listed_chosen_and_removed() {
    let daemon = Daemon::start().await;
    let send = async |method: &str, path: &str, body: &str| {
        curl(daemon.api, path, &["-X", method, "-H", "Content-Type: application/json", "-d", body]).await
    };
    assert_eq!(curl(daemon.api, "/api/kernels", &[]).await.json()["default"], "6.1");
    let added = send("POST", "/api/kernels", r#"{"source": {"image": "no:such"}}"#).await;
    assert_eq!((added.status, added.json()["error"].clone()), (404, "Image(\"no:such\")".into()));
    let by_path = send("POST", "/api/kernels", r#"{"source": {"path": "/no/such"}}"#).await;
    assert_eq!(by_path.status, 400, "the daemon opens no path");
    for nothing in ["{}", "", "null", r#"{"name": 5}"#] {
        assert_eq!(send("PUT", "/api/default-kernel", nothing).await.status, 400, "{nothing}");
    }
    let nonsense = send("POST", "/api/kernels", r#"{"source": "x"}"#).await;
    assert_eq!(nonsense.status, 400);
    assert!(nonsense.json()["hint"].as_str().unwrap().contains("application/x-tar"));
    assert_eq!(send("PUT", "/api/default-kernel", r#"{"name": "6.2"}"#).await.status, 404);
    assert_eq!(send("PUT", "/api/default-kernel", r#"{"name": null}"#).await.status, 200);
    assert_eq!(curl(daemon.api, "/api/kernels/6.1~rc1", &["-X", "DELETE"]).await.status, 204);
}
