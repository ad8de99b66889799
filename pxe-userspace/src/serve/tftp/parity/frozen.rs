//! The programs, whose time the test sets.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use pxe_common::map::{self, SessionKey, Stations};
use pxe_common::tftp::{BlockNo, Session};

use crate::dataplane::Dataplane;
use crate::dataplane::tests::{now_ns, retime};
use crate::provision::blob::Blob;
use crate::serve::tftp::{Declined, FastPath, Left, Note};

/// The fast path, in a time that advances only by [`Frozen::wait`]: whenever a program looks at a session, the
/// session gets its age in that time.
pub(super) struct Frozen {
    pub(super) dataplane: Dataplane,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) now_ns: u64,
    /// Blocks to skip in transfers that are opened.
    pub(super) skip: u32,
    /// How often it is asked to take a transfer over before it has the file. At 0 it has it from the beginning.
    pub(super) not_yet: u32,
    pub(super) sessions: HashMap<SessionKey, Times>,
    pub(super) skipped: HashMap<SessionKey, u16>,
    pub(super) handed_over: u32,
}

pub(super) struct Times {
    sent_ns: u64,
    opened_ns: u64,
    thawed_at_ns: u64,
}

impl Frozen {
    pub(super) fn now(&self) -> u64 {
        self.state.lock().unwrap().now_ns
    }

    pub(super) fn wait(&self, ns: u64) {
        self.state.lock().unwrap().now_ns += ns;
    }

    pub(super) fn skipped(&self, key: &SessionKey) -> Option<u16> {
        self.state.lock().unwrap().skipped.remove(key)
    }

    /// Gives the session its age, before a program looks at it.
    pub(super) fn thaw(&self, key: &SessionKey) {
        let mut state = self.state.lock().unwrap();
        let frozen_ns = state.now_ns;
        let Some(times) = state.sessions.get_mut(key) else { return };
        times.thawed_at_ns = now_ns();
        let real = |at_ns: u64| times.thawed_at_ns.saturating_sub(frozen_ns - at_ns);
        let Some(mut session) = self.dataplane.look(key) else { return };
        session.transfer.send_again(real(times.sent_ns));
        session.opened_ns = real(times.opened_ns);
        retime(&self.dataplane, key, &session);
    }

    /// Dates a block that a program has just sent to the present.
    pub(super) fn freeze(&self, key: &SessionKey) {
        let mut state = self.state.lock().unwrap();
        let frozen_ns = state.now_ns;
        if let (Some(session), Some(times)) = (self.dataplane.look(key), state.sessions.get_mut(key))
            && session.transfer.sent_ns() >= times.thawed_at_ns
        {
            times.sent_ns = frozen_ns;
        }
    }

    fn frozen(&self, key: &SessionKey, mut session: map::Session) -> map::Session {
        if let Some(times) = self.state.lock().unwrap().sessions.get(key) {
            session.transfer.send_again(times.sent_ns);
        }
        session
    }
}

impl FastPath for Frozen {
    fn open(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let mut state = self.state.lock().unwrap();
        let transfer = advanced(transfer, state.skip, now_ns);
        let skipped = transfer.in_flight().map(|blocks| BlockNo::of(blocks.last).0);
        if state.not_yet > 0 {
            state.skipped.extend(skipped.map(|block| (key, block)));
            return Err(Declined::NotYet);
        }
        self.dataplane.open(key, stations, blob, transfer, now_ns, idle)?;
        let times = Times { sent_ns: transfer.sent_ns(), opened_ns: now_ns, thawed_at_ns: 0 };
        state.sessions.insert(key, times);
        state.skipped.extend(skipped.map(|block| (key, block)));
        Ok(())
    }

    fn hand_over(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let mut state = self.state.lock().unwrap();
        state.not_yet = state.not_yet.saturating_sub(1);
        if state.not_yet > 0 {
            return Err(Declined::NotYet);
        }
        self.dataplane.open(key, stations, blob, transfer, now_ns, idle)?;
        let times = Times { sent_ns: transfer.sent_ns(), opened_ns: now_ns, thawed_at_ns: 0 };
        state.sessions.insert(key, times);
        state.handed_over += 1;
        Ok(())
    }

    fn note(&self, key: &SessionKey, note: &Note) {
        self.dataplane.note(key, note);
    }

    fn left(&self) -> Vec<Left> {
        Vec::new()
    }

    fn look(&self, key: &SessionKey) -> Option<map::Session> {
        Some(self.frozen(key, self.dataplane.look(key)?))
    }

    fn take_back(&self, key: &SessionKey) -> Option<map::Session> {
        Some(self.frozen(key, self.dataplane.take_back(key)?))
    }

    fn close(&self, key: &SessionKey) -> Option<map::Session> {
        let last = self.dataplane.close(key).map(|session| self.frozen(key, session));
        self.state.lock().unwrap().sessions.remove(key);
        last
    }
}

/// The session's state when `blocks` blocks were acknowledged, window by window.
pub(super) fn advanced(mut session: Session, blocks: u32, now_ns: u64) -> Session {
    while session.acked() < blocks && session.in_flight().is_none_or(|b| b.last < session.blocks()) {
        let ack = session.in_flight().map_or(0, |blocks| blocks.last);
        session.on_ack(BlockNo::of(ack), now_ns);
    }
    session
}
