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
    /// From now on the transfer's ACKs may be answered without the daemon, if they come from its `stations`, until
    /// nothing has been sent for `idle`. May read the whole blob, and so block.
    fn open(
        &self,
        key: SessionKey,
        stations: Stations,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined>;

    /// Stores with a transfer what the next daemon needs to continue it, should this one be killed.
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
}
