//! Transfers in the kernel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pxe_common::map::{Session, SessionKey, Stations};
use pxe_common::tftp;

use super::filling::Filling;
use super::load::{NOTE_LEN, NoteMap, SessionMap};
use super::publish::{Blobs, Grant};
use crate::serve::tftp::{Declined, Left, Note};

pub(super) struct Sessions {
    pub(super) map: SessionMap,
    notes: NoteMap,
    /// The blob that a session may read stays published while the session is in here.
    open: HashMap<SessionKey, Grant>,
    /// What transfers wait for that the daemon has begun.
    waiting: HashMap<SessionKey, Arc<Filling>>,
}

impl Sessions {
    pub(super) fn new(map: SessionMap, notes: NoteMap) -> Self {
        Self { map, notes, open: HashMap::new(), waiting: HashMap::new() }
    }

    /// Returns the sessions of a killed daemon that have a note; the others are removed.
    pub(super) fn take_over(&mut self, blobs: &Blobs) -> Vec<Left> {
        let mut left = Vec::new();
        for key in self.map.keys().filter_map(Result::ok).collect::<Vec<_>>() {
            let known = self.look(&key).zip(self.note_of(&key));
            match known.and_then(|(session, note)| Some((blobs.regrant(&session, &note)?, session, note))) {
                Some(((grant, blob), session, note)) => {
                    self.open.insert(key, grant);
                    left.push(Left { key, session, note, blob });
                }
                None => {
                    self.close(&key);
                }
            }
        }
        // Notes whose session was never entered, or was removed first.
        for key in self.notes.keys().filter_map(Result::ok).collect::<Vec<_>>() {
            if !self.open.contains_key(&key) {
                let _ = self.notes.remove(&key);
            }
        }
        blobs.retract_unknown();
        left
    }

    /// `text` is a note's, [written](written_note).
    pub(super) fn note(&mut self, key: &SessionKey, text: [u8; NOTE_LEN]) {
        if let Err(error) = self.notes.insert(key, text, 0) {
            tracing::warn!(%error, "a restart would lose a transfer");
        }
    }

    fn note_of(&self, key: &SessionKey) -> Option<Note> {
        let text = self.notes.get(key, 0).ok()?;
        serde_json::from_slice(text.split(|byte| *byte == 0).next()?).ok()
    }

    pub(super) fn open(
        &mut self,
        key: SessionKey,
        stations: Stations,
        grant: Grant,
        transfer: tftp::Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let session = Session {
            transfer,
            blob: grant.blob,
            sums: grant.sums,
            idle_ns: u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX),
            opened_ns: now_ns,
            sent_by_xdp: 0,
            sent_by_tc: 0,
            stations,
            unused: [0; 4],
        };
        self.map.insert(key, session, 0)?;
        self.open.insert(key, grant);
        Ok(())
    }

    pub(super) fn waits_for(&mut self, key: &SessionKey) -> Option<Arc<Filling>> {
        self.waiting.remove(key)
    }

    pub(super) fn wait_for(&mut self, key: SessionKey, filling: Arc<Filling>) {
        self.waiting.insert(key, filling);
    }

    pub(super) fn look(&self, key: &SessionKey) -> Option<Session> {
        self.map.get(key, 0).ok()
    }

    /// Removes the session; its blob stays.
    pub(super) fn take_back(&mut self, key: &SessionKey) -> Option<Session> {
        let last = self.look(key);
        if let Err(error) = self.map.remove(key) {
            tracing::debug!(?key, %error, "a session was gone already");
        }
        last
    }

    /// Removes the session. Its blob may be removed after that, when the grant is dropped.
    pub(super) fn close(&mut self, key: &SessionKey) -> (Option<Session>, Option<Grant>) {
        let last = self.take_back(key);
        // A very short transfer may have none.
        let _ = self.notes.remove(key);
        self.waiting.remove(key);
        (last, self.open.remove(key))
    }
}

/// A note as the kernel keeps it.
pub(super) fn written_note(note: &Note) -> Option<[u8; NOTE_LEN]> {
    let mut text = [0; NOTE_LEN];
    let written = serde_json::to_writer(&mut text[..], note).or_else(|_| {
        // Only the path can be too long, and it is only for people to read.
        text.fill(0);
        serde_json::to_writer(&mut text[..], &Note { path: "a long path".into(), ..note.clone() })
    });
    match written {
        Ok(()) => Some(text),
        Err(error) => {
            tracing::warn!(%error, "a restart would lose a transfer");
            None
        }
    }
}
