//! From names to bytes: what a path means, the same for TFTP and HTTP.
//!
//! [`Catalog`] knows every path: loaders, generated files for each machine, blobs of images, and below all of them the
//! files root ([`Root`]).

mod catalog;
mod root;

use std::net::Ipv4Addr;

use pxe_common::Mac;

use crate::machines::timeline::Stage;
use crate::provision::blob::Blob;

pub use catalog::{Catalog, Kept, OpenRoot, RootError};
pub use root::Root;

/// A file that can be sent.
#[derive(Clone, Debug)]
pub struct Opened {
    pub blob: Blob,
    /// The stage of a boot that is reached when the file was sent completely; `None` for plain files.
    pub stage: Option<Stage>,
}

/// Why a path can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no such file")]
    NotFound,
    #[error("the path leads outside the files root")]
    Outside,
    #[error("it is a directory")]
    Directory,
    #[error("{0}")]
    Refused(String),
    /// It belongs to another machine, or can't be fetched in this way.
    #[error("{0}")]
    Forbidden(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Resolves paths. Implemented by the daemon's catalogue, and by tests.
pub trait Files: Send + Sync {
    /// Opens `path` for the client at `client`. A leading `/` has no meaning (GRUB sends one).
    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError>;

    /// The initrd of one machine, generated for this boot, for the client at `client`. Only by HTTP, and never stored.
    fn node(&self, mac: Mac, client: Ipv4Addr) -> Result<Vec<u8>, OpenError> {
        let _ = (mac, client);
        Err(OpenError::NotFound)
    }
}
