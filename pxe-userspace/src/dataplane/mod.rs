//! The kernel's side of the appliance, and the only place with aya's types.
//!
//! [`Dataplane::load`] loads the embedded programs, [`Dataplane::attach`] attaches them to the bridge's ports. As
//! [`FastPath`] it takes transfers over from the TFTP server: first the blob is published in the block map, then the
//! session entered in the session map. As [`LeaseMap`] it enters the leases that the DHCP server grants. What the
//! programs did is received as [`Events`].
//!
//! Links, maps and programs are removed when the `Dataplane` is dropped. With [`Pins`] they stay until
//! [`remove_left`]: when the daemon is killed, the programs go on with their grants, and the next daemon takes over
//! maps, sessions and links.

mod chunks;
mod counters;
mod events;
mod filling;
mod grants;
mod load;
mod logs;
mod pins;
mod ports;
mod programs;
#[cfg(test)]
mod programs_tests;
mod publish;
#[cfg(test)]
mod publish_tests;
mod sessions;
#[cfg(test)]
mod stack_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pxe_common::Mac;
use pxe_common::map::{Lease, Session, SessionKey, Stations};
use pxe_common::tftp;
use tokio::sync::Notify;

use crate::base::clock::boot_time_ns;
use crate::base::lock::Unpoisoned as _;
use crate::base::text::chain;
use crate::config;
use crate::host::trace::Programs;
use crate::provision::blob::Blob;
use crate::serve::dhcp::LeaseMap;
use crate::serve::tftp::{Declined, FastPath, Left, Note};

pub use counters::{Counters, HookCounters};
pub use events::{Events, Sinks};
pub use load::LoadError;
pub use logs::Logs;
pub use pins::Pins;
pub use ports::{PortStatus, Tier};
pub use programs::{KernelStatus, ProgramState, ProgramStatus};

/// The loaded programs and their maps.
pub struct Dataplane {
    ports: Mutex<ports::Ports>,
    blobs: Arc<publish::Blobs>,
    sessions: Mutex<sessions::Sessions>,
    left: Mutex<Vec<Left>>,
    grants: Mutex<grants::Grants>,
    /// Why the last transfer that should have been handed to the programs was not.
    not_taken: Mutex<Option<String>>,
    counters: Arc<counters::CounterMap>,
    /// Requests that all events of the programs are read.
    settle: Arc<Notify>,
}

impl Dataplane {
    /// Loads the programs that `wanted` may need. If this fails, the daemon goes on without a fast path; a
    /// program that the kernel refuses is no failure: [`kernel`](Dataplane::kernel) reports it.
    ///
    /// The third value gives the programs' debug lines, which they write only if `debug`.
    pub fn load(wanted: config::FastPath, debug: bool) -> Result<(Self, Events, Logs), LoadError> {
        Self::of_object(&load::object()?, wanted, debug, None)
    }

    /// The same, but takes over what a killed daemon left pinned, and pins it for the next one.
    pub fn load_pinned(
        wanted: config::FastPath,
        debug: bool,
        pins: Pins,
    ) -> Result<(Self, Events, Logs), LoadError> {
        Self::of_object(&load::object()?, wanted, debug, Some(pins))
    }

    fn of_object(
        object: &[u8],
        wanted: config::FastPath,
        debug: bool,
        pins: Option<Pins>,
    ) -> Result<(Self, Events, Logs), LoadError> {
        let loaded = load::load(object, wanted, debug, pins.as_ref())?;
        let blobs = publish::Blobs::new(loaded.blobs, loaded.sums);
        let mut sessions = sessions::Sessions::new(loaded.sessions, loaded.notes);
        let left = sessions.take_over(&blobs);
        let dataplane = Self {
            ports: Mutex::new(ports::Ports::new(loaded.programs, pins)),
            blobs: Arc::new(blobs),
            sessions: Mutex::new(sessions),
            left: Mutex::new(left),
            grants: Mutex::new(grants::Grants::new(loaded.leases)),
            not_taken: Mutex::default(),
            counters: loaded.counters,
            settle: loaded.events.asked(),
        };
        Ok((dataplane, loaded.events, Logs::new(loaded.logger)))
    }

    /// The data ports of the transfers that a killed daemon left.
    pub fn left_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = lock(&self.left).iter().map(|left| left.key.server_port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Detaches what a killed daemon left on other ports than these.
    pub fn keep_only(&self, ports: &[String]) -> io::Result<()> {
        lock(&self.ports).keep_only(ports)
    }

    /// Ports attached from now on have a ceiling, so their answers must pass through the port's queues.
    pub fn under_ceiling(&self) {
        lock(&self.ports).under_ceiling();
    }

    /// Attaches the programs to `port`, as far as `wanted` allows and the port can; returns how far.
    pub fn attach(&self, port: &str, wanted: config::FastPath) -> PortStatus {
        lock(&self.ports).attach(port, wanted)
    }

    /// Detaches the programs from `port`.
    pub fn detach(&self, port: &str) {
        lock(&self.ports).detach(port);
    }

    /// Every attached port, and its tier.
    pub fn ports(&self) -> Vec<PortStatus> {
        lock(&self.ports).status()
    }

    /// The port's driver let an XDP program be attached, but never runs it: it is detached, and tc answers.
    pub fn sees_nothing_by_xdp(&self, port: &str) {
        lock(&self.ports).blind(port);
    }

    /// Which programs this kernel accepts.
    pub fn kernel(&self) -> KernelStatus {
        lock(&self.ports).kernel()
    }

    /// Why transfers can't be handed to the programs; `None` while they can.
    pub fn not_taken(&self) -> Option<String> {
        lock(&self.not_taken).clone()
    }

    /// What the programs saw and did.
    pub fn counters(&self) -> Counters {
        self.counters.read()
    }

    /// Bytes that the block map holds.
    pub fn published_bytes(&self) -> u64 {
        self.blobs.bytes()
    }
}

impl Dataplane {
    /// For `bridgehead status`.
    fn remember(&self, opened: &Result<(), Declined>) {
        match opened {
            Ok(()) => *lock(&self.not_taken) = None,
            Err(why @ (Declined::Kernel(_) | Declined::Full { .. })) => {
                *lock(&self.not_taken) = Some(chain(why));
            }
            // As it should be, or the file's own fault.
            Err(
                Declined::BlockSize
                | Declined::Small
                | Declined::Read(_)
                | Declined::Changed
                | Declined::NotYet,
            ) => {}
        }
    }
}

impl FastPath for Dataplane {
    fn open(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: tftp::Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let opened = self
            .blobs
            .grant(blob, &transfer)
            .and_then(|grant| lock(&self.sessions).open(key, stations, grant, transfer, now_ns, idle));
        self.remember(&opened);
        opened
    }

    fn hand_over(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: tftp::Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined> {
        let mut waits = lock(&self.sessions).waits_for(&key);
        let granted = self.blobs.grant_later(blob, &transfer, &mut waits);
        let mut sessions = lock(&self.sessions);
        if let Some(filling) = waits {
            sessions.wait_for(key, filling);
        }
        let opened = granted.and_then(|grant| sessions.open(key, stations, grant, transfer, now_ns, idle));
        drop(sessions);
        self.remember(&opened);
        opened
    }

    fn note(&self, key: &SessionKey, note: &Note) {
        // Written before the lock is taken, because packets wait for the lock.
        if let Some(text) = sessions::written_note(note) {
            lock(&self.sessions).note(key, text);
        }
    }

    fn left(&self) -> Vec<Left> {
        std::mem::take(&mut lock(&self.left))
    }

    fn look(&self, key: &SessionKey) -> Option<Session> {
        lock(&self.sessions).look(key)
    }

    fn take_back(&self, key: &SessionKey) -> Option<Session> {
        lock(&self.sessions).take_back(key)
    }

    fn close(&self, key: &SessionKey) -> Option<Session> {
        let (last, grant) = lock(&self.sessions).close(key);
        drop(grant);
        if self.blobs.has_excess() {
            let blobs = self.blobs.clone();
            // It waits for the running programs, and the closing of transfers should not.
            std::thread::spawn(move || blobs.retract_excess());
        }
        last
    }
}

impl Programs for Dataplane {
    fn traced(&self) {
        lock(&self.ports).traced();
    }

    fn untraced(&self) {
        lock(&self.ports).untraced();
    }
}

impl LeaseMap for Dataplane {
    fn grant(&self, mac: Mac, lease: &Lease) {
        lock(&self.grants).grant(mac, lease, boot_time_ns());
    }

    fn revoke(&self, mac: Mac) {
        lock(&self.grants).revoke(mac);
    }

    fn grant_only(&self, leases: &[(Mac, Lease)]) {
        lock(&self.grants).grant_only(leases, boot_time_ns());
    }

    fn settle(&self) {
        self.settle.notify_one();
    }
}

/// Which of the programs that `wanted` may need this kernel accepts. None of them stays loaded.
pub fn survey(wanted: config::FastPath) -> Result<KernelStatus, LoadError> {
    Dataplane::load(wanted, false).map(|(dataplane, ..)| dataplane.kernel())
}

/// Removes what a killed daemon left: pins, and filters on these ports.
pub fn remove_left(pins: &Pins, ports: &[String]) -> io::Result<()> {
    ports.iter().for_each(|port| ports::remove_filters(port));
    pins.remove()
}

/// A panic elsewhere leaves the maps consistent, because every change is one system call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unpoisoned()
}
