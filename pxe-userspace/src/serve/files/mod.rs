//! Names to bytes: what a path means, the same for TFTP and HTTP.
//!
//! [`Catalog`] knows every path: loaders, what is generated for each machine, blobs of images, and
//! below all of them the files root ([`Root`]).

mod catalog;
mod root;

use std::net::Ipv4Addr;

use pxe_common::Mac;

use crate::machines::timeline::Stage;
use crate::provision::blob::Blob;

pub use catalog::{Catalog, Kept, OpenRoot, RootError};
pub use root::Root;

/// Something that can be sent.
#[derive(Clone, Debug)]
pub struct Opened {
    pub blob: Blob,
    /// The stage of a boot that is reached when all of it was sent; none for plain files.
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
    /// It is another machine's, or not for who asks this way.
    #[error("{0}")]
    Forbidden(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Resolves paths. Implemented by the daemon's catalogue, and by tests.
pub trait Files: Send + Sync {
    /// Opens `path` for the client at `client`. A leading `/` means nothing (GRUB sends one).
    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError>;

    /// The initrd of one machine, made for this boot, for the client at `client`. By HTTP only, and kept by nobody.
    fn node(&self, mac: Mac, client: Ipv4Addr) -> Result<Vec<u8>, OpenError> {
        let _ = (mac, client);
        Err(OpenError::NotFound)
    }
}
