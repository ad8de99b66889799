//! A transfer's step from one ACK to the blocks that follow it.

use core::num::NonZeroU16;

use super::BlockNo;

/// A transfer's progress. Part of the map layout: the daemon creates it, the kernel programs advance it, and where they
/// stop the daemon continues from its state.
///
/// ```text
///   acked                sent = min(acked + window, blocks)
///     |  in flight         |
/// 1 2 3 4 5 6 7 8 9 10 11 12 13 ... blocks
/// ```
///
/// `sent` equals `acked` only before the first DATA and after the last ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    blocks: u32,
    acked: u32,
    sent: u32,
    retry_ms: u32,
    blksize: u16,
    last_len: u16,
    window: u16,
    marks: u16,
    sent_ns: u64,
}

/// The first DATA, and three quarters of the blocks; the fourth quarter is the end.
const MARKS: u16 = 4;

/// Consecutive blocks by index, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first index, 1 or more.
    pub first: u32,
    /// The last index, not below the first.
    pub last: u32,
}

/// The reaction to an ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these blocks: one if the window is one.
    Send(Blocks),
    /// It acknowledged the last block.
    Finished,
    /// It repeats an earlier ACK, and the answer is too recent to be lost: send nothing.
    ///
    /// If every duplicate were answered, each packet would be doubled until the end of the file, the Sorcerer's
    /// Apprentice bug (RFC 1123 section 4.2.3.1).
    Duplicate,
    /// It acknowledges no block in flight.
    Stale,
}

/// The file has more blocks than an index can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyBlocks;

impl Session {
    /// A transfer of `len` bytes of which nothing was sent yet. An answer older than `retry_ms` may be lost.
    ///
    /// A file whose length is a multiple of the block size ends with an empty block (RFC 1350 section 6), and an empty
    /// file is only that block.
    pub fn new(
        len: u64,
        blksize: NonZeroU16,
        window: NonZeroU16,
        retry_ms: u32,
    ) -> Result<Self, TooManyBlocks> {
        let size = u64::from(blksize.get());
        let blocks = u32::try_from(len / size + 1).map_err(|_| TooManyBlocks)?;
        Ok(Self {
            blocks,
            acked: 0,
            sent: 0,
            retry_ms,
            blksize: blksize.get(),
            last_len: (len % size) as u16,
            window: window.get(),
            marks: 0,
            sent_ns: 0,
        })
    }

    /// The first blocks, for a request without options, which is answered by the first DATA.
    pub fn begin(&mut self, now_ns: u64) -> Blocks {
        self.send_from_acked(now_ns)
    }

    /// Processes an ACK.
    #[inline(always)]
    pub fn on_ack(&mut self, ack: BlockNo, now_ns: u64) -> Step {
        let ahead = ack.ahead_of(self.acked) as u32;
        if ahead > self.sent - self.acked {
            return Step::Stale;
        }
        if ahead == 0 && self.sent != self.acked {
            if now_ns.saturating_sub(self.sent_ns) < self.retry_ms as u64 * 1_000_000 {
                return Step::Duplicate;
            }
            return Step::Send(self.send_from_acked(now_ns));
        }
        // An ACK inside the window means that the next block was lost: continue from there (RFC 7440 section 4).
        self.acked += ahead;
        if self.acked == self.blocks {
            return Step::Finished;
        }
        Step::Send(self.send_from_acked(now_ns))
    }

    /// The blocks that were sent and not acknowledged, to be retransmitted after a timeout; `None` before the first
    /// DATA and after the last ACK.
    pub fn in_flight(&self) -> Option<Blocks> {
        (self.sent != self.acked).then_some(Blocks { first: self.acked + 1, last: self.sent })
    }

    /// The same, and records the time.
    pub fn send_again(&mut self, now_ns: u64) -> Option<Blocks> {
        let blocks = self.in_flight()?;
        self.sent_ns = now_ns;
        Some(blocks)
    }

    /// Whether the last block was acknowledged.
    #[inline(always)]
    pub fn finished(&self) -> bool {
        self.acked == self.blocks
    }

    /// The number of blocks, including the last, short one.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Marks that it has passed: its first DATA, and each quarter of the blocks acknowledged. An ACK passes one at a
    /// time; further marks follow with later ACKs.
    #[inline(always)]
    pub fn marks(&self) -> u16 {
        self.marks
    }

    /// The last block up to which all were acknowledged.
    #[inline(always)]
    pub fn acked(&self) -> u32 {
        self.acked
    }

    /// The time of the last block sent; 0 before the first.
    #[inline(always)]
    pub fn sent_ns(&self) -> u64 {
        self.sent_ns
    }

    /// Bytes of every block except the last.
    pub fn blksize(&self) -> u16 {
        self.blksize
    }

    /// The number of blocks that may be in flight.
    pub fn window(&self) -> u16 {
        self.window
    }

    /// The offset of block `index` in the file.
    #[inline(always)]
    pub fn offset_of(&self, index: u32) -> u64 {
        (index as u64 - 1) * self.blksize as u64
    }

    /// Bytes of block `index`.
    #[inline(always)]
    pub fn len_of(&self, index: u32) -> u16 {
        if index == self.blocks { self.last_len } else { self.blksize }
    }

    #[inline(always)]
    fn send_from_acked(&mut self, now_ns: u64) -> Blocks {
        let first = self.acked + 1;
        let left = self.blocks - self.acked;
        self.sent = self.acked + if left < self.window as u32 { left } else { self.window as u32 };
        self.sent_ns = now_ns;
        if self.marks < MARKS && self.acked >= self.marks as u32 * self.blocks.div_ceil(4) {
            self.marks += 1;
        }
        Blocks { first, last: self.sent }
    }
}
