//! When each transfer has to be looked at, without a packet or an event.

use std::collections::BTreeSet;

use pxe_common::map::SessionKey;

/// One entry per transfer, soonest first; a step costs the logarithm of their number.
///
/// An ACK postpones a transfer's timeout, but leaves its entry where it is: when the entry is due, it is entered again
/// for the timeout as it is then. So an entry moves a few times a second, whatever the packets do, and its time is never
/// later than the transfer's own.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    entries: BTreeSet<(u64, Place)>,
    /// Counts entries that were added, moved or removed, for tests of a step's cost.
    #[cfg(test)]
    pub(super) steps: usize,
}

/// A [`SessionKey`] that can be ordered.
type Place = ([u8; 4], [u8; 4], u16, u16);

impl Deadlines {
    /// Moves the entry of `key` from `before`, if it has one.
    pub(super) fn set(&mut self, key: &SessionKey, before: Option<u64>, at_ns: u64) {
        if before == Some(at_ns) {
            return;
        }
        if let Some(before) = before {
            self.remove(key, before);
        }
        self.entries.insert((at_ns, place(key)));
        self.step();
    }

    pub(super) fn remove(&mut self, key: &SessionKey, at_ns: u64) {
        self.entries.remove(&(at_ns, place(key)));
        self.step();
    }

    /// The soonest.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.first().map(|(at_ns, _)| *at_ns)
    }

    /// Removes the soonest, if it is due.
    pub(super) fn pop_due(&mut self, now_ns: u64) -> Option<SessionKey> {
        self.first().filter(|at_ns| *at_ns <= now_ns)?;
        let (_, (client, server, client_port, server_port)) = self.entries.pop_first()?;
        self.step();
        Some(SessionKey { client, server, client_port, server_port })
    }

    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }

    #[cfg(test)]
    pub(super) fn has(&self, key: &SessionKey, at_ns: u64) -> bool {
        self.entries.contains(&(at_ns, place(key)))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

fn place(key: &SessionKey) -> Place {
    (key.client, key.server, key.client_port, key.server_port)
}
