//! The TFTP server against clients that others wrote, over a bridge in network namespaces of its
//! own, with the fast path and without. Needs root and the clients, and says so when skipped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bridgehead::config;
use bridgehead::dataplane::{Counters, Dataplane, LoadError, Sinks, Tier};
use bridgehead::machines::Machines;
use bridgehead::machines::timeline::{AnsweredBy, Event, Stage, Timeline};
use bridgehead::provision::blob::Blob;
use bridgehead::serve::files::{Files, OpenError, Opened};
use bridgehead::serve::tftp::socket::Tftp;
use bridgehead::store::Store;
use pxe_common::Mac;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Files and the sizes that end a transfer differently.
const SIZES: [(&str, usize); 6] = [
    ("empty", 0),
    ("short", 65_535),
    ("whole", 65_536),
    ("long", 65_537),
    ("mega", 1 << 20),
    ("initrd", 40 << 20),
];

#[test]
fn real_clients_get_every_byte_from_the_kernel() {
    if let Err(why @ LoadError::NotBuilt) = Dataplane::load(config::FastPath::Auto, false) {
        eprintln!("skipped: {why}");
        return;
    }
    let Some(lab) = Lab::new("k") else { return };
    let (counters, events) = lab.fetch_everything(config::FastPath::Auto);
    let counters = counters.expect("the programs are loaded");
    // The empty file is too small for the kernel.
    let in_kernel = || fetches().filter(|f| f.len() > 0);
    let answers: u64 = in_kernel().map(Fetch::answers).sum();
    // Without options the daemon sends the first block: nothing came yet that asks for it.
    let first_blocks = in_kernel().filter(|f| !f.client.sends_options()).count() as u64;
    // A file of more than 4 MiB begins with the daemon, while it is put into the kernel: every block but a few.
    let large: u64 = in_kernel().filter(|f| f.len() > 4 << 20).map(Fetch::answers).sum();
    let by_daemon = (answers - first_blocks).checked_sub(counters.tc["replies"]);
    assert!(by_daemon.is_some_and(|blocks| blocks < large / 10), "{by_daemon:?} of {large}: {counters:?}");
    assert_eq!(counters.tc["tftp-finished"], in_kernel().count() as u64, "{counters:?}");
    assert_eq!(counters.tc["events-lost"], 0, "{counters:?}");
    let initrds: Vec<&Event> = events.iter().filter(|e| e.stage == Stage::Initrd).collect();
    assert_eq!(initrds.len(), fetches().filter(|f| f.file == "initrd").count());
    for event in initrds {
        assert_eq!((event.answered_by, event.bytes), (AnsweredBy::Tc, Some(40 << 20)), "{event:?}");
    }
}

#[test]
fn real_clients_get_every_byte_from_the_daemon() {
    let Some(lab) = Lab::new("d") else { return };
    let (counters, events) = lab.fetch_everything(config::FastPath::Off);
    assert_eq!(counters, None);
    let initrds: Vec<&Event> = events.iter().filter(|e| e.stage == Stage::Initrd).collect();
    assert_eq!(initrds.len(), fetches().filter(|f| f.file == "initrd").count());
    assert!(initrds.iter().all(|e| e.answered_by == AnsweredBy::Daemon));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Curl,
    Atftp,
    /// tftp-hpa, which asks for no options.
    Hpa,
}

#[derive(Clone, Copy, Debug)]
struct Fetch {
    client: Client,
    file: &'static str,
    blksize: usize,
    window: usize,
}

fn fetches() -> impl Iterator<Item = Fetch> {
    SIZES.into_iter().flat_map(|(file, len)| {
        // curl 7.88 calls an empty file an error (71), whoever serves it.
        let curl = |blksize| Some(blksize).filter(|_| len != 0);
        [
            (Client::Curl, curl(1468), 1),
            // 40 MiB in blocks of 512 wraps the block numbers.
            (Client::Curl, curl(512), 1),
            (Client::Atftp, Some(1024), 1),
            (Client::Atftp, Some(1468), 4),
            (Client::Atftp, Some(512), 16),
            (Client::Hpa, Some(512), 1),
        ]
        .into_iter()
        .filter_map(move |(client, blksize, window)| Some(Fetch { client, file, blksize: blksize?, window }))
    })
}

impl Client {
    fn sends_options(self) -> bool {
        self != Self::Hpa
    }
}

impl Fetch {
    fn len(self) -> usize {
        SIZES.into_iter().find(|(name, _)| *name == self.file).map_or(0, |(_, len)| len)
    }

    /// Frames that are answered with blocks.
    fn answers(self) -> u64 {
        (self.len() / self.blksize + 1).div_ceil(self.window) as u64
    }

    fn command(self, out: &Path) -> Vec<String> {
        let (out, server, size) = (out.display().to_string(), SERVER.to_string(), self.blksize.to_string());
        let (option, window) = (format!("blksize {size}"), format!("windowsize {}", self.window));
        let args: Vec<&str> = match self.client {
            Client::Curl => {
                let url = format!("tftp://{server}/{}", self.file);
                return ["curl", "-sS", "--max-time", "60", "--tftp-blksize", &size, "-o", &out, &url]
                    .map(String::from)
                    .to_vec();
            }
            Client::Atftp => {
                let mut words = vec!["atftp", "--option", &option];
                if self.window > 1 {
                    words.extend(["--option", &window]);
                }
                words.extend(["-g", "-r", self.file, "-l", &out, &server]);
                words
            }
            Client::Hpa => vec!["tftp", "-m", "octet", &server, "-c", "get", self.file, &out],
        };
        args.into_iter().map(String::from).collect()
    }
}

/// Serves a directory, and calls `initrd` an initrd.
struct Directory(PathBuf);

impl Files for Directory {
    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError> {
        assert_eq!(client, CLIENT);
        let blob = Blob::open(&self.0.join(path)).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => OpenError::NotFound,
            std::io::ErrorKind::IsADirectory => OpenError::Directory,
            _ => OpenError::Io(e),
        })?;
        Ok(Opened { blob, stage: (path == "initrd").then_some(Stage::Initrd) })
    }
}

/// A bridge with a port in one namespace, a client in another. Gone when dropped.
struct Lab {
    server_ns: String,
    client_ns: String,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(tag: &str) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: root is needed for network namespaces");
            return None;
        }
        for program in ["ip", "curl", "atftp", "tftp"] {
            if Command::new(program).arg("--version").output().is_err() {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let id = format!("bh-tftp-{tag}{}", std::process::id());
        let lab = Self {
            server_ns: format!("{id}-s"),
            client_ns: format!("{id}-c"),
            dir: tempfile::tempdir().unwrap(),
        };
        let (s, c) = (lab.server_ns.as_str(), lab.client_ns.as_str());
        for line in [
            format!("netns add {s}"),
            format!("netns add {c}"),
            format!("-n {s} link add pxe0 type bridge"),
            format!("-n {s} addr add {SERVER}/24 dev pxe0"),
            format!("-n {s} link add port type veth peer name eth0 netns {c}"),
            format!("-n {s} link set port master pxe0 up"),
            format!("-n {s} link set pxe0 up"),
            format!("-n {c} link set eth0 address {CLIENT_MAC}"),
            format!("-n {c} addr add {CLIENT}/24 dev eth0"),
            format!("-n {c} link set eth0 up"),
        ] {
            let done = Command::new("ip").args(line.split(' ')).output().unwrap();
            assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
        }
        for (name, len) in SIZES {
            let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(131) ^ (i >> 9)) as u8).collect();
            fs::write(lab.dir.path().join(name), bytes).unwrap();
        }
        Some(lab)
    }

    /// Runs the server, and every client one after the other.
    fn fetch_everything(&self, mode: config::FastPath) -> (Option<Counters>, Vec<Event>) {
        std::thread::scope(|scope| {
            // A thread of its own: it enters the server's namespace, and so do those it starts.
            let server = scope.spawn(|| {
                let ns = File::open(Path::new("/run/netns").join(&self.server_ns)).unwrap();
                nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(self.serve(mode))
            });
            server.join().unwrap()
        })
    }

    async fn serve(&self, mode: config::FastPath) -> (Option<Counters>, Vec<Event>) {
        let machines = Machines::default();
        machines.bound(CLIENT_MAC, CLIENT);
        let timeline = Timeline::open(Store::open(&self.dir.path().join("db")).unwrap(), machines).unwrap();
        let mut events = timeline.subscribe();
        let ((dhcp, _), (tftp, told)) = (mpsc::channel(1), mpsc::channel(100));
        let shutdown = CancellationToken::new();
        let dataplane = (mode != config::FastPath::Off).then(|| {
            let (dataplane, events, _) =
                Dataplane::load(config::FastPath::Auto, false).expect("root, and a built object");
            tokio::spawn(events.run(Sinks { dhcp, tftp }, shutdown.clone()));
            let status = dataplane.attach("port", mode);
            assert_eq!(status.tier, Tier::Tc, "{status:?}");
            Arc::new(dataplane)
        });
        let tftp = Tftp::bind_at(SocketAddrV4::new(SERVER, 69), 1500).unwrap();
        let stats = tftp.stats();
        let files = Arc::new(Directory(self.dir.path().to_owned()));
        let fast_path = dataplane.clone().map(|d| d as _);
        let running = tokio::spawn(tftp.run(files, fast_path, told, timeline, shutdown.clone()));

        for fetch in fetches() {
            let out = self.dir.path().join("out");
            self.client(&fetch.command(&out)).await;
            let same = fs::read(&out).unwrap() == fs::read(self.dir.path().join(fetch.file)).unwrap();
            assert!(same, "{fetch:?}: the bytes differ");
            fs::remove_file(&out).unwrap();
        }
        let read = || stats.read().collect::<BTreeMap<_, _>>();
        // The end of the last one is on its way through the ring of events.
        for _ in 0..100 {
            if read()["finished"] < fetches().count() as u64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let stats = read();
        assert_eq!(stats["finished"], fetches().count() as u64, "{stats:?}");
        assert_eq!((stats["malformed"], stats["refused"], stats["expired"]), (0, 0, 0), "{stats:?}");
        shutdown.cancel();
        running.await.unwrap().unwrap();
        let events = std::iter::from_fn(|| events.try_recv().ok()).collect();
        (dataplane.map(|d| d.counters()), events)
    }

    async fn client(&self, command: &[String]) {
        let run = tokio::process::Command::new("ip")
            .args(["netns", "exec", &self.client_ns])
            .args(command)
            .output()
            .await
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{command:?}: {out}{err}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in [&self.server_ns, &self.client_ns] {
            // Best effort: it may not have been made.
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}
