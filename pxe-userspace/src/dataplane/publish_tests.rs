//! Blobs that are published and removed while programs use them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pxe_common::map::{Chunk, SessionKey};
use pxe_common::tftp::{BlockNo, Session};
use pxe_common::verdict::Hook;

use super::publish::Limits;
use super::tests::{
    ACK, STATIONS, TC_ACT_REDIRECT, ack_frame, check_data_frame, contents, loaded, now_ns, run, session,
};
use super::{Dataplane, lock};
use crate::provision::blob::{Blob, BlobKey, ReadAt};
use crate::serve::tftp::{Declined, FastPath as _};

const IDLE: Duration = Duration::from_secs(30);
const CHUNK: u64 = size_of::<Chunk>() as u64;

fn key(client_port: u16) -> SessionKey {
    SessionKey { client_port, ..SessionKey::of(&ACK) }
}

fn open(
    dataplane: &Dataplane,
    key: SessionKey,
    blob: &Blob,
    transfer: Session,
) -> Result<(u32, u32), Declined> {
    dataplane.open(key, STATIONS, blob, transfer, now_ns(), IDLE)?;
    let seen = dataplane.look(&key).unwrap();
    Ok((seen.blob, seen.sums))
}

#[test]
fn a_blob_is_published_once_and_retracted_when_room_is_needed() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { least: 0, at_once: u64::MAX, all: 100 * CHUNK, unused: 5 * CHUNK });
    let (small, big) = (Blob::from_bytes(contents(5000)), Blob::from_bytes(contents(200_000)));
    let open = |port, blob: &Blob, size| {
        open(&dataplane, key(port), blob, session(blob.len() as usize, size)).unwrap()
    };
    let first = open(1, &small, 512);
    assert_eq!(open(2, &small, 512), first);
    let other = open(3, &small, 1024);
    assert_eq!(other.0, first.0);
    assert_ne!(other.1, first.1, "sums are for one block size");
    assert_eq!(dataplane.published_bytes(), 5000);

    open(4, &big, 1468);
    dataplane.close(&key(4));
    assert_eq!(dataplane.published_bytes(), 5000 + 200_000, "the next machine asks for the same");
    let bigger = Blob::from_bytes(contents(100_000));
    open(5, &bigger, 1468);
    assert_eq!(dataplane.published_bytes(), 5000 + 100_000, "what is in use stays");
}

#[test]
fn what_is_unused_goes_when_it_is_more_than_is_kept() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { least: 0, at_once: u64::MAX, all: 100 * CHUNK, unused: CHUNK });
    let big = Blob::from_bytes(contents(200_000));
    open(&dataplane, key(1), &big, session(200_000, 512)).unwrap();
    open(&dataplane, key(2), &big, session(200_000, 512)).unwrap();
    dataplane.close(&key(1));
    assert!(!dataplane.blobs.has_excess(), "in use");
    dataplane.close(&key(2));
    gone(&dataplane);
}

#[test]
fn a_transfer_that_was_taken_back_keeps_its_blob_until_it_is_closed() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { least: 0, at_once: u64::MAX, all: 100 * CHUNK, unused: CHUNK });
    let big = Blob::from_bytes(contents(200_000));
    open(&dataplane, key(1), &big, session(200_000, 512)).unwrap();
    let last = dataplane.take_back(&key(1)).unwrap();
    assert_eq!(last.transfer.acked(), 0);
    assert_eq!((dataplane.look(&key(1)), dataplane.take_back(&key(1))), (None, None));
    assert!(!dataplane.blobs.has_excess(), "in use");
    assert_eq!(dataplane.close(&key(1)), None);
    gone(&dataplane);
}

#[test]
fn a_blob_that_does_not_fit_is_left_to_the_daemon() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { least: 0, at_once: u64::MAX, all: 10 * CHUNK, unused: 5 * CHUNK });
    let (some, more) = (Blob::from_bytes(contents(400_000)), Blob::from_bytes(contents(400_001)));
    open(&dataplane, key(1), &some, session(400_000, 512)).unwrap();
    let full = open(&dataplane, key(2), &more, session(400_001, 512));
    assert!(matches!(full, Err(Declined::Full { limit, .. }) if limit == 10 * CHUNK), "{full:?}");
    dataplane.close(&key(1));
    open(&dataplane, key(2), &more, session(400_001, 512)).unwrap();
    assert_eq!(dataplane.published_bytes(), 400_001, "what was unused made room");
}

/// A blob whose bytes can be read only when the test lets them.
#[derive(Debug, Default)]
struct Slow {
    bytes: Vec<u8>,
    may_read: Mutex<bool>,
    changed: Condvar,
    first_reads: AtomicUsize,
    broken: bool,
}

impl ReadAt for Arc<Slow> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.first_reads.fetch_add(usize::from(offset == 0 && buf.len() > 60_000), Ordering::SeqCst);
        drop(self.changed.wait_while(lock(&self.may_read), |may_read| !*may_read));
        if self.broken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

impl Slow {
    fn blob(self: &Arc<Self>) -> Blob {
        Blob::elsewhere(BlobKey::Digest([7; 32]), self.bytes.len() as u64, Box::new(self.clone()))
    }

    fn go(&self) {
        *lock(&self.may_read) = true;
        self.changed.notify_all();
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn publishing_holds_up_nobody_else_and_happens_once() {
    let Some(dataplane) = loaded() else { return };
    let slow = Arc::new(Slow { bytes: contents(300_000), ..Slow::default() });
    let small = contents(5000);
    std::thread::scope(|scope| {
        // Also if something fails below, because the scope waits for the readers.
        let go = OnDrop(|| slow.go());
        for port in 1..=3 {
            let (dataplane, slow) = (&dataplane, &slow);
            scope.spawn(move || open(dataplane, key(port), &slow.blob(), session(300_000, 1468)).unwrap());
        }
        while slow.first_reads.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let other = SessionKey::of(&ACK);
        open(&dataplane, other, &Blob::from_bytes(small.clone()), session(5000, 512)).unwrap();
        for block in 1..=5u16 {
            let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame(block - 1));
            assert_eq!(verdict, TC_ACT_REDIRECT);
            check_data_frame(&frame, block, &small[(usize::from(block) - 1) * 512..][..512]);
        }
        dataplane.close(&other);
        drop(go);
    });
    let slots: Vec<_> = (1..=3).map(|port| dataplane.look(&key(port)).unwrap()).collect();
    assert!(slots.iter().all(|s| (s.blob, s.sums) == (slots[0].blob, slots[0].sums)));
    assert_eq!(slow.first_reads.load(Ordering::SeqCst), 1 + 1, "once for the chunks, once for the sums");
}

#[test]
fn a_blob_that_can_not_be_read_leaves_nothing() {
    let Some(dataplane) = loaded() else { return };
    let slow = Arc::new(Slow { bytes: contents(300_000), broken: true, ..Slow::default() });
    slow.go();
    let failed = open(&dataplane, key(1), &slow.blob(), session(300_000, 1468));
    assert!(matches!(failed, Err(Declined::Read(_))), "{failed:?}");
    assert_eq!(dataplane.published_bytes(), 0);
}

/// Asks until the kernel has taken the transfer, or says why it will not.
fn hand_over(dataplane: &Dataplane, key: SessionKey, blob: &Blob, transfer: Session) -> Result<(), Declined> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match dataplane.hand_over(key, STATIONS, blob, transfer, now_ns(), IDLE) {
            Err(Declined::NotYet) => std::thread::sleep(Duration::from_millis(1)),
            taken => return taken,
        }
        assert!(Instant::now() < end, "it takes too long");
    }
}

fn asked_once(dataplane: &Dataplane, key: SessionKey, blob: &Blob) -> Result<(), Declined> {
    dataplane.hand_over(key, STATIONS, blob, session(blob.len() as usize, 1468), now_ns(), IDLE)
}

const BESIDE: Limits = Limits { least: 0, at_once: 100_000, all: 100 * CHUNK, unused: 100 * CHUNK };

#[test]
fn a_large_blob_is_published_beside_and_for_who_goes_on_with_it_only() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(BESIDE);
    let slow = Arc::new(Slow { bytes: contents(300_000), ..Slow::default() });
    let transfer = session(300_000, 1468);
    let not_yet = open(&dataplane, key(1), &slow.blob(), transfer);
    assert!(matches!(not_yet, Err(Declined::NotYet)), "{not_yet:?}");
    assert_eq!(slow.first_reads.load(Ordering::SeqCst), 0, "who asks may want a size only");

    // Nobody can read it yet, and nobody waits.
    for port in 1..=3 {
        assert!(matches!(asked_once(&dataplane, key(port), &slow.blob()), Err(Declined::NotYet)));
    }
    assert_eq!(dataplane.published_bytes(), 0);
    slow.go();
    let mut middle = transfer;
    for block in 0..5 {
        middle.on_ack(BlockNo(block), now_ns());
    }
    hand_over(&dataplane, SessionKey::of(&ACK), &slow.blob(), middle).unwrap();
    let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame(5));
    assert_eq!(verdict, TC_ACT_REDIRECT);
    check_data_frame(&frame, 6, &slow.bytes[5 * 1468..][..1468]);
    assert_eq!(dataplane.published_bytes(), 300_000);
    assert_eq!(slow.first_reads.load(Ordering::SeqCst), 1 + 1, "once for the chunks, once for the sums");
    // Whoever comes now has it at once.
    open(&dataplane, key(4), &slow.blob(), transfer).unwrap();
    // But for another block size, of which there are no sums.
    let other = session(300_000, 512);
    assert!(matches!(open(&dataplane, key(5), &slow.blob(), other), Err(Declined::NotYet)));
    hand_over(&dataplane, key(5), &slow.blob(), other).unwrap();
}

#[test]
fn what_nobody_waits_for_any_more_is_not_published() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(BESIDE);
    let slow = Arc::new(Slow { bytes: contents(3_000_000), ..Slow::default() });
    for port in 1..=2 {
        assert!(matches!(asked_once(&dataplane, key(port), &slow.blob()), Err(Declined::NotYet)));
    }
    while slow.first_reads.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    dataplane.close(&key(1));
    dataplane.close(&key(2));
    slow.go();
    while !lock(&dataplane.blobs.shelf).filling.is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(dataplane.published_bytes(), 0);
    // The next one begins anew.
    hand_over(&dataplane, key(3), &slow.blob(), session(3_000_000, 1468)).unwrap();
    assert_eq!(dataplane.published_bytes(), 3_000_000);
}

#[test]
fn why_a_large_blob_was_not_published_is_told_to_who_waits() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { all: 3 * CHUNK, ..BESIDE });
    let blob = Blob::from_bytes(contents(300_000));
    let full = hand_over(&dataplane, key(1), &blob, session(300_000, 1468));
    assert!(matches!(full, Err(Declined::Full { limit, .. }) if limit == 3 * CHUNK), "{full:?}");
    assert!(dataplane.not_taken().is_some());

    dataplane.blobs.limit(BESIDE);
    let slow = Arc::new(Slow { bytes: contents(300_000), broken: true, ..Slow::default() });
    slow.go();
    let failed = hand_over(&dataplane, key(1), &slow.blob(), session(300_000, 1468));
    assert!(matches!(failed, Err(Declined::Read(_))), "{failed:?}");

    // A file that is written to in place: its name of before stands for other bytes.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initrd");
    std::fs::write(&path, contents(300_000)).unwrap();
    let file = Blob::open(&path).unwrap();
    std::fs::File::options().append(true).open(&path).unwrap().set_len(300_001).unwrap();
    let changed = hand_over(&dataplane, key(1), &file, session(300_000, 1468));
    assert!(matches!(changed, Err(Declined::Changed)), "{changed:?}");
    assert_eq!(dataplane.published_bytes(), 0);
}

#[test]
fn what_somebody_waits_for_stays_when_room_is_needed() {
    let Some(dataplane) = loaded() else { return };
    dataplane.blobs.limit(Limits { all: 12 * CHUNK, ..BESIDE });
    let (waited_for, other) = (Blob::from_bytes(contents(300_000)), Blob::from_bytes(contents(600_000)));
    assert!(matches!(asked_once(&dataplane, key(1), &waited_for), Err(Declined::NotYet)));
    while dataplane.published_bytes() == 0 {
        std::thread::yield_now();
    }
    let full = hand_over(&dataplane, key(2), &other, session(600_000, 1468));
    assert!(matches!(full, Err(Declined::Full { .. })), "{full:?}");
    hand_over(&dataplane, key(1), &waited_for, session(300_000, 1468)).unwrap();
    dataplane.close(&key(1));
    hand_over(&dataplane, key(2), &other, session(600_000, 1468)).unwrap();
    assert_eq!(dataplane.published_bytes(), 600_000);
}

/// Sessions keep the bytes that they began with, also when the file is another one now.
#[test]
fn a_replaced_file_is_another_blob_for_new_transfers_only() {
    let Some(dataplane) = loaded() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initrd");
    let (old, new) = (contents(5000), contents(6000)[1000..].to_vec());
    std::fs::write(&path, &old).unwrap();
    let began = SessionKey::of(&ACK);
    open(&dataplane, began, &Blob::open(&path).unwrap(), session(5000, 512)).unwrap();
    let (_, frame) = run(&dataplane, Hook::Tc, &ack_frame(0));
    check_data_frame(&frame, 1, &old[..512]);

    std::fs::write(dir.path().join("next"), &new).unwrap();
    std::fs::rename(dir.path().join("next"), &path).unwrap();
    open(&dataplane, key(1), &Blob::open(&path).unwrap(), session(5000, 512)).unwrap();
    let (_, frame) = run(&dataplane, Hook::Tc, &ack_frame(1));
    check_data_frame(&frame, 2, &old[512..1024]);
    let mut frame = ack_frame(0);
    frame[34..36].copy_from_slice(&1u16.to_be_bytes());
    let (verdict, frame) = run(&dataplane, Hook::Tc, &frame);
    assert_eq!((verdict, &frame[46..]), (TC_ACT_REDIRECT, &new[..512]));
}

/// Each page of this blob contains its own number.
#[derive(Debug)]
struct Pages;

const PAGE: u64 = 4_096;

impl ReadAt for Pages {
    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let page = offset / PAGE;
            let (now, later) = buf.split_at_mut(buf.len().min((PAGE - offset % PAGE) as usize));
            now.fill((page ^ (page >> 8) ^ (page >> 16)) as u8);
            offset += now.len() as u64;
            buf = later;
        }
        Ok(())
    }
}

#[test]
fn a_blob_of_more_than_four_gibibytes() {
    const LEN: u64 = (4 << 30) + 100_000;
    let Some(dataplane) = loaded() else { return };
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available: u64 = available.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    if available < 6 << 20 {
        return eprintln!("skipped: {} MiB of memory are free, 6 GiB are needed", available >> 10);
    }
    dataplane.blobs.limit(Limits { least: 0, at_once: u64::MAX, all: 5 << 30, unused: 1 << 30 });
    let blob = Blob::elsewhere(BlobKey::Digest([4; 32]), LEN, Box::new(Pages));
    let mut transfer = session(LEN as usize, 1468);
    // In its last hundred blocks. The number has wrapped 44 times.
    while transfer.acked() + 100 < transfer.blocks() {
        transfer.on_ack(BlockNo::of(transfer.in_flight().map_or(0, |blocks| blocks.last)), now_ns());
    }
    let at = SessionKey::of(&ACK);
    open(&dataplane, at, &blob, transfer).unwrap();
    for block in transfer.in_flight().unwrap().last..transfer.blocks() {
        let (verdict, frame) = run(&dataplane, Hook::Tc, &ack_frame(BlockNo::of(block).0));
        assert_eq!(verdict, TC_ACT_REDIRECT, "block {block}");
        let mut data = vec![0; transfer.len_of(block + 1).into()];
        let offset = transfer.offset_of(block + 1);
        assert!(offset > LEN - 150_000);
        Pages.read_exact_at(offset, &mut data).unwrap();
        check_data_frame(&frame, BlockNo::of(block + 1).0, &data);
    }
    dataplane.close(&at);
    gone(&dataplane);
}

/// Waits until nothing is published.
fn gone(dataplane: &Dataplane) {
    let end = Instant::now() + Duration::from_secs(10);
    while dataplane.published_bytes() > 0 {
        assert!(Instant::now() < end, "{} bytes are left", dataplane.published_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
}
