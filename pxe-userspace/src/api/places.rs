//! Limits of the connections of each client. Pure but for the lock: the client's standing is an argument.
//!
//! Each connection is a descriptor, and the daemon has a limited number. So the connections of one address are limited,
//! all together leave enough descriptors for the database and the API, and a quarter is kept for machines with a lease.
//! When there are no more, connections without any request are reset first, beginning with the address that has most,
//! and then those that have been silent for longest. A machine's connection is never reset for another client's, because
//! GRUB leaves connections open on purpose.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::base::descriptors;
use crate::base::lock::Unpoisoned as _;
use crate::machines::segment::{Origin, Segment, Standing};

/// Without a request for this long, a connection is half-closed.
pub(super) const IDLE: Duration = Duration::from_secs(5);

/// The same for nodes. GRUB opens all initrds, and closes them when the last is loaded: a connection that we had
/// half-closed by then would be in TIME_WAIT for a minute, and so during the next boot.
const NODE_IDLE: Duration = Duration::from_secs(15 * 60);

/// The first request has to arrive within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Connections that a node may have at a time; GRUB has two. One that sends a byte an hour on each
/// must not have all of the daemon's descriptors.
pub const PER_NODE: usize = 64;

/// The same for an address whose station the kernel does not know.
const PER_UNKNOWN: usize = 4;

/// Connections that only wait for the client's FIN may be this many times its places.
const ENDING: usize = 2;

/// The open connections of a listener. Cloning it is cheap.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    limits: Limits,
    segment: Option<Segment>,
    open: Mutex<Open>,
}

#[derive(Clone, Copy)]
struct Limits {
    per_peer: usize,
    all: usize,
    idle: Duration,
    first: Duration,
}

#[derive(Default)]
pub(super) struct Open {
    /// The number of the last connection or request: a smaller number is older.
    last: u64,
    /// Connections that are not ending.
    count: usize,
    pub(super) by_peer: HashMap<IpAddr, HashMap<u64, Place>>,
}

/// A connection in the table.
pub(super) struct Place {
    forgotten: CancellationToken,
    machine: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// There was no request yet.
    Fresh,
    /// The number of its last request.
    Asked(u64),
    /// It waits for the client's FIN.
    Ending,
}

impl Connections {
    /// An empty table, with at most [`PER_NODE`] connections from one address. Every client counts as a machine.
    pub fn of_nodes() -> Self {
        Self::new(Self::nodes(), None)
    }

    /// The same, for the hosts of a segment only.
    pub fn on(segment: Segment) -> Self {
        Self::new(Self::nodes(), Some(segment))
    }

    fn nodes() -> Limits {
        let all = descriptors::shares().connections;
        Limits { per_peer: PER_NODE, all, idle: NODE_IDLE, first: FIRST_REQUEST }
    }

    fn new(limits: Limits, segment: Option<Segment>) -> Self {
        Self(Arc::new(Inner { limits, segment, open: Mutex::default() }))
    }

    /// Resets every connection from `peer`. It has restarted, and will use its ports again.
    pub fn forget(&self, peer: IpAddr) {
        for place in self.open().by_peer.get(&peer).into_iter().flat_map(HashMap::values) {
            place.forgotten.cancel();
        }
    }

    /// `None` if `peer` has reached its limit, or is not served here.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<Entry> {
        let Inner { limits, segment, .. } = &*self.0;
        let source = match (segment, peer) {
            (None, _) => Origin::Known(Standing::Machine),
            (Some(segment), IpAddr::V4(address)) => segment.connected(address),
            (Some(_), IpAddr::V6(_)) => Origin::Beyond,
        };
        let (machine, per_peer) = match source {
            Origin::Known(Standing::Machine) => (true, limits.per_peer),
            Origin::Known(Standing::Neighbour) => (false, limits.per_peer),
            Origin::Unknown => (false, PER_UNKNOWN),
            Origin::Contradicted | Origin::Beyond => return None,
        };
        let (id, forgotten) = self.open().take_place(limits.all, peer, machine, per_peer)?;
        Some(Entry { connections: self.clone(), peer, id, forgotten })
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unpoisoned()
    }
}

impl Open {
    fn take_place(
        &mut self,
        all: usize,
        peer: IpAddr,
        machine: bool,
        per_peer: usize,
    ) -> Option<(u64, CancellationToken)> {
        let places = self.by_peer.get(&peer);
        let live =
            |places: &HashMap<u64, Place>| places.values().filter(|p| p.state != State::Ending).count();
        if places.is_some_and(|p| live(p) >= per_peer || p.len() >= per_peer.saturating_mul(1 + ENDING)) {
            return None;
        }
        let limit = if machine { all } else { all - all / 4 };
        if self.count >= limit && !self.make_room(machine) {
            return None;
        }
        self.last += 1;
        self.count += 1;
        let forgotten = CancellationToken::new();
        let place = Place { forgotten: forgotten.clone(), machine, state: State::Fresh };
        self.by_peer.entry(peer).or_default().insert(self.last, place);
        Some((self.last, forgotten))
    }

    /// Resets a connection to make room, if one may be reset.
    fn make_room(&mut self, for_machine: bool) -> bool {
        let gives_way = |place: &Place| match place.state {
            State::Fresh => for_machine || !place.machine,
            State::Asked(_) => !place.machine,
            State::Ending => false,
        };
        let all = self.by_peer.iter().flat_map(|(peer, places)| {
            let candidates = places.iter().filter(|(_, place)| gives_way(place));
            candidates.map(|(id, place)| {
                let greed = std::cmp::Reverse(places.len());
                let fresh = place.state == State::Fresh;
                // After the first request not the number of connections counts, but how long each was silent.
                ((place.machine, place.state.max(State::Asked(0)), fresh.then_some(greed), *id), *peer)
            })
        });
        let Some(((.., id), peer)) = all.min() else { return false };
        let place = self.by_peer.get_mut(&peer).and_then(|places| places.get_mut(&id));
        if let Some(place) = place {
            place.state = State::Ending;
            place.forgotten.cancel();
            self.count -= 1;
        }
        true
    }

    fn set(&mut self, peer: IpAddr, id: u64, state: State) {
        let place = self.by_peer.get_mut(&peer).and_then(|places| places.get_mut(&id));
        if let Some(place) = place
            && place.state != State::Ending
        {
            self.count -= usize::from(state == State::Ending);
            place.state = state;
        }
    }

    fn leave(&mut self, peer: IpAddr, id: u64) {
        let Some(places) = self.by_peer.get_mut(&peer) else { return };
        let place = places.remove(&id);
        self.count -= usize::from(place.is_some_and(|place| place.state != State::Ending));
        if places.is_empty() {
            self.by_peer.remove(&peer);
        }
    }
}

/// A connection's place among the open ones.
pub(super) struct Entry {
    connections: Connections,
    peer: IpAddr,
    id: u64,
    pub(super) forgotten: CancellationToken,
}

impl Entry {
    /// How long it may be without a request.
    pub(super) fn idle(&self) -> Duration {
        self.connections.0.limits.idle
    }

    /// How long it may be without its first.
    pub(super) fn first(&self) -> Duration {
        self.connections.0.limits.first
    }

    /// A request arrived.
    pub(super) fn asked(&self) {
        let mut open = self.connections.open();
        open.last += 1;
        let state = State::Asked(open.last);
        open.set(self.peer, self.id, state);
    }

    /// There will be no more requests: from now on it only waits for the client's FIN.
    pub(super) fn ends(&self) {
        self.connections.open().set(self.peer, self.id, State::Ending);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().leave(self.peer, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        [10, 77, 0, n].into()
    }

    /// Places of this peer that were not reset.
    fn kept(open: &Open, peer: IpAddr) -> usize {
        open.by_peer.get(&peer).map_or(0, |p| p.values().filter(|p| !p.forgotten.is_cancelled()).count())
    }

    #[test]
    fn who_asks_for_nothing_gives_way_and_the_greediest_first() {
        let mut open = Open::default();
        let all = 16;
        for _ in 0..9 {
            open.take_place(all, peer(1), false, 64).unwrap();
        }
        let asked: Vec<u64> = (0..3).map(|_| open.take_place(all, peer(2), false, 64).unwrap().0).collect();
        for id in &asked {
            let state = State::Asked(*id);
            open.set(peer(2), *id, state);
        }
        assert_eq!(open.count, 12, "a quarter is kept for machines");
        for _ in 0..2 {
            let (id, _) = open.take_place(all, peer(3), false, 64).unwrap();
            open.set(peer(3), id, State::Asked(id));
        }
        assert_eq!((kept(&open, peer(1)), kept(&open, peer(2)), kept(&open, peer(3))), (7, 3, 2));
        for _ in 0..4 {
            open.take_place(all, peer(9), true, 64).unwrap();
        }
        assert_eq!((open.count, kept(&open, peer(1))), (16, 7));
        for _ in 0..7 {
            open.take_place(all, peer(9), true, 64).unwrap();
        }
        assert_eq!((kept(&open, peer(1)), kept(&open, peer(2))), (0, 3), "and now the longest silent");
        open.take_place(all, peer(9), true, 64).unwrap();
        assert!(open.by_peer[&peer(2)][&asked[0]].forgotten.is_cancelled());
        assert!(!open.by_peer[&peer(2)][&asked[2]].forgotten.is_cancelled());
    }

    #[test]
    fn a_machines_connections_stay() {
        let mut open = Open::default();
        for _ in 0..8 {
            open.take_place(8, peer(1), true, 64).unwrap();
        }
        assert!(open.take_place(8, peer(2), false, 64).is_none());
        assert_eq!(kept(&open, peer(1)), 8);
    }

    #[test]
    fn those_that_are_over_take_no_place_of_others_for_a_while() {
        let mut open = Open::default();
        for _ in 0..3 {
            let ids: Vec<_> =
                (0..4).filter_map(|_| open.take_place(100, peer(1), false, 4)).map(|p| p.0).collect();
            assert_eq!(ids.len(), 4);
            ids.iter().for_each(|id| open.set(peer(1), *id, State::Ending));
            assert_eq!(open.count, 0);
        }
        assert!(open.take_place(100, peer(1), false, 4).is_none(), "but not for ever");
        let ids: Vec<u64> = open.by_peer[&peer(1)].keys().copied().collect();
        ids.iter().for_each(|id| open.leave(peer(1), *id));
        assert!(open.by_peer.is_empty() && open.count == 0);
    }
}
