//! What a round sends next. Pure: time is an argument.
//!
//! A round sends the image once, and repair symbols of blocks in between. They are new ones each time, so that each
//! helps every receiver that lacks any symbol of the block. Blocks that a late joiner missed completely are sent again
//! after the pass. Then receivers are polled until none waits.
//!
//! A report describes the packets that its receiver had seen when it was written. If more of a block was sent since,
//! the report is ignored for that block, so that one loss is not repaired twice.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use pxe_contract::round::{Lack, Reception};
use pxe_contract::symbols::{Geometry, SYMBOL_END};

use super::pace::{Pace, Seen};

/// A receiver without reports for this long is considered gone.
const GONE: Duration = Duration::from_secs(10);
/// Wait before the first packet, so that others that want the image and ask every second miss little.
const GATHER: Duration = Duration::from_millis(500);
/// A round without receivers ends after this time.
const LINGER: Duration = Duration::from_secs(2);
/// Time between polls while there is nothing to send.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// A round ends after sending this many times the image's symbols: receivers that lack more use HTTP.
const PASSES_MAX: u64 = 3;
/// A receiver may ask for this many times the image's symbols. It may join late and lose much; one that lacks even more
/// does not listen.
const REPAIRS_MAX: u64 = 2;
/// Larger than the number of machines in a segment.
const RECEIVERS_MAX: usize = 4096;

/// The sender's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these symbols of a block, beginning with this sequence number.
    Symbols { block: u32, symbols: Range<u32>, sequence: u32 },
    /// Ask receivers for their reports.
    Poll { sequence: u32 },
    /// Nothing to do for this long.
    Wait(Duration),
    /// No receiver is left.
    End,
}

pub(super) struct Schedule {
    geometry: Geometry,
    pub(super) pace: Pace,
    begins: Instant,
    /// The blocks that the pass has begun, and what was sent of each.
    sent: Vec<Sent>,
    /// For each block, the largest number of symbols that a receiver lacks.
    wanted: BTreeMap<u32, u32>,
    /// The part of the current symbols that is not sent yet.
    job: Option<(u32, Range<u32>)>,
    /// The next packet's sequence number.
    sequence: u32,
    /// The image's symbols, and the symbols sent.
    whole: u64,
    symbols: u64,
    receivers: HashMap<Ipv4Addr, Receiver>,
    /// The last time at which a receiver waited.
    waited_for: Instant,
    polled: Option<Instant>,
}

struct Sent {
    /// The first unsent repair symbol, counted from the first repair symbol.
    repair: u32,
    /// The sequence number after the block's last packet; `None` while the block is being sent.
    until: Option<u32>,
}

struct Receiver {
    heard: Instant,
    /// As of its last report: the sequence number after the highest that it had seen, and the packets that arrived.
    sequence: u32,
    came: u64,
    /// Symbols that it requested again.
    repairs: u64,
}

impl Schedule {
    pub(super) fn new(geometry: Geometry, pace: Pace, now: Instant) -> Self {
        Self {
            geometry,
            pace,
            begins: now + GATHER,
            sent: Vec::new(),
            wanted: BTreeMap::new(),
            job: None,
            sequence: 0,
            whole: (0..geometry.blocks()).map(|block| u64::from(geometry.symbols(block))).sum(),
            symbols: 0,
            receivers: HashMap::new(),
            waited_for: now,
            polled: None,
        }
    }

    /// The number of machines that wait.
    pub(super) fn receivers(&self) -> usize {
        self.receivers.len()
    }

    /// The number of packets sent.
    pub(super) fn packets(&self) -> u32 {
        self.sequence
    }

    /// Processes a machine's report. The first one makes it a receiver.
    pub(super) fn report(&mut self, from: Ipv4Addr, report: &Reception, now: Instant) {
        if report.done {
            self.receivers.remove(&from);
            return;
        }
        let known = self.receivers.len();
        // No receiver can have seen more than was sent.
        let sequence = report.sequence.min(self.sequence);
        let seen = match self.receivers.get_mut(&from) {
            Some(receiver) => {
                let seen = Seen {
                    sent: sequence.saturating_sub(receiver.sequence),
                    came: report.came.saturating_sub(receiver.came).try_into().unwrap_or(u32::MAX),
                    within: now.saturating_duration_since(receiver.heard),
                };
                // Packets from before a machine joined are not lost.
                let joined = receiver.came > 0;
                *receiver = Receiver { heard: now, sequence, came: report.came, repairs: receiver.repairs };
                joined.then_some(seen)
            }
            None if known >= RECEIVERS_MAX => return,
            None => {
                let receiver = Receiver { heard: now, sequence, came: report.came, repairs: 0 };
                self.receivers.insert(from, receiver);
                None
            }
        };
        if let Some(seen) = seen {
            self.pace.report(seen, now);
        }
        let mut left = REPAIRS_MAX * self.whole;
        left = left.saturating_sub(self.receivers.get(&from).map_or(0, |receiver| receiver.repairs));
        let asked: u64 = report.lacks.iter().map(|lack| self.want(lack, sequence, &mut left)).sum();
        if let Some(receiver) = self.receivers.get_mut(&from) {
            receiver.repairs += asked;
        }
    }

    /// Whether the receiver has used up its repairs.
    pub(super) fn has_spent(&self, from: Ipv4Addr) -> bool {
        self.receivers.get(&from).is_some_and(|receiver| receiver.repairs >= REPAIRS_MAX * self.whole)
    }

    pub(super) fn next(&mut self, now: Instant) -> Step {
        self.receivers.retain(|_, receiver| now.saturating_duration_since(receiver.heard) < GONE);
        if self.receivers.is_empty() {
            let idle = now.saturating_duration_since(self.waited_for);
            return if idle >= LINGER { Step::End } else { Step::Wait(POLL_EVERY) };
        }
        self.waited_for = now;
        if self.symbols >= PASSES_MAX * self.whole {
            return Step::End;
        }
        if self.job.is_none() && now >= self.begins {
            self.job = self.choose();
        }
        if let Some((block, symbols)) = &mut self.job {
            let block = *block;
            let end = symbols.end.min(symbols.start + self.pace.burst());
            let part = symbols.start..end;
            let finished = end == symbols.end;
            symbols.start = end;
            self.symbols += u64::from(part.end - part.start);
            let sequence = self.count(part.end - part.start);
            if finished {
                self.job = None;
                self.sent[block as usize].until = Some(self.sequence);
            }
            return Step::Symbols { block, symbols: part, sequence };
        }
        match self.polled {
            Some(polled) if now.saturating_duration_since(polled) < POLL_EVERY => {
                Step::Wait(POLL_EVERY - now.saturating_duration_since(polled))
            }
            _ => {
                self.polled = Some(now);
                Step::Poll { sequence: self.count(1) }
            }
        }
    }

    /// What is sent next: repairs first, then new blocks, then blocks of which a late joiner lacks most.
    fn choose(&mut self) -> Option<(u32, Range<u32>)> {
        let repair = self.wanted.iter().find(|(block, lacks)| !self.is_most_of(**block, **lacks));
        if let Some((&block, &lacks)) = repair {
            self.wanted.remove(&block);
            return Some((block, self.repairs(block, lacks)));
        }
        let block = self.sent.len() as u32;
        if block < self.geometry.blocks() {
            self.sent.push(Sent { repair: 0, until: None });
            return Some((block, 0..self.geometry.symbols(block)));
        }
        let (block, _) = self.wanted.pop_first()?;
        self.sent[block as usize].until = None;
        // Source symbols need no decoding.
        Some((block, 0..self.geometry.symbols(block)))
    }

    /// Symbols that were not sent yet, with some to spare for further losses.
    fn repairs(&mut self, block: u32, lacks: u32) -> Range<u32> {
        let first = self.geometry.symbols(block);
        let count = lacks + 1 + lacks / 32;
        let sent = &mut self.sent[block as usize];
        sent.until = None;
        if first + sent.repair + count > SYMBOL_END {
            sent.repair = 0;
        }
        let start = first + sent.repair;
        sent.repair += count;
        start..start + count
    }

    /// Returns how many symbols were requested, and deducts them from `left`. Symbols that will be sent anyway, because
    /// this receiver or another has requested them, are not counted.
    fn want(&mut self, lack: &Lack, seen: u32, left: &mut u64) -> u64 {
        let mut asked = 0;
        for block in lack.first..self.sent.len().min(lack.last.saturating_add(1) as usize) as u32 {
            if self.sent[block as usize].until.is_some_and(|until| until <= seen) {
                let symbols = lack.symbols.clamp(1, self.geometry.symbols(block));
                let wanted = self.wanted.entry(block).or_default();
                let more = u64::from(symbols.saturating_sub(*wanted));
                asked += more;
                if more > *left {
                    *left = 0;
                    return asked;
                }
                *left -= more;
                *wanted = symbols.max(*wanted);
            }
        }
        asked
    }

    fn is_most_of(&self, block: u32, symbols: u32) -> bool {
        symbols * 2 > self.geometry.symbols(block)
    }

    /// Counts `packets` packets, and returns the first one's sequence number.
    fn count(&mut self, packets: u32) -> u32 {
        let first = self.sequence;
        // This is reached after six terabytes, which no receiver waits for.
        self.sequence = self.sequence.saturating_add(packets);
        first
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
