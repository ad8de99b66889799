//! The TFTP server as firmware sees it: raw frames through a tap on the bridge, in a network
//! namespace that nobody else sees. Every frame's checksums are verified, for requests whose own
//! checksum is complete and for such as a virtual machine with offloads sends. Needs root.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bridgehead::config::FastPath;
use bridgehead::dataplane::{Dataplane, LoadError, Sinks};
use bridgehead::machines::Machines;
use bridgehead::machines::timeline::{AnsweredBy, Event, Stage, Timeline};
use bridgehead::provision::blob::Blob;
use bridgehead::serve::files::{Files, OpenError, Opened};
use bridgehead::serve::tftp::socket::Tftp;
use bridgehead::store::Store;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pxe_common::Mac;
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Jumbo frames, so that their blocks are tried, too.
const MTU: u16 = 9_000;

const KERNEL_LEN: usize = 19_999;

fn kernel() -> Vec<u8> {
    (0..KERNEL_LEN).map(|i| (i.wrapping_mul(7) ^ (i >> 7)) as u8).collect()
}

#[test]
fn checksums_are_right_whatever_state_the_request_is_in() {
    // XDP alone, on a tap: its buffers have no room for a block, so the daemon goes on.
    for mode in [FastPath::Tc, FastPath::Xdp, FastPath::Off] {
        let events = with_server(mode, |client| {
            for partial in [false, true] {
                client.partial = partial;
                for (port, blksize) in [(25300, 1024), (25301, 1468), (25302, 517), (25303, 8968)] {
                    client.fetch(port, blksize);
                }
            }
        });
        let Some(events) = events else { return };
        let by = if mode == FastPath::Tc { AnsweredBy::Tc } else { AnsweredBy::Daemon };
        assert_eq!(events.len(), 8);
        for event in events {
            assert_eq!((event.stage, event.answered_by), (Stage::Kernel, by));
            assert_eq!((event.bytes, event.detail.as_deref()), (Some(KERNEL_LEN as u64), Some("/kernel")));
        }
    }
}

#[test]
fn what_is_lost_is_sent_again() {
    for mode in [FastPath::Tc, FastPath::Off] {
        let events = with_server(mode, |client| {
            let (server, oack) = client.ask(25300, b"\0\x01/kernel\0octet\0blksize\x001024\0");
            assert_eq!(oack, b"\0\x06blksize\x001024\0");
            let (again, oack) = client.receive(25300, 1000);
            assert_eq!((again, &oack[..2]), (server, &[0, 6][..]), "an OACK nobody acknowledges");
            client.send(25300, server, &[0, 4, 0, 0]);
            client.expect_data(25300, 1, &kernel()[..1024]);
            client.expect_data(25300, 1, &kernel()[..1024]);
            client.send(25300, server, &[0, 4, 0, 1]);
            client.expect_data(25300, 2, &kernel()[1024..2048]);
            // At once, the answer being under way: silence. Later: the answer again.
            client.send(25300, server, &[0, 4, 0, 1]);
            client.expect_silence(25300, 80);
            std::thread::sleep(Duration::from_millis(40));
            client.send(25300, server, &[0, 4, 0, 1]);
            client.expect_data(25300, 2, &kernel()[1024..2048]);
            client.rest(25300, server, 1024, 2);
        });
        let Some(events) = events else { return };
        assert_eq!(events.len(), 1, "{events:?}");
    }
}

#[test]
fn a_client_may_ask_again_stop_and_come_back_from_the_same_port() {
    for mode in [FastPath::Tc, FastPath::Off] {
        let events = with_server(mode, |client| {
            // Asked twice in a row: one transfer.
            let request = b"\0\x01kernel\0octet\0tsize\x000\0blksize\x001468\0";
            let (server, oack) = client.ask(25300, request);
            assert_eq!(oack, format!("\0\x06tsize\0{KERNEL_LEN}\0blksize\x001468\0").as_bytes());
            assert_eq!(client.ask(25300, request), (server, oack));
            // EDK2 wanted to know the size: it stops, and begins again without tsize.
            client.send(25300, server, b"\0\x05\0\x08User aborted the transfer\0");
            let (second, oack) = client.ask(25300, b"\0\x01kernel\0octet\0blksize\x001468\0");
            assert_eq!(oack, b"\0\x06blksize\x001468\0");
            assert_ne!(second, server, "a port rests after its transfer");
            client.send(25300, second, &[0, 4, 0, 0]);
            client.expect_data(25300, 1, &kernel()[..1468]);
            // Reset in the middle; back at the same port after a while.
            client.flush_for(25300, 1200);
            let (third, _) = client.ask(25300, b"\0\x01kernel\0octet\0blksize\x001024\0");
            assert_ne!(third, second);
            client.send(25300, third, &[0, 4, 0, 0]);
            for _ in 0..2 {
                // The old transfer's timer would fire in between.
                let (from, data) = client.receive(25300, 1000);
                assert_eq!((from, &data[..4], data.len()), (third, &[0, 3, 0, 1][..], 1028));
            }
            client.rest(25300, third, 1024, 1);
        });
        let Some(events) = events else { return };
        assert_eq!(events.len(), 1, "no failure among {events:?}");
    }
}

#[test]
fn windows_move_and_go_on_from_a_hole() {
    // Of windows XDP sends nothing but a last, lone block; the daemon the rest.
    for mode in [FastPath::Tc, FastPath::Xdp, FastPath::Off] {
        let events = with_server(mode, |client| {
            for partial in [false, true] {
                client.partial = partial;
                // EDK2's window, and a hole in it; then all of the file at once.
                client.fetch_by_windows(2000, 4, &[0, 2, 6, 10, 14, 18]);
                client.fetch_by_windows(2001, 64, &[0]);
                client.fetch_by_windows(2002, 64, &[0, 1, 19]);
            }
        });
        let Some(events) = events else { return };
        let by = if mode == FastPath::Tc { AnsweredBy::Tc } else { AnsweredBy::Daemon };
        assert_eq!(events.iter().map(|e| e.answered_by).collect::<Vec<_>>(), [by; 6]);
    }
}

#[test]
fn wrong_requests_and_netascii() {
    let done = with_server(FastPath::Tc, |client| {
        let mut error = |request: &[u8]| {
            let (_, packet) = client.ask(1069, request);
            assert_eq!(packet[..3], [0, 5, 0], "{}", String::from_utf8_lossy(&packet));
            assert_eq!(packet.last(), Some(&0));
            packet[3]
        };
        assert_eq!(error(b"\0\x02new\0octet\0"), 2, "write request");
        assert_eq!(error(b"\0\x01nothing\0octet\0"), 1, "no such file");
        assert_eq!(error(b"\0\x01../etc/passwd\0octet\0"), 2, "outside");
        assert_eq!(error(b"\0\x01dir\0octet\0"), 2, "directory");
        assert_eq!(error(b"\0\x01kernel\0octet\0blksize\0big\0"), 8, "option");
        // RFC 1350 section 5: 4, an illegal operation. What is an answer gets none.
        for bad in [&b"\0\x01kernel"[..], b"\0\x09x\0octet\0", b"\0\x01k\0mail\0"] {
            assert_eq!(error(bad), 4, "{bad:?}");
        }
        for bad in [&b"\0"[..], b"\0\x04\0\0", b"\0\x05\0\x01x\0"] {
            client.send(1069, 69, bad);
        }
        client.expect_silence(1069, 100);

        let (server, packet) = client.ask(2001, b"\0\x01text\0NETASCII\0");
        assert_eq!(packet, b"\0\x03\0\x01one\r\ntwo\r\0\r\n");
        client.send(2001, server, &[0, 4, 0, 1]);
        client.expect_silence(2001, 400);
    });
    let Some(events) = done else { return };
    assert_eq!(events, [], "nothing that a boot needs was fetched");
}

struct Catalogue;

impl Files for Catalogue {
    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError> {
        assert_eq!(client, CLIENT);
        let (blob, stage) = match path.trim_start_matches('/') {
            "kernel" => (Blob::from_bytes(kernel()), Some(Stage::Kernel)),
            "text" => (Blob::from_bytes(&b"one\ntwo\r\n"[..]), None),
            "dir" => return Err(OpenError::Directory),
            outside if outside.starts_with("..") => return Err(OpenError::Outside),
            _ => return Err(OpenError::NotFound),
        };
        Ok(Opened { blob, stage })
    }
}

/// Runs a server in a namespace of its own while `play` is its client; returns the timeline.
fn with_server(mode: FastPath, play: impl FnOnce(&mut Client) + Send) -> Option<Vec<Event>> {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: root is needed for network namespaces");
        return None;
    }
    if let (FastPath::Auto | FastPath::Xdp | FastPath::Tc, Err(why @ LoadError::NotBuilt)) =
        (mode, Dataplane::load(FastPath::Auto, false))
    {
        eprintln!("skipped: {why}");
        return None;
    }
    // The namespace is the thread's and its children's, and goes with the last of them.
    let events = std::thread::scope(|scope| scope.spawn(|| serve(mode, play)).join());
    Some(events.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn serve(mode: FastPath, play: impl FnOnce(&mut Client)) -> Vec<Event> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let mut client = Client { tap: tap("port"), partial: false };
    for line in [
        format!("link add pxe0 address {SERVER_MAC} type bridge"),
        format!("addr add {SERVER}/24 dev pxe0"),
        format!("link set port mtu {MTU} master pxe0 up"),
        "link set pxe0 up".to_owned(),
        format!("neigh add {CLIENT} lladdr {CLIENT_MAC} dev pxe0"),
    ] {
        let done = Command::new("ip").args(line.split(' ')).output().unwrap();
        assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let dir = tempfile::tempdir().unwrap();
    let machines = Machines::default();
    machines.bound(CLIENT_MAC, CLIENT);
    let timeline = Timeline::open(Store::open(&dir.path().join("db")).unwrap(), machines).unwrap();
    let mut events = timeline.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ((dhcp, _), (sink, told)) = (mpsc::channel(1), mpsc::channel(100));
    let shutdown = CancellationToken::new();
    let dataplane = (mode != FastPath::Off).then(|| {
        let (dataplane, events, _) =
            Dataplane::load(FastPath::Auto, false).expect("root, and a built object");
        runtime.spawn(events.run(Sinks { dhcp, tftp: sink }, shutdown.clone()));
        let status = dataplane.attach("port", mode);
        assert_eq!(status.reason, None, "{status:?}");
        Arc::new(dataplane) as _
    });
    let tftp = {
        let _inside = runtime.enter();
        Tftp::bind_at(SocketAddrV4::new(SERVER, 69), MTU).unwrap()
    };
    let running = tftp.run(Arc::new(Catalogue), dataplane, told, timeline, shutdown.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(running).unwrap());
        // Also when the client panics, so that the scope ends.
        let _ends = shutdown.drop_guard();
        play(&mut client);
    });
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// A machine's network card.
struct Client {
    tap: File,
    /// Sends requests whose checksum is left to be completed (CHECKSUM_PARTIAL).
    partial: bool,
}

/// `struct virtio_net_hdr`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const VNET_HDR_LEN: usize = 10;
const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;

impl Client {
    /// Sends a request; returns the port that answers, and the answer.
    fn ask(&mut self, port: u16, request: &[u8]) -> (u16, Vec<u8>) {
        self.send(port, 69, request);
        self.receive(port, 1000)
    }

    /// Fetches `/kernel`.
    fn fetch(&mut self, port: u16, blksize: usize) {
        let (server, oack) = self.ask(port, format!("\0\x01/kernel\0octet\0blksize\0{blksize}\0").as_bytes());
        assert_eq!(oack, format!("\0\x06blksize\0{blksize}\0").as_bytes());
        self.rest(port, server, blksize, 0);
    }

    /// Fetches `/kernel` in blocks of 1024, acknowledging `acks` and the last one.
    fn fetch_by_windows(&mut self, port: u16, window: usize, acks: &[usize]) {
        let data = kernel();
        let last = KERNEL_LEN / 1024 + 1;
        let request = format!("\0\x01/kernel\0octet\0blksize\x001024\0windowsize\0{window}\0");
        let (server, oack) = self.ask(port, request.as_bytes());
        assert_eq!(oack, format!("\0\x06blksize\x001024\0windowsize\0{window}\0").as_bytes());
        for ack in acks {
            self.send(port, server, &[0, 4, 0, *ack as u8]);
            for n in ack + 1..=last.min(ack + window) {
                self.expect_data(port, n as u16, &data[(n - 1) * 1024..(n * 1024).min(KERNEL_LEN)]);
            }
        }
        // A repeat of what is under way is not answered at once.
        self.send(port, server, &[0, 4, 0, acks[acks.len() - 1] as u8]);
        self.expect_silence(port, 50);
        self.send(port, server, &[0, 4, 0, last as u8]);
        self.ask(9, b"\0\x02\0octet\0");
    }

    /// Acknowledges block `block` and all that follow.
    fn rest(&mut self, port: u16, server: u16, blksize: usize, block: usize) {
        let data = kernel();
        let blocks = KERNEL_LEN / blksize + 1;
        for block in block..blocks {
            self.send(port, server, &[0, 4, 0, block as u8]);
            let at = block * blksize;
            self.expect_data(port, block as u16 + 1, &data[at..(at + blksize).min(KERNEL_LEN)]);
        }
        self.send(port, server, &[0, 4, 0, blocks as u8]);
        // Without a fast path the daemon has seen the last ACK when it answers the next request.
        self.ask(9, b"\0\x02\0octet\0");
    }

    fn expect_data(&mut self, port: u16, block: u16, data: &[u8]) {
        let (_, packet) = self.receive(port, 1000);
        assert_eq!(packet[..4], [[0, 3], block.to_be_bytes()].concat());
        assert!(packet[4..] == *data, "block {block}: {} bytes, not these {}", packet.len() - 4, data.len());
    }

    fn expect_silence(&mut self, port: u16, ms: u64) {
        if let Some(packet) = self.receive_within(port, Duration::from_millis(ms)) {
            panic!("nothing was due, but {packet:?} came");
        }
    }

    /// Lets pass what comes.
    fn flush_for(&mut self, port: u16, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        while self.receive_within(port, until.saturating_duration_since(Instant::now())).is_some() {}
    }

    fn receive(&mut self, port: u16, ms: u64) -> (u16, Vec<u8>) {
        self.receive_within(port, Duration::from_millis(ms)).unwrap_or_else(|| panic!("no answer in {ms} ms"))
    }

    fn send(&mut self, port: u16, to: u16, payload: &[u8]) {
        let datagram = Datagram {
            source_mac: CLIENT_MAC,
            destination_mac: SERVER_MAC,
            source: CLIENT,
            destination: SERVER,
            source_port: port,
            destination_port: to,
            payload_len: payload.len() as u16,
        };
        let mut frame = vec![0; VNET_HDR_LEN];
        let mut headers = datagram.headers(Checksum::ZERO.bytes(payload));
        if self.partial {
            frame[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            frame[6..10].copy_from_slice(&[34u16.to_ne_bytes(), 6u16.to_ne_bytes()].concat());
            headers[40..42].copy_from_slice(&datagram.pseudo_header().folded().to_be_bytes());
        }
        frame.extend(headers);
        frame.extend(payload);
        frame.resize(frame.len().max(VNET_HDR_LEN + 60), 0);
        self.tap.write_all(&frame).unwrap();
    }

    /// The next datagram to `port`, its sender's port first. Its checksums must be right.
    fn receive_within(&mut self, port: u16, time: Duration) -> Option<(u16, Vec<u8>)> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            // Rounded up: a poll of 0 ms would spin.
            if poll(&mut fds, PollTimeout::try_from(left + Duration::from_millis(1)).unwrap()).unwrap() == 0 {
                return None;
            }
            let mut buf = [0; 16384];
            let read = self.tap.read(&mut buf).unwrap();
            let frame = &buf[VNET_HDR_LEN..read];
            let Some(headers) = frame.first_chunk::<HEADERS_LEN>() else { continue };
            // Others are ARP and IPv6's noise.
            let Ok(datagram) = Datagram::parse(headers, frame.len()) else { continue };
            if datagram.destination_port != port || datagram.source != SERVER {
                continue;
            }
            assert_eq!((datagram.source_mac, datagram.destination_mac), (SERVER_MAC, CLIENT_MAC));
            assert_eq!(buf[0], 0, "the frame's checksum is complete");
            let payload = &frame[HEADERS_LEN..][..usize::from(datagram.payload_len)];
            let (ip, udp) = (&frame[14..34], &frame[34..HEADERS_LEN + payload.len()]);
            assert_eq!(ones_complement(&[ip]), 0xffff, "IPv4 checksum");
            assert_ne!(udp[6..8], [0, 0], "UDP checksum is there");
            assert_eq!(
                ones_complement(&[&ip[12..20], &[0, 17], &udp[4..6], udp]),
                0xffff,
                "UDP checksum of {payload:?}"
            );
            // The same bytes from either path, but for the identification, which a socket's owner
            // does not choose and which means nothing in a datagram with DF (RFC 6864), and the
            // checksum over it.
            let mut plain = *headers;
            let expected = datagram.headers(Checksum::ZERO.bytes(payload));
            plain[18..20].fill(0);
            plain[24..26].copy_from_slice(&expected[24..26]);
            assert_eq!(plain, expected);
            return Some((datagram.source_port, payload.to_vec()));
        }
    }
}

/// RFC 1071, word by word: a second opinion.
fn ones_complement(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words.map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A tap that carries `virtio_net_hdr`s and has no offloads: the kernel completes every checksum
/// that is still open when a frame leaves through it.
fn tap(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all bytes zero is an empty request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = FLAGS;
    // SAFETY: the request outlives the call, which reads and writes no more than it.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &mut request) };
    assert_eq!(done, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    tap
}
