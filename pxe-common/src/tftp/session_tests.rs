//! Sessions against a model of a client that follows the RFCs, over an unreliable network.

extern crate std;

use core::num::NonZeroU16;
use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::{BlockNo, Blocks, Session, Step};

const RETRY_MS: u32 = 100;
const RETRY_NS: u64 = RETRY_MS as u64 * 1_000_000;

fn session(len: u64, blksize: u16, window: u16) -> Session {
    let (blksize, window) = (NonZeroU16::new(blksize).unwrap(), NonZeroU16::new(window).unwrap());
    Session::new(len, blksize, window, RETRY_MS).unwrap()
}

fn one(index: u32) -> Step {
    Step::Send(Blocks { first: index, last: index })
}

#[test]
fn lock_step_from_options_to_end() {
    let mut s = session(1000, 512, 1);
    assert_eq!(s.on_ack(BlockNo(0), 1), one(1));
    assert_eq!(s.on_ack(BlockNo(1), 2), one(2));
    assert_eq!((s.len_of(1), s.len_of(2), s.offset_of(2)), (512, 488, 512));
    assert_eq!(s.on_ack(BlockNo(2), 3), Step::Finished);
    assert_eq!(s.on_ack(BlockNo(2), 4), Step::Finished, "the last ACK may come twice");
}

#[test]
fn whole_blocks_end_with_an_empty_one() {
    let s = session(1024, 512, 1);
    assert_eq!((s.blocks(), s.len_of(2), s.len_of(3)), (3, 512, 0));
    assert_eq!((session(0, 512, 1).blocks(), session(0, 512, 1).len_of(1)), (1, 0));
}

#[test]
fn a_duplicate_is_answered_only_when_the_answer_may_be_lost() {
    let mut s = session(5000, 512, 1);
    assert_eq!(s.begin(0), Blocks { first: 1, last: 1 });
    assert_eq!(s.on_ack(BlockNo(1), 10), one(2));
    assert_eq!(s.on_ack(BlockNo(1), 11), Step::Duplicate);
    assert_eq!(s.on_ack(BlockNo(1), 10 + RETRY_NS), one(2));
    assert_eq!(s.on_ack(BlockNo(1), 11 + RETRY_NS), Step::Duplicate);
    assert_eq!(s.on_ack(BlockNo(0), 11 + RETRY_NS), Step::Stale);
    assert_eq!(s.on_ack(BlockNo(3), 11 + RETRY_NS), Step::Stale, "never sent");
}

#[test]
fn a_hole_in_the_window_moves_it_there() {
    let mut s = session(100 * 512, 512, 8);
    assert_eq!(s.on_ack(BlockNo(0), 0), Step::Send(Blocks { first: 1, last: 8 }));
    assert_eq!(s.on_ack(BlockNo(3), 1), Step::Send(Blocks { first: 4, last: 11 }));
    assert_eq!(s.on_ack(BlockNo(11), 2), Step::Send(Blocks { first: 12, last: 19 }));
}

#[test]
fn marks_are_the_first_block_and_the_quarters_one_at_a_time() {
    let passed = |len: u64, window: u16| -> Vec<u32> {
        let mut s = session(len, 8, window);
        let mut at = Vec::new();
        while !s.finished() {
            let (ack, before) = (s.in_flight().map_or(0, |blocks| blocks.last), s.marks());
            s.on_ack(BlockNo::of(ack), 1);
            at.extend((s.marks() != before).then_some(ack));
        }
        at
    };
    assert_eq!(passed(0, 1), [0]);
    assert_eq!(passed(3 * 8, 1), [0, 1, 2, 3]);
    assert_eq!(passed(1000 * 8 - 1, 1), [0, 250, 500, 750]);
    assert_eq!(passed(1000 * 8 - 1, 64), [0, 256, 512, 768]);
    assert_eq!(passed(100 * 8 - 1, 64), [0, 64]);
    assert_eq!(session(1, 8, 1).marks(), 0);
    assert_eq!(passed(u64::from(u16::MAX) * 64, 60_000).len(), 4);
}

#[test]
fn more_blocks_than_an_index_counts() {
    let one = NonZeroU16::new(1).unwrap();
    assert!(Session::new(u64::from(u32::MAX), one, one, 0).is_err());
    assert!(Session::new(u64::from(u32::MAX) - 1, one, one, 0).is_ok());
}

/// What happens to one packet on the network.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    /// Overtaken by the next one.
    Late,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Late),
    ]
}

/// Chooses fates without a period. If it cycled through them, it could be in step with a burst of as many packets, and
/// lose the same block every time: no protocol survives that.
struct Network<T> {
    queue: VecDeque<T>,
    fates: Vec<Fate>,
    sent: u64,
}

impl<T: Copy> Network<T> {
    fn new(fates: Vec<Fate>) -> Self {
        Self { queue: VecDeque::new(), fates, sent: 0 }
    }

    fn fate(&mut self) -> Fate {
        self.sent += 1;
        // A multiplicative hash of the packet's number: the same fates give the same run.
        let spread = self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (spread ^ spread >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
        self.fates[mixed as usize % self.fates.len()]
    }

    fn send(&mut self, packet: T) {
        match self.fate() {
            Fate::Arrives => self.queue.push_back(packet),
            Fate::Lost => {}
            Fate::Twice => self.queue.extend([packet, packet]),
            Fate::Late => self.queue.insert(self.queue.len().saturating_sub(1), packet),
        }
    }
}

/// RFC 7440's receiver (RFC 1350's if the window is one): accepts blocks in order, and acknowledges the last of a
/// window, a gap, a duplicate, and the end.
struct Client {
    received: u32,
    since_ack: u16,
    window: u16,
    bytes: u64,
    done: bool,
}

impl Client {
    fn data(&mut self, number: BlockNo, len: u16, blksize: u16) -> Option<BlockNo> {
        if number != BlockNo::of(self.received + 1) {
            self.since_ack = 0;
            return Some(BlockNo::of(self.received));
        }
        if self.done {
            return None;
        }
        self.received += 1;
        self.bytes += u64::from(len);
        self.since_ack += 1;
        self.done = len < blksize;
        if self.done || self.since_ack == self.window {
            self.since_ack = 0;
            return Some(BlockNo::of(self.received));
        }
        None
    }
}

/// Runs a transfer to its end; returns the number of DATA packets.
fn run(len: u64, blksize: u16, window: u16, fates: Vec<Fate>) -> u64 {
    let mut server = session(len, blksize, window);
    let mut client = Client { received: 0, since_ack: 0, window, bytes: 0, done: false };
    let mut acks = Network::new(fates.clone());
    let mut data = Network::new(fates);
    let (mut now, mut packets, mut rounds) = (1u64, 0u64, 0u64);
    acks.queue.push_back(BlockNo(0));
    while !server.finished() {
        assert!(rounds < 40 * u64::from(server.blocks()) + 1000, "no progress: {server:?}");
        now += 1000;
        // Unanswered duplicate ACKs are not counted: a client sends one for each block of a window that it already has.
        let mut answer = |blocks: Blocks, data: &mut Network<u32>| {
            rounds += 1;
            (blocks.first..=blocks.last).for_each(|index| {
                packets += 1;
                data.send(index);
            });
        };
        if let Some(ack) = acks.queue.pop_front() {
            if let Step::Send(blocks) = server.on_ack(ack, now) {
                answer(blocks, &mut data);
            }
        } else if data.queue.is_empty() {
            // Both wait until one of the timers expires.
            now += RETRY_NS;
            match server.send_again(now) {
                Some(blocks) => answer(blocks, &mut data),
                None => {
                    rounds += 1;
                    acks.send(BlockNo(0));
                }
            }
        }
        while let Some(index) = data.queue.pop_front() {
            let len = server.len_of(index);
            if let Some(ack) = client.data(BlockNo::of(index), len, blksize) {
                acks.send(ack);
            }
        }
    }
    assert_eq!((client.bytes, client.done), (len, true));
    packets
}

proptest! {
    #[test]
    fn every_transfer_ends_whole(
        len in 0u64..20_000,
        blksize in 8u16..600,
        window in 1u16..=64,
        fates in proptest::collection::vec(fate(), 20..200),
    ) {
        // A network that loses everything delivers nothing.
        prop_assume!(fates.iter().any(|f| matches!(f, Fate::Arrives)));
        run(len, blksize, window, fates);
    }

    #[test]
    fn no_input_breaks_a_session(
        window in 1u16..=64,
        // Mostly near the blocks in flight, so that windows advance.
        acks in proptest::collection::vec((prop_oneof![4 => 0u16..400, 1 => any::<u16>()], 0u64..1 << 40), 0..200),
    ) {
        let mut s = session(3_000, 16, window);
        for (ack, now) in acks {
            let before = s.in_flight().map_or(s.acked()..=s.acked(), |b| b.first - 1..=b.last);
            let step = s.on_ack(BlockNo(ack), now);
            let Step::Send(blocks) = step else { continue };
            prop_assert!(before.contains(&u32::from(ack)), "{ack} is of nothing in flight {before:?}");
            // RFC 7440 section 4: from the block after the acknowledged one, at most a window, and less only at the
            // file's end.
            prop_assert_eq!(blocks.first, u32::from(ack) + 1);
            prop_assert_eq!(blocks.last, s.blocks().min(u32::from(ack) + u32::from(window)));
            prop_assert_eq!(s.in_flight(), Some(blocks));
        }
    }
}

#[test]
fn block_numbers_wrap_on_a_bad_network() {
    let fates = [Fate::Arrives; 30].into_iter().chain([Fate::Lost, Fate::Arrives, Fate::Twice, Fate::Late]);
    run(150_000 * 8, 8, 1, fates.clone().collect());
    run(150_000 * 8 + 3, 8, 7, fates.clone().collect());
    run(150_000 * 8 + 3, 8, 64, fates.collect());
}

#[test]
fn doubled_acks_do_not_double_the_data() {
    let packets = run(1000 * 512, 512, 1, [Fate::Twice].into());
    assert_eq!(packets, 1001);
}
