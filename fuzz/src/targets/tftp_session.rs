//! A transfer's session compared with a model that counts in 64 bits, and that searches where the session computes.
use std::num::NonZeroU16;

use arbitrary::Arbitrary;
use pxe_common::tftp::{BlockNo, Blocks, Session, Step};

const RETRY_MS: u32 = 500;

#[derive(Debug, Arbitrary)]
struct Input {
    len: u32,
    blksize: u16,
    window: u8,
    begins: bool,
    happenings: Vec<Happening>,
}

#[derive(Debug, Arbitrary)]
enum Happening {
    /// An ACK this many blocks from the last acknowledged one.
    Near(i8),
    Ack(u16),
    /// The window's last block.
    All,
    Milliseconds(u16),
    Timeout,
}

struct Model {
    blocks: u64,
    window: u64,
    acked: u64,
    sent: u64,
    sent_ms: u64,
    marks: u64,
}

impl Model {
    fn send(&mut self, now_ms: u64) -> Step {
        self.sent = self.blocks.min(self.acked + self.window);
        self.sent_ms = now_ms;
        // The first DATA, and each quarter except the last, one at a time.
        if self.marks < 4 && self.acked >= self.marks * self.blocks.div_ceil(4) {
            self.marks += 1;
        }
        Step::Send(Blocks { first: self.acked as u32 + 1, last: self.sent as u32 })
    }

    fn ack(&mut self, number: u16, now_ms: u64) -> Step {
        let Some(block) = (self.acked..=self.sent).find(|block| block % 65_536 == u64::from(number)) else {
            return Step::Stale;
        };
        let again = block == self.acked && self.sent > self.acked;
        if again && now_ms - self.sent_ms < RETRY_MS.into() {
            return Step::Duplicate;
        }
        self.acked = block;
        if block == self.blocks { Step::Finished } else { self.send(now_ms) }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let Some(input) = crate::shaped::<Input>(bytes) else { return };
    let len = u64::from(input.len) % (1 << 24);
    let blksize = input.blksize.clamp(8, 1468);
    let window = u16::from(input.window).clamp(1, 64);
    let (size, count) = (NonZeroU16::new(blksize).unwrap(), NonZeroU16::new(window).unwrap());
    let mut session = Session::new(len, size, count, RETRY_MS).expect("16 MiB are few blocks");
    let blocks = len / u64::from(blksize) + 1;
    assert_eq!(u64::from(session.blocks()), blocks);
    let last = u64::from(session.len_of(session.blocks()));
    assert_eq!(session.offset_of(session.blocks()) + last, len);

    let mut model = Model { blocks, window: window.into(), acked: 0, sent: 0, sent_ms: 0, marks: 0 };
    let mut now_ms = 1;
    if input.begins {
        assert_eq!(Step::Send(session.begin(now_ms * 1_000_000)), model.send(now_ms));
    }
    for happening in input.happenings {
        let number = match happening {
            Happening::Near(offset) => (model.acked as u16).wrapping_add_signed(offset.into()),
            Happening::Ack(number) => number,
            Happening::All => model.sent as u16,
            Happening::Milliseconds(ms) => {
                now_ms += u64::from(ms);
                continue;
            }
            Happening::Timeout => {
                let in_flight = Blocks { first: model.acked as u32 + 1, last: model.sent as u32 };
                let expected = (model.sent > model.acked).then_some(in_flight);
                if expected.is_some() {
                    model.sent_ms = now_ms;
                }
                assert_eq!(session.send_again(now_ms * 1_000_000), expected);
                continue;
            }
        };
        assert_eq!(session.on_ack(BlockNo(number), now_ms * 1_000_000), model.ack(number, now_ms));
        assert_eq!(session.finished(), model.acked == model.blocks);
        assert_eq!(u64::from(session.marks()), model.marks);
    }
}
