//! What the TFTP server needs from the kernel.

use std::io;
use std::time::Duration;

use pxe_common::map::{self, SessionKey, Stations};
use pxe_common::tftp::Session;
use serde::{Deserialize, Serialize};

use crate::machines::timeline::Stage;
use crate::provision::blob::{Blob, BlobKey};

/// Takes transfers over. Implemented by the dataplane.
pub trait FastPath: Send + Sync {
    /// From now on the transfer's ACKs may be answered without the daemon, where they come from its `stations`, until
    /// nothing has been sent for `idle`. May read the whole blob, so may block, but for no longer than a client waits:
    /// a large blob that nobody has asked for yet is [`NotYet`](Declined::NotYet) the kernel's.
    fn open(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined>;

    /// The same for a transfer that the daemon began, because the blob was [`NotYet`](Declined::NotYet) the kernel's.
    /// It is made so beside, while somebody waits for it: until the grant is [closed](FastPath::close). Costs what
    /// [`look`](FastPath::look) does, and once a blob the start of a thread.
    fn hand_over(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined>;

    /// Keeps with a transfer what the next daemon needs to go on with it, should this one be killed.
    fn note(&self, key: &SessionKey, note: &Note);

    /// Transfers that a killed daemon left, and that go on. Returned once.
    fn left(&self) -> Vec<Left>;

    /// A transfer's progress. Takes a system call, and a lock that nobody holds for longer than a few of them.
    fn look(&self, key: &SessionKey) -> Option<map::Session>;

    /// From now on only the daemon answers the transfer's ACKs; returns its progress. The grant stays until it is closed.
    /// Costs what [`look`](FastPath::look) does.
    fn take_back(&self, key: &SessionKey) -> Option<map::Session>;

    /// Ends the grant; returns the transfer's progress, unless it was taken back. May wait for other opens and closes.
    fn close(&self, key: &SessionKey) -> Option<map::Session>;
}

/// What the kernel does not need to know about a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub path: String,
    pub stage: Option<Stage>,
    pub started_ns: u64,
    pub blob: BlobKey,
    pub len: u64,
    /// The transfer's first packet, to be retransmitted until the client acknowledges it: a client that
    /// has received it sends no further request, and GRUB does not retransmit its ACK.
    #[serde(default)]
    pub oack: Option<Vec<u8>>,
}

/// A transfer that a killed daemon left.
#[derive(Debug)]
pub struct Left {
    pub key: SessionKey,
    pub session: map::Session,
    pub note: Note,
    /// Read from the kernel's copy, because the file may have been replaced.
    pub blob: Blob,
}

/// Why the fast path does not take a transfer.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    #[error("the block size is larger than the kernel programs send")]
    BlockSize,
    #[error("the file is too small to be worth a place in the block map")]
    Small,
    #[error(
        "the block map has no room: the file needs {} MiB, and {} of {} MiB, half of this machine's memory, are taken",
        needed >> 20, used >> 20, limit >> 20
    )]
    Full { needed: u64, used: u64, limit: u64 },
    #[error("the block map or the session map did not take it")]
    Kernel(#[source] io::Error),
    #[error("the file could not be read")]
    Read(#[from] io::Error),
    #[error("the file was written to while it went into the block map")]
    Changed,
    #[error("the file is large, and goes into the block map while it is sent")]
    NotYet,
}

impl Declined {
    /// The same, for the next who asks.
    pub fn again(&self) -> Self {
        // An error of the system has its number, by which it is made again.
        let again = |error: &io::Error| match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        match self {
            Self::BlockSize => Self::BlockSize,
            Self::Small => Self::Small,
            Self::Full { needed, used, limit } => Self::Full { needed: *needed, used: *used, limit: *limit },
            Self::Kernel(error) => Self::Kernel(again(error)),
            Self::Read(error) => Self::Read(again(error)),
            Self::Changed => Self::Changed,
            Self::NotYet => Self::NotYet,
        }
    }

    /// Says in the log that the daemon sends a file by itself.
    pub(super) fn log(&self, path: &str) {
        match self {
            Self::Kernel(_) => {
                let why: &dyn std::error::Error = self;
                tracing::warn!(path, why, "the fast path failed; the daemon goes on");
            }
            Self::Full { .. } => tracing::warn!(path, why = %self, "the daemon sends it, which is slower"),
            Self::BlockSize | Self::Small | Self::Read(_) | Self::Changed | Self::NotYet => {
                tracing::debug!(path, why = %self, "left to the daemon");
            }
        }
    }
}
