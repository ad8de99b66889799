//! Large blobs, published while the daemon sends them.
//!
//! Reading a blob into the block map takes seconds a GiB, and no client waits so long for its first answer. So the
//! daemon begins the transfer from the file, and asks again and again; once the blob is in the map, the kernel goes on.
//! A thread fills the map, as long as some transfer waits for it: who asked for a size only, or went away, is no reason
//! to read gigabytes and to keep them.

use std::sync::{Arc, OnceLock};

use pxe_common::tftp::Session;

use super::lock;
use super::publish::{Blobs, Grant};
use crate::provision::blob::{Blob, BlobKey};
use crate::serve::tftp::Declined;

/// Blobs that are published beside at a time. Further ones wait for their turn with the daemon.
const FILLING_AT_ONCE: usize = 4;

/// A blob being published. Those who wait for it hold it.
#[derive(Debug, Default)]
pub(super) struct Filling {
    /// What came of it. A blob stays for those who wait, whatever else needs room.
    ended: OnceLock<Result<Grant, Declined>>,
}

impl Blobs {
    /// The grant of a transfer that goes on already, if its blob is published by now. If not, the caller waits from now
    /// on, by keeping what is in `waits` until its transfer ends. Blocks for nobody.
    pub(super) fn grant_later(
        self: &Arc<Self>,
        blob: &Blob,
        transfer: &Session,
        waits: &mut Option<Arc<Filling>>,
    ) -> Result<Grant, Declined> {
        if let Some(grant) = self.ready(blob, transfer) {
            *waits = None;
            return Ok(grant);
        }
        let mut shelf = lock(&self.shelf);
        if let Some(filling) = shelf.filling.get(&blob.key()) {
            *waits = Some(filling.clone());
            return Err(Declined::NotYet);
        }
        if let Some(Err(failed)) = waits.take().as_ref().and_then(|filling| filling.ended.get()) {
            return Err(failed.again());
        }
        if shelf.filling.len() >= FILLING_AT_ONCE {
            return Err(Declined::NotYet);
        }
        let filling = Arc::<Filling>::default();
        shelf.filling.insert(blob.key(), filling.clone());
        drop(shelf);
        let (blobs, blob, transfer) = (self.clone(), blob.clone(), *transfer);
        *waits = Some(filling.clone());
        let key = blob.key();
        let thread = move || {
            let ended = Ended { blobs: &blobs, key, filling };
            // Beside who waits, the shelf holds it, and this thread.
            let wanted = || Arc::strong_count(&ended.filling) > 2;
            let filled = blobs.fill(&blob, &transfer, &wanted);
            // Nobody else says so.
            let _ = ended.filling.ended.set(filled);
        };
        match std::thread::Builder::new().name("block-map".into()).spawn(thread) {
            Ok(_) => Err(Declined::NotYet),
            Err(error) => {
                lock(&self.shelf).filling.remove(&key);
                Err(Declined::Kernel(error))
            }
        }
    }
}

/// Takes a blob out of what is being published, also after a panic.
struct Ended<'a> {
    blobs: &'a Blobs,
    key: BlobKey,
    filling: Arc<Filling>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.blobs.shelf).filling.remove(&self.key);
    }
}
