//! State that outlives the daemon: one database, with one writer and several readers.
//!
//! Only a row's owner knows what it means. Owners submit [`Change`]s, which are written in the order of submission,
//! whichever owner's they are. Changes that queue while the disk is busy become one transaction (group commit): a disk
//! that takes 1 s for a commit delays each owner by 2 s at most. An owner that must know that a change survives a
//! power cut waits for its [`Pending`]; nobody else waits.
//!
//! [`Engine`] says what a database must do. [`sqlite`] is the only engine, and nothing above this module names it.

mod engine;
mod rows;
pub mod sqlite;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

pub use engine::{BoxError, Durability, Engine, Reader};
pub use rows::{
    AssignmentRow, AuditRow, Change, CredentialsRow, Document, EventRow, LaunchEventRow, LaunchMachineRow,
    LaunchRow, LaunchedRow, LeaseRow, LoginRow, NamedRow, NodeRow, PinRow, SealedKey, TokenRow, VolumeKeyId,
};
use writer::{Answer, Queue};

/// The database's name in the state directory.
pub const FILE: &str = "bridgehead.db";

/// How long the daemon's end waits for the last changes. A disk that needs longer has a problem of its own.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// The database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("opening {path}: {source}")]
    Open { path: PathBuf, source: BoxError },
    #[error(
        "{path} is damaged or not Bridgehead's: {found}. Move it away to start without leases and timeline \
         (machines keep their addresses as they ask again), or restore a copy"
    )]
    Damaged { path: PathBuf, found: String },
    #[error(
        "{path} is a newer Bridgehead's (its layout is {found}, this program knows {known}): run that one, \
         or move the file away to start without leases and timeline"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{path} could not be brought from layout {from} to {to}: {source}. Nothing in it was changed: \
         mend that and start again, or run the program that made it"
    )]
    Migrate { path: PathBuf, from: i64, to: i64, source: BoxError },
}

/// A query failed.
#[derive(Debug, thiserror::Error)]
#[error("reading {what} from {place}: {source}")]
pub struct ReadError {
    pub what: &'static str,
    /// Which database.
    pub place: String,
    pub source: BoxError,
}

/// Changes could not be written. None of them was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("writing {what} to the database: {source}")]
    Engine { what: &'static str, source: BoxError },
    #[error("writing {what} to the database: its writer has ended")]
    Ended { what: &'static str },
}

/// The store's handle. Cloning it is cheap; the writer ends when the last clone is gone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    queue: Queue,
    reader: Box<dyn Reader>,
}

impl Store {
    /// Opens the SQLite database at `path`, which is created when missing and migrated when older.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::on(sqlite::open(path)?))
    }

    /// Opens a store on this engine.
    pub fn on(engine: impl Engine) -> Self {
        let reader = engine.reader();
        Self(Arc::new(Inner { queue: Queue::start(Box::new(engine)), reader }))
    }

    /// Reads what is stored now. Changes that were handed over earlier may still be queued.
    pub fn reader(&self) -> &dyn Reader {
        &*self.0.reader
    }

    /// Hands changes over, to be written in one transaction.
    ///
    /// Returns at once. A failure is logged, unless somebody waits for the answer.
    pub fn write(&self, changes: Vec<Change>) -> Pending {
        let what = changes.first().map_or("nothing", Change::what);
        let (answer, pending) = mpsc::sync_channel(1);
        self.0.queue.push(changes, Some(Answer::Thread(answer)));
        Pending { what, answer: pending }
    }

    /// The same for a task. The changes are handed over now, even if the future is never polled.
    pub fn written(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), WriteError>> + use<> {
        let what = changes.first().map_or("nothing", Change::what);
        let (answer, pending) = oneshot::channel();
        self.0.queue.push(changes, Some(Answer::Task(answer)));
        pending.map(move |written| written.unwrap_or(Err(WriteError::Ended { what })))
    }

    /// The same if nobody waits for the answer, as for the timeline's events. Events are dropped and counted while the
    /// queue is full, because the disk does not keep up.
    pub fn post(&self, change: Change) {
        self.0.queue.push(vec![change], None);
    }

    /// Waits until everything handed over so far is written, for a bounded time. For the daemon's end.
    pub fn flush(&self) {
        let pending = self.write(Vec::new());
        if pending.answer.recv_timeout(FLUSH_WITHIN).is_err() {
            tracing::warn!("the database did not take up the last changes in time");
        }
    }
}

/// Changes that were handed over.
#[must_use = "a change that somebody relies on is waited for; `post` is for the others"]
pub struct Pending {
    what: &'static str,
    answer: mpsc::Receiver<Result<(), WriteError>>,
}

impl Pending {
    /// Blocks until the changes are written.
    pub fn wait(self) -> Result<(), WriteError> {
        self.answer.recv().unwrap_or(Err(WriteError::Ended { what: self.what }))
    }
}
