//! What the TFTP server counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counters that the server's task writes and anyone reads.
#[derive(Debug, Default)]
pub struct Stats([AtomicU64; NAMES.len()]);

#[derive(Clone, Copy, Debug)]
pub(super) enum Stat {
    Requests,
    Refused,
    Malformed,
    Unknown,
    FastPath,
    /// Transfers of the programs whose ACK they passed on.
    HandedBack,
    Finished,
    Aborted,
    Expired,
    Repeated,
    /// Requests to write.
    Writes,
    /// Packets from outside the segment, or from another station than the address's or the transfer's.
    Foreign,
    /// Unanswered transfers that were ended to make room for others.
    GaveWay,
    Bytes,
}

const NAMES: [&str; Stat::Bytes as usize + 1] = [
    "requests",
    "refused",
    "malformed",
    "unknown-transfer",
    "fast-path",
    "handed-back",
    "finished",
    "aborted",
    "expired",
    "repeated",
    "writes-refused",
    "foreign",
    "gave-way",
    "bytes-by-daemon",
];

impl Stats {
    /// Every counter by name.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0.iter().map(|c| c.load(Ordering::Relaxed)))
    }

    /// Transfers that the programs were given, and those of them that they gave back.
    pub fn granted_and_handed_back(&self) -> (u64, u64) {
        let read = |stat: Stat| self.0[stat as usize].load(Ordering::Relaxed);
        (read(Stat::FastPath), read(Stat::HandedBack))
    }

    pub(super) fn add(&self, stat: Stat, by: u64) {
        self.0[stat as usize].fetch_add(by, Ordering::Relaxed);
    }
}

impl Serialize for Stats {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.read())
    }
}
