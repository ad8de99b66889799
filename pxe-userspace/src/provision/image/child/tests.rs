use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::base::text::hex;
use crate::nodes::engine::Engine;
use crate::provision::image::testing::{TestLayer, assets, saved};
use crate::provision::image::{AddError, ImageSource, Images};

/// The test that is the child: set in its environment, and its own name.
pub(super) const ENTRY: &str = "provision::image::child::tests::import_child";

/// Started by itself it does nothing.
#[test]
fn import_child() {
    if std::env::var_os(ENTRY).is_some() {
        let code = if run() == std::process::ExitCode::SUCCESS { 0 } else { 1 };
        std::process::exit(code);
    }
}

/// What a child that an archive has taken over would try: a name, and what came of it.
pub(super) fn probe() -> BTreeMap<String, String> {
    fn came<T>(done: io::Result<T>) -> String {
        done.map_or_else(|error| error.to_string(), |_| "worked".to_owned())
    }
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    );
    let memory = std::num::NonZeroUsize::new(4096).unwrap();
    let program = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_EXEC;
    // SAFETY: a new mapping, which nobody uses.
    let mapped = unsafe {
        nix::sys::mman::mmap_anonymous(None, memory, program, nix::sys::mman::MapFlags::MAP_PRIVATE)
    };
    BTreeMap::from(
        [
            ("read /etc/shadow", came(File::open("/etc/shadow"))),
            ("read /etc/passwd", came(File::open("/etc/passwd"))),
            ("look for a file", came(fs::metadata("/etc/passwd"))),
            ("list a directory", came(fs::read_dir("/"))),
            ("write outside", came(File::create("/tmp/bridgehead-import-probe"))),
            ("remove a file", came(fs::remove_file("/tmp/bridgehead-import-probe"))),
            ("make a socket", came(socket.map_err(io::Error::from))),
            ("listen", came(TcpListener::bind("127.0.0.1:0"))),
            ("send a packet", came(UdpSocket::bind("127.0.0.1:0"))),
            ("run a program", came(Command::new("/bin/true").status())),
            ("make a thread", came(std::thread::Builder::new().spawn(|| ()))),
            (
                "end the daemon",
                came(nix::sys::signal::kill(nix::unistd::getppid(), None).map_err(io::Error::from)),
            ),
            ("make a program in memory", came(mapped.map_err(io::Error::from))),
            ("become root", came(nix::unistd::setuid(0.into()).map_err(io::Error::from))),
        ]
        .map(|(name, outcome)| (name.to_owned(), outcome)),
    )
}

struct Fixture {
    dir: tempfile::TempDir,
    images: Images,
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("assets")).unwrap();
        assets(&dir.path().join("assets"));
        let engine = Engine::new(&crate::config::Docker { socket: Some(dir.path().join("no-engine")) });
        let state = dir.path().join("state");
        let images = Images::open_with(&state, &dir.path().join("assets"), engine, limits).unwrap();
        Self { dir, images }
    }

    /// An archive with one compressed layer, which is written twice and never kept whole.
    fn archive(&self, layer: impl Fn(&mut dyn io::Write)) -> ImageSource {
        let (mut hash, mut packed) = (Sha256::new(), zstd::Encoder::new(Vec::new(), 1).unwrap());
        layer(&mut hash);
        layer(&mut packed);
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&hash.finalize()))]},
        });
        let manifest = serde_json::json!([{"Config": "c", "RepoTags": ["app:1"], "Layers": ["l"]}]);
        let archive = TestLayer::new()
            .file("l", &packed.finish().unwrap())
            .file("c", config.to_string().as_bytes())
            .file("manifest.json", manifest.to_string().as_bytes());
        let path = self.dir.path().join("archive.tar");
        fs::write(&path, archive.bytes()).unwrap();
        ImageSource::Path(path)
    }

    fn source(&self, layer: &[u8]) -> ImageSource {
        let path = self.dir.path().join("a.tar");
        fs::write(&path, saved("app:1", layer, serde_json::json!({"Cmd": ["/app"]}))).unwrap();
        ImageSource::Path(path)
    }

    fn job(&self, what: What, files: Vec<Given>) -> Job {
        Job { assets: self.dir.path().join("assets"), name: "a.tar".into(), what, files }
    }

    fn start(&self, what: What) -> Child {
        let spool = tempfile::tempfile().unwrap();
        let job = self.job(what, vec![Given::Spool]);
        Child::start(self.dir.path(), &job, Limits::IMPORT, &[&spool]).unwrap()
    }

    fn left(&self) -> usize {
        self.dir.path().join("state/images/work").read_dir().unwrap().count()
    }
}

/// Fields of `/proc/PID/task/TID/status` of the thread that is confined.
fn status(process: u32) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let all = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let fields = |text: String| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    all.map(fields).find(|fields| fields["Seccomp"] == "2").expect("one of its threads has a filter")
}

#[test]
fn a_child_can_do_nothing_but_its_work() {
    let fixture = Fixture::new(Limits::IMPORT);
    let mut child = fixture.start(What::Probe);
    assert!(matches!(child.next().unwrap(), Said::Ready { .. }));
    let Said::Probed(probed) = child.next().unwrap() else { panic!("it was asked to") };
    for (tried, outcome) in &probed {
        // Closing a directory's listing that could not be opened is Rust's.
        assert!(outcome.contains("Operation not permitted"), "{tried}: {outcome}");
    }
    assert_eq!(probed.len(), 14);

    let status = status(child.process.id());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    if nix::unistd::geteuid().is_root() {
        let ids: Vec<&str> =
            status["Uid"].split_whitespace().chain(status["Gid"].split_whitespace()).collect();
        assert!(ids.iter().all(|id| *id != "0"), "{ids:?}");
        assert_eq!(u64::from_str_radix(&status["CapBnd"], 16), Ok(0));
        assert_eq!(status["Groups"], "");
    } else {
        println!("not root: the child keeps its user");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.process.id())).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace();
    assert!(limit("Max address space").any(|word| word == Limits::IMPORT.memory.to_string()), "{limits}");
    assert!(limit("Max file size").any(|word| word == Limits::IMPORT.file.to_string()), "{limits}");
    child.go_on().unwrap();
    assert_eq!(child.next().unwrap(), Said::Packing);
    child.finish();
}

#[tokio::test]
async fn a_bomb_ends_at_the_limit_with_words_and_leaves_nothing() {
    let fixture = Fixture::new(Limits { file: 8 << 20, ..Limits::IMPORT });
    let refused = async |source: &ImageSource| fixture.images.add(source, false, |_| ()).await.unwrap_err();
    // Three times what may be written, in files of zeros, which take no space themselves: in a small archive, and in
    // an archive that is compressed once more, whose layer is that large.
    let bomb = fixture.archive(|layer| (0..8).for_each(|n| zeros(layer, &format!("zeros-{n}"), 3 << 20)));
    let plain = TestLayer::new().file("layer.tar", &vec![0; 24 << 20]).bytes();
    let outer = fixture.dir.path().join("outer.tar.zst");
    fs::write(&outer, zstd::encode_all(&plain[..], 3).unwrap()).unwrap();
    for source in [bomb, ImageSource::Path(outer)] {
        let error = refused(&source).await;
        assert!(matches!(error, AddError::Child(ChildError::Size { .. })), "{error}");
        assert_eq!(error.to_string(), "its contents take more than 8 MiB unpacked, and reading it was ended");
    }
    assert_eq!(fixture.left(), 0);

    // A file that claims more than an initrd can hold is refused before it is read.
    let claims = fixture.archive(|layer| {
        let header = header("large", 5 << 30);
        layer.write_all(header.as_bytes()).unwrap();
    });
    let error = refused(&claims).await.to_string();
    assert!(error.contains("less than 4 GiB"), "{error}");
    // And what is small is still made.
    let small = fixture.archive(|layer| zeros(layer, "app", 1));
    fixture.images.add(&small, false, |_| ()).await.unwrap();
    assert_eq!(fixture.left(), 0);
}

#[tokio::test]
async fn what_takes_too_much_memory_ends_with_words() {
    let fixture = Fixture::new(Limits { memory: 384 << 20, ..Limits::IMPORT });
    let large = "x".repeat(900_000);
    let source = fixture.archive(|layer| {
        let mut builder = tar::Builder::new(layer);
        for n in 0..500 {
            builder.append_pax_extensions([("SCHILY.xattr.user.x", large.as_bytes())]).unwrap();
            builder.append(&header(&format!("f{n}"), 0), io::empty()).unwrap();
        }
        builder.finish().unwrap();
    });
    let error = fixture.images.add(&source, false, |_| ()).await.unwrap_err();
    assert!(matches!(error, AddError::Child(ChildError::Memory { .. })), "{error}");
    assert!(error.to_string().contains("more than 384 MiB of memory"), "{error}");
    assert_eq!(fixture.left(), 0);
}

#[tokio::test]
async fn what_takes_too_long_ends_with_words() {
    let fixture = Fixture::new(Limits { cpu: 1, ..Limits::IMPORT });
    // Gigabytes of zeros, which are hashed.
    let source = fixture.archive(|layer| zeros(layer, "zeros", 3 << 30));
    let error = fixture.images.add(&source, false, |_| ()).await.unwrap_err();
    assert!(matches!(error, AddError::Child(ChildError::Cpu { seconds: 1 })), "{error}");
    assert_eq!(fixture.left(), 0);
}

fn header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// A file of so many zeros.
fn zeros(layer: &mut dyn io::Write, name: &str, size: u64) {
    layer.write_all(header(name, size).as_bytes()).unwrap();
    io::copy(&mut io::repeat(0).take(size.next_multiple_of(512)), layer).unwrap();
}

#[test]
fn a_child_that_is_killed_or_dropped_leaves_nothing() {
    let fixture = Fixture::new(Limits::IMPORT);
    let mut child = fixture.start(What::Probe);
    assert!(matches!(child.next().unwrap(), Said::Ready { .. }));
    assert!(matches!(child.next().unwrap(), Said::Probed(_)));
    let process = child.process.id();
    child.process.kill().unwrap();
    let error = child.next().unwrap_err();
    assert!(matches!(&error, ChildError::Ended { how, .. } if how.contains("9")), "{error}");
    drop(child);
    assert!(!Path::new(&format!("/proc/{process}")).exists());

    let child = fixture.start(What::Probe);
    let process = child.process.id();
    drop(child);
    assert!(!Path::new(&format!("/proc/{process}")).exists());
}

/// What a child says that was taken over.
#[test]
fn what_no_child_says_is_not_believed() {
    let good = format!("sha256:{}", "a".repeat(64));
    let described = |id: &str, names: &[&str]| Said::Described {
        id: id.to_owned(),
        names: names.iter().map(|name| name.to_string()).collect(),
    };
    let heard = |bytes: &[u8]| messages::receive(&mut &bytes[..]);
    let said = |said: &Said| {
        let mut bytes = Vec::new();
        messages::send(&mut bytes, said).unwrap();
        heard(&bytes)
    };
    assert!(said(&described(&good, &["web:latest"])).is_ok());
    for lie in [
        described("sha256:../../../etc/passwd", &["web:latest"]),
        described(&good.to_uppercase(), &["web:latest"]),
        described(&good, &[]),
        described(&good, &[""]),
        described(&good, &["web\u{1b}[2J:latest"]),
        described(&good, &["w".repeat(5000).as_str()]),
        described(&good, &["web:latest"; 300]),
        Said::Ready { assets: "none".into() },
    ] {
        assert!(matches!(said(&lie), Err(ReceiveError::Damaged(_))), "{lie:?}");
    }
    assert!(matches!(heard(&[0xff; 4]), Err(ReceiveError::Damaged("a message that is too long"))));
    assert!(matches!(heard(&[9, 0, 0, 0, b'{']), Err(ReceiveError::Ended)));
    assert!(matches!(heard(&[2, 0, 0, 0, b'{', b'}']), Err(ReceiveError::Damaged(_))));
    assert!(matches!(heard(&[]), Err(ReceiveError::Ended)));
}

/// Files that the job names and that are not there, or the other way round.
#[test]
fn a_job_without_its_files_is_refused() {
    let fixture = Fixture::new(Limits::IMPORT);
    let spool = tempfile::tempfile().unwrap();
    let job = fixture.job(What::Probe, vec![Given::Spool, Given::Archive]);
    let mut child = Child::start(fixture.dir.path(), &job, Limits::IMPORT, &[&spool]).unwrap();
    let error = child.next().unwrap_err().to_string();
    assert!(error.contains("files are not all there"), "{error}");
}

/// Assets are read before the child is confined, and their absence has the same words as ever.
#[tokio::test]
async fn without_assets_the_words_say_what_to_do() {
    let fixture = Fixture::new(Limits::IMPORT);
    fs::remove_file(fixture.dir.path().join("assets/busybox")).unwrap();
    let source = fixture.source(&TestLayer::new().file("app", b"app").bytes());
    let error = fixture.images.add(&source, false, |_| ()).await.unwrap_err();
    assert!(matches!(error, AddError::Assets(_)), "{error}");
    assert!(error.to_string().contains("cargo xtask setup"), "{error}");
}
