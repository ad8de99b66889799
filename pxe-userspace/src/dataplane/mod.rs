//! The kernel's side of the appliance, and the only place with aya's types.
//!
//! [`Dataplane::load`] hands the embedded programs to the kernel, [`Dataplane::attach`] puts them
//! on the bridge's ports, and as [`FastPath`] it takes transfers over from the TFTP server: the
//! blob goes into the block map, then the session into the session map. As [`LeaseMap`] it takes
//! machines over from the DHCP server. What the programs did comes out as [`Events`]. Links, maps
//! and programs go when the `Dataplane` is dropped.

mod chunks;
mod counters;
mod events;
mod grants;
mod load;
mod logs;
mod ports;
mod publish;
mod sessions;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pxe_common::Mac;
use pxe_common::map::{Lease, Session, SessionKey};
use pxe_common::tftp;

use crate::blob::Blob;
use crate::clock::boot_time_ns;
use crate::config;
use crate::dhcp::LeaseMap;
use crate::tftp::{Declined, FastPath};

pub use counters::{Counters, HookCounters};
pub use events::Events;
pub use load::LoadError;
pub use logs::Logs;
pub use ports::{PortStatus, Tier};

/// The loaded programs and their maps.
pub struct Dataplane {
    ports: Mutex<ports::Ports>,
    blobs: Mutex<publish::Blobs>,
    sessions: Mutex<sessions::Sessions>,
    grants: Mutex<grants::Grants>,
    counters: counters::CounterMap,
}

impl Dataplane {
    /// Loads the programs. Where this fails the daemon goes on without a fast path.
    ///
    /// The third value carries the programs' debug lines, which they write only when `debug`.
    pub fn load(debug: bool) -> Result<(Self, Events, Logs), LoadError> {
        let loaded = load::load(debug)?;
        let dataplane = Self {
            ports: Mutex::new(ports::Ports::new(loaded.ebpf)),
            blobs: Mutex::new(publish::Blobs::new(loaded.blobs, loaded.sums)),
            sessions: Mutex::new(sessions::Sessions::new(loaded.sessions)),
            grants: Mutex::new(grants::Grants::new(loaded.leases)),
            counters: loaded.counters,
        };
        Ok((dataplane, loaded.events, Logs::new(loaded.logger)))
    }

    /// Puts the programs on `port` as far as `wanted` allows and the port can; says how far.
    pub fn attach(&self, port: &str, wanted: config::FastPath) -> PortStatus {
        lock(&self.ports).attach(port, wanted)
    }

    /// Takes the programs off `port`.
    pub fn detach(&self, port: &str) {
        lock(&self.ports).detach(port);
    }

    /// Every port that was attached to, and its tier.
    pub fn ports(&self) -> Vec<PortStatus> {
        lock(&self.ports).status()
    }

    /// What the programs saw and did.
    pub fn counters(&self) -> Counters {
        self.counters.read()
    }

    /// Bytes that the block map holds.
    pub fn published_bytes(&self) -> u64 {
        lock(&self.blobs).bytes()
    }
}

impl FastPath for Dataplane {
    fn open(
        &self,
        key: SessionKey,
        blob: &Blob,
        transfer: tftp::Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let grant = lock(&self.blobs).grant(blob, &transfer)?;
        lock(&self.sessions).open(key, grant, transfer, now_ns, idle)
    }

    fn look(&self, key: &SessionKey) -> Option<Session> {
        lock(&self.sessions).look(key)
    }

    fn close(&self, key: &SessionKey) -> Option<Session> {
        lock(&self.sessions).close(key)
    }
}

impl LeaseMap for Dataplane {
    fn grant(&self, mac: Mac, lease: &Lease) {
        lock(&self.grants).grant(mac, lease, boot_time_ns());
    }

    fn revoke(&self, mac: Mac) {
        lock(&self.grants).revoke(mac);
    }

    fn revoke_all(&self) {
        lock(&self.grants).revoke_all();
    }
}

/// A panic elsewhere leaves maps that are whole: every change is one system call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
