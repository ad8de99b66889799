//! Transfers in the kernel.

use std::collections::HashMap;
use std::time::Duration;

use pxe_common::map::{Session, SessionKey};
use pxe_common::tftp;

use super::load::SessionMap;
use super::publish::Grant;
use crate::tftp::Declined;

pub(super) struct Sessions {
    map: SessionMap,
    /// What each session may read stays published while the session is here.
    open: HashMap<SessionKey, Grant>,
}

impl Sessions {
    pub(super) fn new(map: SessionMap) -> Self {
        Self { map, open: HashMap::new() }
    }

    pub(super) fn open(
        &mut self,
        key: SessionKey,
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
        };
        self.map.insert(key, session, 0)?;
        self.open.insert(key, grant);
        Ok(())
    }

    pub(super) fn look(&self, key: &SessionKey) -> Option<Session> {
        self.map.get(key, 0).ok()
    }

    /// The session goes before what it names.
    pub(super) fn close(&mut self, key: &SessionKey) -> Option<Session> {
        let last = self.look(key);
        if let Err(error) = self.map.remove(key) {
            tracing::debug!(?key, %error, "a session was gone already");
        }
        self.open.remove(key);
        last
    }
}
