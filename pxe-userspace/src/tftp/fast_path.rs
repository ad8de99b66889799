//! What the TFTP server needs of the kernel.

use std::io;
use std::time::Duration;

use pxe_common::map::{self, SessionKey};
use pxe_common::tftp::Session;

use crate::blob::Blob;

/// Takes transfers over. Implemented by the dataplane.
pub trait FastPath: Send + Sync {
    /// From now on the transfer's ACKs may be answered without the daemon, until nothing has been
    /// sent for `idle`. May read the whole blob, so may block.
    fn open(
        &self,
        key: SessionKey,
        blob: &Blob,
        transfer: Session,
        now_ns: u64,
        idle: Duration,
    ) -> Result<(), Declined>;

    /// How far a transfer is.
    fn look(&self, key: &SessionKey) -> Option<map::Session>;

    /// Ends the grant; says how far the transfer got.
    fn close(&self, key: &SessionKey) -> Option<map::Session>;
}

/// Why the fast path does not take a transfer.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    #[error("the block size is larger than the kernel programs send")]
    BlockSize,
    #[error("the file is too large for the block map")]
    TooLarge,
    #[error("the block map or the session map did not take it")]
    Kernel(#[source] io::Error),
    #[error("the file could not be read")]
    Read(#[from] io::Error),
}
