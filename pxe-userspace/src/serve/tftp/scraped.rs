//! Readers of the API never block a transfer. An ignored test measures how long a block takes meanwhile; it prints
//! numbers and asserts nothing:
//!
//! ```text
//! cargo test --release -p pxe-userspace --lib -- --ignored --nocapture tftp::scraped
//! ```
//!
//! A client fetches a small kernel over and over, in lock-step and from the daemon, so that for a hundredth of its blocks
//! there is an event to record. First nobody reads; then `/api/why` and `/metrics` are read without a pause, with 10,000
//! machines whose boots are in progress.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pxe_common::Mac;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::socket::Tftp;
use crate::api::tests::Daemon;
use crate::machines::Machines;
use crate::machines::diagnosis::Note;
use crate::machines::timeline::{Happened, Stage, Timeline, Who};
use crate::provision::blob::Blob;
use crate::serve::files::{Files, OpenError, Opened};

const MACHINES: u32 = 10_000;
const BLKSIZE: usize = 1024;
const BLOCKS: usize = 256;
const MEASURED_FOR: Duration = Duration::from_secs(20);

struct Kernel(Blob);

impl Files for Kernel {
    fn open(&self, _: &str, _: Ipv4Addr) -> Result<Opened, OpenError> {
        Ok(Opened { blob: self.0.clone(), stage: Some(Stage::Kernel) })
    }
}

#[test]
fn a_transfer_waits_for_no_reader_and_all_of_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let machines = Machines::default();
    machines.bound(crate::api::tests::MAC, Ipv4Addr::LOCALHOST);
    let timeline =
        Timeline::open(crate::store::Store::open(&dir.path().join("db")).unwrap(), machines.clone()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tftp = Tftp::bind_at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), 1500);
    let tftp = tftp.unwrap();
    let server = tftp.local_addr().unwrap();
    let files = Arc::new(Kernel(Blob::from_bytes(vec![7; BLOCKS * BLKSIZE - 1])));
    let (_events, told) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let serving = runtime.spawn(tftp.run(files, None, told, timeline.clone(), shutdown.clone()));

    // A reader that keeps the lock.
    let watch = timeline.watch();
    for _ in 0..3 {
        fetch(server, &mut Vec::new());
    }
    // Answered after the last ACK.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(b"\0\x02x\0octet\0", server).unwrap();
    let (len, _) = socket.recv_from(&mut [0; 100]).unwrap();
    assert!(len > 4);
    assert_eq!(machines.get(crate::api::tests::MAC).unwrap().stage, None, "nothing could be told until now");
    shutdown.cancel();
    drop(watch);
    runtime.block_on(serving).unwrap().unwrap();
    let events = timeline.since(0, 100).unwrap();
    let bytes = Some((BLOCKS * BLKSIZE - 1) as u64);
    assert!(events.iter().all(|event| (event.stage, event.bytes) == (Stage::Kernel, bytes)), "{events:?}");
    assert_eq!(events.len(), 3, "on disk by now");
}

#[test]
#[ignore = "a measurement: it prints numbers, and judges nothing"]
fn a_block_while_the_api_is_read() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (daemon, tftp) = runtime.block_on(async {
        let tftp = Tftp::bind_at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), 1500).unwrap();
        (Daemon::start().await, tftp)
    });
    register(&daemon);
    let SocketAddr::V4(server) = tftp.local_addr().unwrap() else { unreachable!() };
    let files = Arc::new(Kernel(Blob::from_bytes(vec![7; BLOCKS * BLKSIZE - 1])));
    let (_events, told) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let serving = runtime.spawn(tftp.run(files, None, told, daemon.timeline.clone(), shutdown.clone()));

    print("nobody reads", &mut blocks(server.into()));
    let stop = CancellationToken::new();
    let read = [("/api/why", AtomicUsize::new(0)), ("/metrics", AtomicUsize::new(0))];
    std::thread::scope(|scope| {
        for (path, count) in &read {
            let (api, stop) = (daemon.api, stop.clone());
            scope.spawn(move || {
                while !stop.is_cancelled() {
                    count.fetch_add(usize::from(get(api, path) > 0), Ordering::Relaxed);
                }
            });
        }
        // Also when the client panics, so that the scope ends.
        let _ends = stop.drop_guard();
        print("both are read", &mut blocks(server.into()));
    });
    for (path, count) in &read {
        println!("{path} was read {} times", count.load(Ordering::Relaxed));
    }
    shutdown.cancel();
    runtime.block_on(serving).unwrap().unwrap();
}

/// Machines that fetch their kernels; the client itself is one more.
fn register(daemon: &Daemon) {
    for n in 0..MACHINES {
        let [_, b, c, d] = n.to_be_bytes();
        let mac = Mac([2, 0, 0, b, c, d]);
        daemon.machines.bound(mac, Ipv4Addr::new(10, b, c, d));
        for stage in [Stage::Discover, Stage::Offer, Stage::Request, Stage::Ack, Stage::Loader, Stage::Config]
        {
            daemon.timeline.record(Happened::new(Who::Mac(mac), stage).detail("UEFI x86-64"));
        }
        let note = Note::Opened { path: "boot/kernel".into(), bytes: 10_000_000, blksize: Some(1408) };
        daemon.timeline.note(Who::Mac(mac), note);
    }
    let client = crate::api::tests::MAC;
    daemon.timeline.record(Happened::new(Who::Mac(client), Stage::Discover));
    daemon.timeline.flush();
    assert!(daemon.timeline.all_why().len() > MACHINES as usize);
}

/// From each ACK to the block after it.
fn blocks(server: SocketAddr) -> Vec<Duration> {
    // The client's scheduling must not be part of the measurement.
    // SAFETY: no memory is handed over; 0 is the calling thread.
    let first = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } == 0;
    if !first {
        println!("without root, the client's own waits for a CPU count, too");
    }
    let mut took = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < MEASURED_FOR {
        fetch(server, &mut took);
    }
    took
}

/// Fetches the file once, and says what each block took.
fn fetch(server: SocketAddr, took: &mut Vec<Duration>) {
    let mut packet = [0; 4 + BLKSIZE];
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // A retransmission by the server counts as such.
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(b"\0\x01kernel\0octet\0blksize\x001024\0", server).unwrap();
    let (_, from) = socket.recv_from(&mut packet).unwrap();
    socket.connect(from).unwrap();
    for block in 0..BLOCKS as u16 {
        let sent = Instant::now();
        socket.send(&[&[0, 4], &block.to_be_bytes()[..]].concat()).unwrap();
        loop {
            socket.recv(&mut packet).unwrap();
            if packet[..4] == [&[0, 3], &(block + 1).to_be_bytes()[..]].concat() {
                break;
            }
        }
        took.push(sent.elapsed());
    }
    socket.send(&[&[0, 4], &(BLOCKS as u16).to_be_bytes()[..]].concat()).unwrap();
}

fn print(when: &str, took: &mut [Duration]) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{when}: {} blocks; half within {:.0} us, 99 % within {:.0} us, 99.9 % within {:.0} us, the slowest {:.0} us",
        took.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
}

/// Reads a page of the API, and says how long it is.
fn get(api: &std::path::Path, path: &str) -> usize {
    let mut stream = std::os::unix::net::UnixStream::connect(api).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    assert!(page.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&page[..page.len().min(300)]));
    page.len()
}
