//! Design invariant 4: for every frame that the kernel answers, the daemon would have sent the
//! same bytes. Whole sessions are sent to a daemon alone and to one behind the programs
//! (`BPF_PROG_TEST_RUN`), and compared packet by packet, as are the events that people see.
//!
//! Needs root, for the programs and for a network namespace that catches the frames that they send
//! themselves: all blocks of a window but the last.

mod daemon;
mod frozen;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use pxe_common::Mac;
use pxe_common::map::{self, SessionKey};
use pxe_common::verdict::Hook;
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use super::FastPath as _;
use super::perform::World as _;
use super::server::Server;
use crate::dataplane::tests::{Clones, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, XDP_DROP, XDP_PASS};
use crate::dataplane::tests::{XDP_TX, loaded_with_events, now_ns, run};
use crate::dataplane::{Dataplane, Events};
use crate::machines::timeline::{AnsweredBy, Event, Stage};
use crate::provision::blob::Blob;
use crate::serve::files::{Files, OpenError, Opened};
use daemon::Daemon;
use frozen::Frozen;

const MS: u64 = 1_000_000;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 25300);
const CLIENT_MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const PORTS: Range<u16> = 40000..40008;

/// Sizes around blocks' and chunks' ends, and some for block numbers that wrap once and twice.
const SIZES: [usize; 12] =
    [0, 1, 511, 512, 513, 1024, 5_000, 14_680, 65_536, 3 * 65_536, 8 * 70_001, 8 * 131_100 + 3];

#[derive(Clone, Debug)]
enum Step {
    /// An ACK at this distance from the last received block.
    Ack(i32),
    /// The same, with trailing bytes.
    LongAck(i32),
    /// An ACK on the port of the transfer before.
    OldPort(i32),
    Error(u16),
    /// Bytes to the transfer's port.
    Noise(Vec<u8>),
    /// The request again, as if nothing had arrived.
    AskAgain,
    /// Another request from the same port.
    Ask(Request),
    /// Time passes: so many times 50 ms.
    Wait(u64),
    Tick,
}

#[derive(Clone, Debug)]
struct Request {
    file: usize,
    mode: &'static str,
    options: Vec<(&'static str, u64)>,
    /// Blocks that were acknowledged before we look.
    skip: u32,
}

fn request() -> impl Strategy<Value = Request> {
    let blksize = prop_oneof![
        Just(8u64),
        Just(512),
        Just(1024),
        Just(1432),
        Just(1468),
        8..1500u64,
        1500..9000u64,
        Just(12_000),
        0..70_000u64
    ];
    let window = prop_oneof![Just(1u64), Just(4), Just(16), Just(64), 0..100u64];
    let options = (
        prop::option::weighted(0.8, blksize),
        prop::option::weighted(0.6, window),
        prop::option::of(Just(0u64)),
        prop::option::weighted(0.2, 0..300u64),
    );
    let skip = prop_oneof![6 => Just(0), 2 => 0..40u32, 2 => 65_500..65_560u32, 1 => 131_060..131_080u32];
    let mode = prop_oneof![12 => Just("octet"), 1 => Just("netascii")];
    (0..SIZES.len(), mode, options, skip).prop_map(|(file, mode, (blksize, window, tsize, timeout), skip)| {
        let named = [("blksize", blksize), ("windowsize", window), ("tsize", tsize), ("timeout", timeout)];
        let options = named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Request { file, mode, options, skip }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let noise = prop_oneof![
        Just(vec![0, 3, 0, 1, 7]),
        Just(vec![0, 6]),
        Just(vec![0, 4, 0]),
        Just(vec![0, 5, 0]),
        prop::collection::vec(any::<u8>(), 0..30),
    ];
    prop_oneof![
        40 => Just(Step::Ack(0)),
        6 => (-20..0i32).prop_map(Step::Ack),
        2 => (1..70i32).prop_map(Step::Ack),
        1 => any::<u16>().prop_map(|by| Step::Ack(by.into())),
        1 => Just(Step::LongAck(0)),
        2 => (-2..2i32).prop_map(Step::OldPort),
        1 => prop_oneof![Just(8u16), any::<u16>()].prop_map(Step::Error),
        2 => noise.prop_map(Step::Noise),
        2 => Just(Step::AskAgain),
        5 => request().prop_map(Step::Ask),
        8 => prop_oneof![Just(1u64), Just(2), Just(3), Just(6), Just(20), Just(640)].prop_map(Step::Wait),
        6 => Just(Step::Tick),
    ]
}

#[test]
fn whole_sessions_are_the_same_with_the_programs_and_without() {
    in_namespace(|| {
        let Some(loaded) = loaded_with_events() else { return };
        let mut pair = Pair::new(loaded);
        let mtu = prop_oneof![3 => Just(1500u16), 2 => Just(9000), 1 => Just(16_000)];
        // Now and then the kernel has the file later, and takes over what the daemon began.
        let not_yet = prop_oneof![2 => Just(0), 1 => 1..6u32];
        let session = (mtu, any::<bool>(), not_yet, request(), prop::collection::vec(step(), 1..60));
        let cases = Cases { failure_persistence: None, ..Cases::with_cases(300) };
        let answered = Mutex::new(0);
        let pair = Mutex::new(&mut pair);
        TestRunner::new(cases)
            .run(&session, |(mtu, xdp, not_yet, request, steps)| {
                let mut pair = pair.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                pair.begin(mtu, xdp);
                pair.frozen.state.lock().unwrap().not_yet = not_yet;
                pair.ask(request);
                steps.into_iter().for_each(|step| pair.take(step));
                pair.end();
                *answered.lock().unwrap() += std::mem::take(&mut pair.answered_by_kernel);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
        let answered = answered.into_inner().unwrap();
        assert!(answered > 300, "the kernel answered {answered} frames only");
        let handed_over = pair.into_inner().unwrap().frozen.state.lock().unwrap().handed_over;
        assert!(handed_over > 20, "the kernel took over {handed_over} transfers only");
    });
}

/// Whichever block the kernel begins with, in lock-step and in windows, also where numbers wrap.
#[test]
fn the_kernel_goes_on_where_the_daemon_is() {
    in_namespace(|| {
        let Some(loaded) = loaded_with_events() else { return };
        let mut pair = Pair::new(loaded);
        for (skip, window, not_yet) in
            [(0, 1, 1), (0, 1, 4), (0, 4, 3), (65_530, 1, 5), (65_520, 8, 2), (131_000, 2, 3)]
        {
            pair.begin(1500, false);
            pair.frozen.state.lock().unwrap().not_yet = not_yet;
            let options = vec![("blksize", 8), ("windowsize", window)];
            pair.ask(Request { file: 11, mode: "octet", options, skip });
            let key = pair.key(pair.port.unwrap());
            for asked in 0..40 {
                // It is asked at the first ACK, and 10 ms later at the soonest.
                let in_kernel = pair.frozen.dataplane.look(&key).is_some();
                assert_eq!(in_kernel, asked >= not_yet, "{skip} {window}: {asked}");
                assert_eq!(pair.answered_by_kernel as u32, asked.saturating_sub(not_yet));
                // A lost window, its repeat, and an ACK that comes twice change nothing.
                if asked == not_yet + 5 {
                    (0..7).for_each(|_| pair.take(Step::Wait(1)));
                    pair.take(Step::Tick);
                }
                pair.take(Step::Wait(1));
                pair.take(Step::Ack(0));
                if asked == not_yet + 7 {
                    pair.take(Step::Ack(-(window as i32)));
                }
            }
            pair.take(Step::Error(0));
            pair.answered_by_kernel = 0;
            pair.end();
        }
    });
}

/// Of an ACK that was on its way twice when the kernel took over, the daemon gets the second one.
#[test]
fn what_comes_back_is_handed_over_again() {
    in_namespace(|| {
        let Some(loaded) = loaded_with_events() else { return };
        let mut pair = Pair::new(loaded);
        pair.begin(1500, false);
        pair.frozen.state.lock().unwrap().not_yet = 1;
        pair.ask(Request { file: 11, mode: "octet", options: vec![("blksize", 512)], skip: 0 });
        let (port, before) = (pair.port.unwrap(), pair.frozen.state.lock().unwrap().handed_over);
        let key = pair.key(port);
        for times in 1..=4 {
            let twice = [[0, 4], pair.last_block.to_be_bytes()].concat();
            pair.take(Step::Wait(1));
            pair.take(Step::Ack(0));
            assert_eq!(pair.frozen.state.lock().unwrap().handed_over - before, times);
            let now_ns = pair.frozen.now();
            pair.alone.packet(port, &twice, now_ns);
            pair.with.packet(port, &twice, now_ns);
            pair.compare();
            assert_eq!(pair.frozen.dataplane.look(&key), None, "the daemon answers the next");
        }
        pair.take(Step::Wait(1));
        pair.take(Step::Ack(0));
        assert_eq!(pair.frozen.state.lock().unwrap().handed_over - before, 4, "enough of it");
        pair.take(Step::Error(0));
        pair.answered_by_kernel = 0;
        pair.end();
    });
}

#[test]
fn a_window_of_the_kernels_is_repeated_by_the_daemon_and_given_up() {
    in_namespace(|| {
        let Some(loaded) = loaded_with_events() else { return };
        let mut pair = Pair::new(loaded);
        for window in [1, 4, 64] {
            pair.begin(1500, false);
            let options = vec![("blksize", 512), ("windowsize", window)];
            pair.ask(Request { file: 8, mode: "octet", options, skip: 0 });
            pair.take(Step::Ack(0));
            pair.take(Step::Ack(0));
            assert_eq!(pair.answered_by_kernel, 2, "window {window}");
            pair.answered_by_kernel = 0;
            let key = pair.key(pair.port.unwrap());
            let mut repeats = Vec::new();
            for at in (50..=31_000).step_by(50) {
                pair.take(Step::Wait(1));
                pair.with.time(pair.frozen.now());
                pair.alone.time(pair.frozen.now());
                let sent = pair.with.world.sent.len();
                assert!(sent == 0 || sent as u64 == window, "the whole window");
                repeats.extend((sent > 0).then_some(at));
                pair.compare();
            }
            assert_eq!(repeats[..5], [300, 900, 2_100, 4_500, 9_300]);
            assert_eq!(pair.frozen.dataplane.look(&key), None, "the grant is gone");
            let told = pair.with.events.try_recv().unwrap();
            assert_eq!(told.stage, Stage::Failed);
            assert!(told.cause.unwrap().contains(&format!("stopped answering after block {window} of 129")));
            let _ = pair.alone.events.try_recv();
            pair.end();
        }
    });
}

#[test]
fn netascii_and_blocks_that_the_programs_do_not_send_are_the_daemons() {
    in_namespace(|| {
        let Some(loaded) = loaded_with_events() else { return };
        let mut pair = Pair::new(loaded);
        let largest = u64::from(map::MAX_BLKSIZE);
        for (mode, blksize, by_kernel) in
            [("octet", largest, true), ("octet", largest + 1, false), ("netascii", 512, false)]
        {
            pair.begin(16_000, false);
            pair.ask(Request { file: 7, mode, options: vec![("blksize", blksize)], skip: 0 });
            let key = pair.key(pair.port.unwrap());
            assert_eq!(pair.frozen.dataplane.look(&key).is_some(), by_kernel, "{mode} {blksize}");
            while pair.port.is_some() && !pair.done() {
                pair.take(Step::Ack(0));
            }
            assert_eq!(pair.answered_by_kernel > 0, by_kernel);
            pair.answered_by_kernel = 0;
            let by = if by_kernel { AnsweredBy::Tc } else { AnsweredBy::Daemon };
            assert_eq!(pair.with.events.try_recv().unwrap().answered_by, by);
            let _ = pair.alone.events.try_recv();
            pair.end();
        }
    });
}

/// Two appliances, one with a fast path, and their common client.
struct Pair {
    alone: Daemon,
    with: Daemon,
    frozen: Arc<Frozen>,
    events: Events,
    clones: Clones,
    xdp: bool,
    request: Vec<u8>,
    /// Numbers of the data ports that answered last, and before.
    port: Option<usize>,
    old_port: Option<usize>,
    last_block: u16,
    answered_by_kernel: usize,
}

impl Pair {
    fn new((dataplane, events): (Dataplane, Events)) -> Self {
        let frozen = Arc::new(Frozen { dataplane, state: Mutex::default() });
        Self {
            alone: Daemon::new(None),
            with: Daemon::new(Some(frozen.clone())),
            frozen,
            events,
            clones: Clones::new(),
            xdp: false,
            request: Vec::new(),
            port: None,
            old_port: None,
            last_block: 0,
            answered_by_kernel: 0,
        }
    }

    fn begin(&mut self, mtu: u16, xdp: bool) {
        // Clean up after a failed run, so that the next one, with a smaller case, is not misled.
        let left: Vec<_> = self.frozen.state.lock().unwrap().sessions.keys().copied().collect();
        for key in &left {
            self.frozen.close(key);
        }
        self.alone.begin(mtu);
        self.with.begin(mtu);
        self.clones.take();
        while self.events.next().is_some() {}

        let mut state = self.frozen.state.lock().unwrap();
        (state.now_ns, state.not_yet) = (now_ns(), 0);
        drop(state);
        (self.xdp, self.port, self.old_port) = (xdp, None, None);
    }

    fn end(&mut self) {
        let now_ns = self.frozen.now();
        self.alone.input(now_ns, Server::shut_down);
        self.with.input(now_ns, Server::shut_down);
        self.compare_timelines();
        assert!(self.frozen.state.lock().unwrap().sessions.is_empty(), "every grant was closed");
    }

    /// Whether the last block came.
    fn done(&self) -> bool {
        self.alone.server.is_idle()
    }

    fn take(&mut self, step: Step) {
        let near = |by: i32| self.last_block.wrapping_add_signed(by as i16).to_be_bytes();
        let ack = |by| [[0, 4], near(by)].concat();
        match step {
            Step::Ack(by) => self.send(self.port, &ack(by)),
            Step::LongAck(by) => self.send(self.port, &[ack(by), vec![0; 3]].concat()),
            Step::OldPort(by) => self.send(self.old_port, &ack(by)),
            Step::Error(code) => {
                self.send(self.port, &[&[0, 5][..], &code.to_be_bytes(), b"User aborted\0"].concat());
            }
            Step::Noise(bytes) => self.send(self.port, &bytes),
            Step::AskAgain => self.ask_bytes(self.request.clone(), 0),
            Step::Ask(request) => self.ask(request),
            Step::Wait(times) => {
                self.frozen.wait(times * 50 * MS);
                // The daemon looks when a timeout is due. If it slept for a second, it would take the time of the
                // kernel's retransmission for that of the first acknowledgement.
                if times >= 2 {
                    self.take(Step::Tick);
                }
            }
            Step::Tick => {
                let now_ns = self.frozen.now();
                self.alone.time(now_ns);
                self.with.time(now_ns);
                // The programs do not know of the daemon's retransmissions, and may retransmit a block again that
                // it has just sent. Once the block may be lost, both do.
                if !self.alone.world.sent.is_empty() {
                    self.frozen.wait(100 * MS);
                }
                self.compare();
            }
        }
    }

    fn ask(&mut self, request: Request) {
        let Request { file, mode, options, skip } = request;
        let mut bytes = format!("\0\x01{}\0{mode}\0", SIZES[file]).into_bytes();
        for (name, value) in options {
            bytes.extend(format!("{name}\0{value}\0").bytes());
        }
        self.ask_bytes(bytes, skip);
    }

    fn ask_bytes(&mut self, request: Vec<u8>, skip: u32) {
        let now_ns = self.frozen.now();
        self.frozen.state.lock().unwrap().skip = skip;
        self.alone.ask(&request, skip, now_ns);
        self.with.ask(&request, skip, now_ns);
        self.request = request;
        if let Some((port, ..)) = self.alone.world.sent.last() {
            if self.port != Some(*port) {
                (self.old_port, self.port) = (self.port, Some(*port));
            }
            self.last_block = 0;
        }
        self.compare();
        // The blocks in flight after the skipped part have arrived, too.
        if let Some(acked) = self.port.and_then(|port| self.frozen.skipped(&self.key(port))) {
            self.last_block = acked;
        }
    }

    /// Sends a packet to both.
    fn send(&mut self, port: Option<usize>, payload: &[u8]) {
        let Some(port) = port else { return };
        let now_ns = self.frozen.now();
        self.alone.packet(port, payload, now_ns);

        let datagram = Datagram {
            source_mac: CLIENT_MAC,
            destination_mac: SERVER_MAC,
            source: *CLIENT.ip(),
            destination: SERVER,
            source_port: CLIENT.port(),
            destination_port: PORTS.start + port as u16,
            payload_len: payload.len() as u16,
        };
        let mut frame = frame_of(&datagram, payload);
        frame.resize(frame.len().max(60), 0);
        let key = self.key(port);
        self.frozen.thaw(&key);
        let frames = self.programs(&frame);
        self.frozen.freeze(&key);
        while let Some(event) = self.events.next() {
            self.with.input(now_ns, |server| server.on_event(&event));
        }
        // The timeouts follow the client's round-trip time as the daemon sees it. With equally many looks both
        // see the same.
        if let Some(session) = self.frozen.look(&key) {
            self.with.server.observe(&key, &session, now_ns);
        }
        match frames {
            None => self.with.packet(port, payload, now_ns),
            Some(frames) => {
                self.answered_by_kernel += usize::from(!frames.is_empty());
                for frame in frames {
                    let payload = &frame[HEADERS_LEN..];
                    assert_eq!(frame, frame_of(&datagram.reply(payload.len() as u16), payload));
                    self.with.world.send(port, CLIENT, payload);
                }
            }
        }
        self.compare();
    }

    /// The programs' answer; `None` if they pass the frame.
    fn programs(&self, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
        let dataplane = &self.frozen.dataplane;
        if self.xdp {
            match run(dataplane, Hook::Xdp, frame) {
                (XDP_TX, out) => return Some(vec![out]),
                (XDP_DROP, _) => return Some(Vec::new()),
                (verdict, out) => assert!(verdict == XDP_PASS && out == frame, "passed unchanged"),
            }
        }
        let (verdict, out) = run(dataplane, Hook::Tc, frame);
        let mut frames = self.clones.take();
        match verdict {
            TC_ACT_REDIRECT => frames.push(out),
            TC_ACT_SHOT => assert!(frames.is_empty(), "a window that broke off"),
            verdict => {
                assert!(verdict == TC_ACT_UNSPEC && out == frame && frames.is_empty(), "passed unchanged");
                return None;
            }
        }
        Some(frames)
    }

    /// Asserts that both sent the same, and show the same.
    fn compare(&mut self) {
        let sent = |daemon: &mut Daemon| {
            let mut sent = std::mem::take(&mut daemon.world.sent);
            // Transfers that are repeated at the same tick have no order; a transfer's packets do.
            sent.sort_by_key(|(port, ..)| *port);
            sent
        };
        let (alone, with) = (sent(&mut self.alone), sent(&mut self.with));
        let brief = |sent: &[(usize, SocketAddrV4, Vec<u8>)]| {
            let brief = |(port, _, packet): &(usize, _, Vec<u8>)| {
                format!("{port}: {:02x?}.. {} bytes", &packet[..packet.len().min(8)], packet.len())
            };
            sent.iter().map(brief).collect::<Vec<_>>()
        };
        assert!(with == alone, "{:#?}\nis not\n{:#?}", brief(&with), brief(&alone));
        for (port, _, packet) in &alone {
            if let ([0, 3, a, b, ..], true) = (&packet[..], self.port == Some(*port)) {
                self.last_block = u16::from_be_bytes([*a, *b]);
            }
        }
        let fetching = |daemon: &Daemon| daemon.machines.get(CLIENT_MAC).unwrap().fetching;
        assert_eq!(fetching(&self.with), fetching(&self.alone));
        assert_eq!(self.with.server.is_idle(), self.alone.server.is_idle());
    }

    /// The timelines read the same, but for who answered.
    fn compare_timelines(&mut self) {
        let told = |daemon: &mut Daemon| {
            let told = |e: Event| format!("{:?}", (e.stage, e.mac, e.bytes, e.detail, e.duration, e.cause));
            let mut told: Vec<_> = std::iter::from_fn(|| daemon.events.try_recv().ok()).map(told).collect();
            // Transfers that expire at the same tick have no order.
            told.sort_unstable();
            told
        };
        assert_eq!(told(&mut self.with), told(&mut self.alone));
    }

    fn key(&self, port: usize) -> SessionKey {
        SessionKey {
            client: CLIENT.ip().octets(),
            server: SERVER.octets(),
            client_port: CLIENT.port(),
            server_port: PORTS.start + port as u16,
        }
    }
}

fn frame_of(datagram: &Datagram, payload: &[u8]) -> Vec<u8> {
    [&datagram.headers(Checksum::ZERO.bytes(payload))[..], payload].concat()
}

/// Files are named by their length.
struct Pool;

impl Files for Pool {
    fn open(&self, path: &str, _: Ipv4Addr) -> Result<Opened, OpenError> {
        static BLOBS: OnceLock<HashMap<usize, Blob>> = OnceLock::new();
        let blobs = BLOBS.get_or_init(|| {
            let bytes =
                |len| (0..len).map(|i: usize| (i.wrapping_mul(31) ^ (i >> 8)) as u8).collect::<Vec<_>>();
            SIZES.into_iter().map(|len| (len, Blob::from_bytes(bytes(len)))).collect()
        });
        let blob = path.parse().ok().and_then(|len: usize| blobs.get(&len)).ok_or(OpenError::NotFound)?;
        Ok(Opened { blob: blob.clone(), stage: Some(Stage::Kernel) })
    }
}

/// Runs in a network namespace of its own, whose loopback takes what the programs send.
fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: root is needed for a network namespace");
        return;
    }
    let play = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        test();
    };
    let joined = std::thread::scope(|scope| scope.spawn(play).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
