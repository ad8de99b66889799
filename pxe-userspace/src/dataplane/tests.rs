//! The programs in the kernel, a frame at a time (`BPF_PROG_TEST_RUN`). They need root and the
//! built object, and say so when they are skipped.

use std::num::NonZeroU16;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use pxe_common::Mac;
use pxe_common::map::{self, CHUNK_STRIDE, EVENTS_BYTES, Event, EventKind, SessionKey, Stations, name};
use pxe_common::tftp::Session;
use pxe_common::verdict::Hook;
use pxe_common::wire::{Checksum, Datagram};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::events::HEARD_EVERY;
use super::{Dataplane, Events, LoadError, ProgramState, Sinks, lock};
use crate::config::FastPath;
use crate::provision::blob::Blob;
use crate::serve::tftp::FastPath as _;

pub(super) const ACK: Datagram = Datagram {
    source_mac: Mac([0x52, 0x54, 0, 0x77, 0, 1]),
    destination_mac: Mac([2, 0, 0, 0, 0, 1]),
    source: std::net::Ipv4Addr::new(10, 77, 0, 100),
    destination: std::net::Ipv4Addr::new(10, 77, 0, 1),
    source_port: 25300,
    destination_port: 40000,
    payload_len: 4,
};

/// Those of [`ACK`].
pub(super) const STATIONS: Stations = Stations { client: ACK.source_mac, server: ACK.destination_mac };

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const TC_ACT_UNSPEC: u32 = u32::MAX;
pub(crate) const TC_ACT_SHOT: u32 = 2;
pub(crate) const TC_ACT_REDIRECT: u32 = 7;

pub(super) fn loaded() -> Option<Dataplane> {
    loaded_with_events().map(|(dataplane, _)| dataplane)
}

/// None when the test has to be skipped.
pub(crate) fn loaded_with_events() -> Option<(Dataplane, Events)> {
    match Dataplane::load(FastPath::Auto, false) {
        Ok((dataplane, events, _logs)) => {
            dataplane.blobs.take_all_sizes();
            for program in dataplane.kernel().programs {
                assert_eq!(program.state, ProgramState::Loaded, "{program:#?}");
            }
            Some((dataplane, events))
        }
        Err(why @ (LoadError::NotBuilt | LoadError::Object(_)))
            if !nix::unistd::Uid::effective().is_root() =>
        {
            eprintln!("skipped, root is needed: {why}");
            None
        }
        Err(why @ LoadError::NotBuilt) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(why) => panic!("{why:?}"),
    }
}

pub(super) fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8)) as u8).collect()
}

pub(super) fn session(len: usize, blksize: u16) -> Session {
    Session::new(len as u64, NonZeroU16::new(blksize).unwrap(), NonZeroU16::MIN, 100).unwrap()
}

pub(crate) fn now_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

/// An ACK as a NIC delivers it: padded to 60 bytes.
pub(super) fn ack_frame(block: u16) -> Vec<u8> {
    let [a, b] = block.to_be_bytes();
    let payload = [0, 4, a, b];
    let mut frame = ACK.headers(Checksum::ZERO.bytes(&payload)).to_vec();
    frame.extend(payload);
    frame.resize(60, 0);
    frame
}

/// The verdict of the program at `hook` about a frame, and the frame afterwards.
pub(crate) fn run(dataplane: &Dataplane, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; 16384];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let ports = lock(&dataplane.ports);
    let entry = ports.ebpf().program(name::entry(hook)).unwrap();
    let result = match hook {
        Hook::Xdp => <&Xdp>::try_from(entry).unwrap().test_run(options),
        Hook::Tc => <&SchedClassifier>::try_from(entry).unwrap().test_run(options),
    }
    .unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Writes a session's times.
pub(crate) fn retime(dataplane: &Dataplane, key: &SessionKey, session: &map::Session) {
    lock(&dataplane.sessions).map.insert(key, session, 0).unwrap();
}

/// The frames that programs in `test_run` send beside their answer. They leave by the loopback of the
/// thread's namespace, which has to be up.
pub(crate) struct Clones(OwnedFd);

impl Clones {
    pub(crate) fn new() -> Self {
        let (family, protocol) = (AddressFamily::Packet, SockProtocol::EthAll);
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK, protocol).unwrap();
        // Room for the largest window, twice: the loopback brings every frame back.
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        Self(socket)
    }

    /// What was sent since the last time.
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        let (mut sent, mut buf) = (Vec::new(), vec![0; 16384]);
        while let Ok((len, Some(from))) = recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buf) {
            if from.pkttype() == libc::PACKET_OUTGOING {
                sent.push(buf[..len].to_vec());
            }
        }
        sent
    }
}

/// RFC 1071, word by word: an independent check of the programs' checksums.
fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(super) fn check_data_frame(frame: &[u8], block: u16, data: &[u8]) {
    assert_eq!(frame.len(), 46 + data.len());
    assert_eq!(frame[0..6], ACK.source_mac.0);
    assert_eq!(frame[6..12], ACK.destination_mac.0);
    let (ip, udp) = (&frame[14..34], &frame[34..]);
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), 32 + data.len());
    assert_eq!(ip[12..20], [10, 77, 0, 1, 10, 77, 0, 100]);
    assert_eq!(ones_complement(&[ip]), 0xffff, "IPv4 checksum");
    assert_eq!(udp[..4], [40000u16.to_be_bytes(), 25300u16.to_be_bytes()].concat());
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), 12 + data.len());
    assert_ne!(udp[6..8], [0, 0], "UDP checksum is there");
    assert_eq!(ones_complement(&[&ip[12..20], &[0, 17], &udp[4..6], udp]), 0xffff, "UDP checksum");
    assert_eq!(udp[8..12], [[0, 3], block.to_be_bytes()].concat());
    assert!(udp[12..] == *data, "block {block}'s data");
}

fn open(dataplane: &Dataplane, bytes: &[u8], blksize: u16) -> SessionKey {
    let key = SessionKey::of(&ACK);
    let transfer = session(bytes.len(), blksize);
    dataplane
        .open(key, STATIONS, &Blob::from_bytes(bytes.to_vec()), transfer, now_ns(), Duration::from_secs(30))
        .unwrap();
    key
}

#[test]
fn a_whole_transfer_at_either_hook() {
    let Some(dataplane) = loaded() else { return };
    for (hook, answered, dropped) in [(Hook::Xdp, XDP_TX, XDP_DROP), (Hook::Tc, TC_ACT_REDIRECT, TC_ACT_SHOT)]
    {
        for (len, blksize) in
            [(0, 512), (511, 512), (512, 512), (513, 512), (7, 8), (3 * CHUNK_STRIDE, 1024), (200_001, 1467)]
        {
            let bytes = contents(len);
            let key = open(&dataplane, &bytes, blksize);
            let blocks = len / usize::from(blksize) + 1;
            for block in 1..=blocks {
                let (verdict, frame) = run(&dataplane, hook, &ack_frame(block as u16 - 1));
                assert_eq!(verdict, answered, "{hook:?}, {len} bytes by {blksize}, block {block}");
                let at = (block - 1) * usize::from(blksize);
                let end = (at + usize::from(blksize)).min(len);
                check_data_frame(&frame, block as u16, &bytes[at..end]);
            }
            let last = ack_frame(blocks as u16);
            assert_eq!(run(&dataplane, hook, &last).0, dropped, "an event tells the daemon");
            let seen = dataplane.close(&key).unwrap();
            assert!(seen.transfer.finished());
            let sent = [seen.sent_by_xdp, seen.sent_by_tc][hook as usize];
            assert_eq!(sent as usize, blocks);
        }
    }
}

#[test]
fn block_numbers_wrap_in_the_kernel() {
    let Some(dataplane) = loaded() else { return };
    let bytes = contents(70_000 * 8);
    open(&dataplane, &bytes, 8);
    for block in 1..=70_001u32 {
        let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame((block - 1) as u16));
        assert_eq!(verdict, TC_ACT_REDIRECT, "block {block}");
        if block % 1000 == 0 || (65_530..65_540).contains(&block) {
            let at = (block as usize - 1) * 8;
            check_data_frame(&frame, block as u16, &bytes[at..at + 8]);
        }
    }
}

#[test]
fn what_no_grant_covers_passes_unchanged() {
    let Some(dataplane) = loaded() else { return };
    let key = open(&dataplane, &contents(5000), 512);
    let plain = ack_frame(0);
    let with = |at: usize, byte: u8| {
        let mut frame = plain.clone();
        frame[at] = byte;
        frame
    };
    // Another valid header.
    let sound = |mut frame: Vec<u8>| {
        frame[24..26].fill(0);
        let sum = !ones_complement(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let cases = [
        ("arp", with(13, 0x06)),
        ("vlan", {
            let mut frame = with(12, 0x81);
            frame[13] = 0;
            frame
        }),
        ("ip-header", with(14, 0x46)),
        ("fragment", with(20, 0x20)),
        ("other-ipv4", with(23, 6)),
        ("length", with(17, 200)),
        ("dhcp-message", {
            let mut f = with(36, 0);
            f[37] = 67;
            f
        }),
        ("dhcp", {
            let mut f = with(36, (4011u16 >> 8) as u8);
            f[37] = 4011u16 as u8;
            f
        }),
        ("tftp-request", {
            let mut f = with(36, 0);
            f[37] = 69;
            f
        }),
        ("other-udp", with(37, 1)),
        ("other-udp", sound(with(29, 101))),
        ("ip-checksum", with(29, 101)),
        ("ip-checksum", with(24, plain[24] ^ 0x10)),
        ("tftp-station", with(11, 9)),
        ("tftp-station", with(5, 9)),
        ("tftp-not-ack", with(43, 6)),
    ];
    for (reason, frame) in cases {
        for (hook, passed) in [(Hook::Xdp, XDP_PASS), (Hook::Tc, TC_ACT_UNSPEC)] {
            let count = |d: &Dataplane| {
                let counters = d.counters();
                match hook {
                    Hook::Xdp => counters.xdp[reason],
                    Hook::Tc => counters.tc[reason],
                }
            };
            let before = count(&dataplane);
            assert_eq!(run(&dataplane, hook, &frame), (passed, frame.clone()), "{reason}");
            assert_eq!(count(&dataplane), before + 1, "{hook:?} {reason}");
        }
    }
    let seen = dataplane.close(&key).unwrap();
    assert_eq!(seen.transfer, session(5000, 512), "the session did not move");
    assert_eq!(run(&dataplane, Hook::Tc, &plain).0, TC_ACT_UNSPEC, "the grant is gone");
}

/// Blocks too long for one helper call. XDP has no room for them in one page; `test_run`'s skb has.
#[test]
fn jumbo_blocks_are_copied_piece_by_piece() {
    let Some(dataplane) = loaded() else { return };
    for blksize in [2048, 2049, 3000] {
        let bytes = contents(2 * CHUNK_STRIDE + 77);
        open(&dataplane, &bytes, blksize);
        for (block, data) in (1..).zip(bytes.chunks(blksize.into())) {
            let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame(block - 1));
            assert_eq!(verdict, TC_ACT_REDIRECT, "blocks of {blksize}, block {block}");
            check_data_frame(&frame, block, data);
        }
    }
}

#[test]
fn an_error_ends_the_transfer_in_the_kernel_too() {
    let Some((dataplane, mut events)) = loaded_with_events() else { return };
    for (hook, dropped, passed) in [(Hook::Xdp, XDP_DROP, XDP_PASS), (Hook::Tc, TC_ACT_SHOT, TC_ACT_UNSPEC)] {
        let key = open(&dataplane, &contents(5000), 512);
        let mut error = ack_frame(8);
        error[43] = 5;
        assert_eq!(run(&dataplane, hook, &error).0, dropped, "an event tells the daemon");
        let event = events.next().unwrap();
        assert_eq!((event.kind(), event.transfer()), (Some(EventKind::Aborted), (key, 8)));
        assert_eq!(run(&dataplane, hook, &ack_frame(0)), (passed, ack_frame(0)));
        assert_eq!(run(&dataplane, hook, &error), (passed, error), "once is enough");
        assert!(dataplane.look(&key).unwrap().ended());
        assert_eq!(events.next(), None);
    }
    let counters = dataplane.counters();
    assert_eq!((counters.tc["tftp-aborted"], counters.xdp["tftp-aborted"]), (1, 1));
}

#[test]
fn the_daemon_is_told_of_the_beginning_each_quarter_and_the_end() {
    let Some((dataplane, mut events)) = loaded_with_events() else { return };
    for hook in [Hook::Xdp, Hook::Tc] {
        let key = open(&dataplane, &contents(99 * 8 + 1), 8);
        let told: Vec<_> = (0..=100u16)
            .filter_map(|block| {
                run(&dataplane, hook, &ack_frame(block));
                let event = events.next()?;
                assert_eq!((event.hook, event.transfer()), (hook as u16, (key, 0)));
                Some((block, event.kind().unwrap()))
            })
            .collect();
        let mark = EventKind::Mark;
        assert_eq!(told, [(0, mark), (25, mark), (50, mark), (75, mark), (100, EventKind::Finished)]);
        assert_eq!(events.next(), None);
    }
}

/// The first wakes the daemon, the others follow without a wake-up: within a millisecond, unless this CPU is taken away.
#[tokio::test]
async fn events_that_wake_nobody_are_found_behind_the_one_that_did() {
    let Some((dataplane, events)) = loaded_with_events() else { return };
    let (dhcp, _) = mpsc::channel(64);
    let (tftp, mut told) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let running = tokio::spawn(events.run(Sinks { dhcp, tftp }, stop.clone()));
    for _ in 0..20 {
        open(&dataplane, b"", 512);
        for (block, kind) in [(0, EventKind::Mark), (1, EventKind::Finished)] {
            run(&dataplane, Hook::Tc, &ack_frame(block));
            // Less than the interval at which the ring is read in any case.
            let event = tokio::time::timeout(HEARD_EVERY / 2, told.recv()).await.unwrap().unwrap();
            assert_eq!(event.kind(), Some(kind));
        }
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// However full the ring is, an event is delivered or counted, and no transfer's end is lost.
#[test]
fn what_a_full_ring_does_not_take_is_counted() {
    let Some((dataplane, mut events)) = loaded_with_events() else { return };
    let (mut happened, mut passed) = (0, 0);
    let mut transfer = || {
        open(&dataplane, b"", 512);
        assert_eq!(run(&dataplane, Hook::Tc, &ack_frame(0)).0, TC_ACT_REDIRECT);
        let (verdict, _) = run(&dataplane, Hook::Tc, &ack_frame(1));
        assert!(verdict == TC_ACT_SHOT || verdict == TC_ACT_UNSPEC);
        happened += 2;
        passed += u64::from(verdict == TC_ACT_UNSPEC);
    };
    for _ in 0..EVENTS_BYTES / Event::LEN / 2 {
        transfer();
    }
    let read = |events: &mut Events| std::iter::from_fn(|| events.next()).count() as u64;
    let mut delivered = read(&mut events);
    transfer();
    assert_eq!(read(&mut events), 2, "there is room again");
    delivered += 2;
    let counters = dataplane.counters();
    let lost = counters.tc["events-lost"];
    assert!(lost > 0, "the ring was full: {counters:?}");
    assert_eq!(delivered + lost, happened);
    assert_eq!(counters.tc["tftp-untold"], passed, "the daemon gets the packet instead");
    assert_eq!(counters.tc["tftp-finished"] + passed, happened / 2);
}

#[test]
fn windows_are_not_for_xdp() {
    let Some(dataplane) = loaded() else { return };
    let (blksize, window) = (NonZeroU16::new(512).unwrap(), NonZeroU16::new(4).unwrap());
    let transfer = Session::new(5000, blksize, window, 100).unwrap();
    let blob = Blob::from_bytes(contents(5000));
    let key = SessionKey::of(&ACK);
    dataplane.open(key, STATIONS, &blob, transfer, now_ns(), Duration::from_secs(30)).unwrap();
    assert_eq!(run(&dataplane, Hook::Xdp, &ack_frame(0)), (XDP_PASS, ack_frame(0)));
    assert_eq!(dataplane.counters().xdp["tftp-window"], 1);
    // The window's last block is the whole file's: XDP sends that.
    let (verdict, frame) = {
        let mut transfer = transfer;
        transfer.on_ack(pxe_common::tftp::BlockNo(0), 0);
        transfer.on_ack(pxe_common::tftp::BlockNo(4), 0);
        transfer.on_ack(pxe_common::tftp::BlockNo(8), 0);
        dataplane.open(key, STATIONS, &blob, transfer, now_ns(), Duration::from_secs(30)).unwrap();
        run(&dataplane, Hook::Xdp, &ack_frame(9))
    };
    assert_eq!(verdict, XDP_TX);
    check_data_frame(&frame, 10, &contents(5000)[9 * 512..]);
}

#[test]
fn duplicates_and_strangers_are_dropped_and_grants_end() {
    let Some(dataplane) = loaded() else { return };
    let key = open(&dataplane, &contents(5000), 512);
    for (hook, dropped) in [(Hook::Xdp, XDP_DROP), (Hook::Tc, TC_ACT_SHOT)] {
        run(&dataplane, Hook::Tc, &ack_frame(0));
        assert_eq!(run(&dataplane, hook, &ack_frame(0)).0, dropped, "its answer is under way");
        assert_eq!(run(&dataplane, hook, &ack_frame(9)).0, dropped, "never sent");
    }
    std::thread::sleep(Duration::from_millis(101));
    let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame(0));
    assert_eq!(verdict, TC_ACT_REDIRECT, "its answer may be lost");
    check_data_frame(&frame, 1, &contents(5000)[..512]);

    let blob = Blob::from_bytes(contents(5000));
    let ended = now_ns() - 1_000_000_000;
    dataplane.open(key, STATIONS, &blob, session(5000, 512), ended, Duration::from_millis(500)).unwrap();
    assert_eq!(run(&dataplane, Hook::Tc, &ack_frame(0)).0, TC_ACT_UNSPEC);
    assert_eq!(dataplane.counters().tc["tftp-expired"], 1);
}

#[test]
fn debug_lines_reach_the_log_when_they_are_wanted() {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    struct Collect;
    impl log::Log for Collect {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            lock(&LINES).push(record.args().to_string());
        }
        fn flush(&self) {}
    }
    if loaded().is_none() {
        return;
    }
    log::set_logger(&Collect).expect("no other test sets one");
    log::set_max_level(log::LevelFilter::Debug);
    let (dataplane, _events, mut logs) = Dataplane::load(FastPath::Auto, true).unwrap();
    open(&dataplane, &contents(50_000), 512);
    run(&dataplane, Hook::Tc, &ack_frame(0));
    logs.flush();
    assert!(lock(&LINES).iter().any(|l| l.contains("blocks 1 to 1 for 10.77.0.100")), "{:?}", lock(&LINES));
}
