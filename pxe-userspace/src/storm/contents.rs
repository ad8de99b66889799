//! What files must contain.
//!
//! A path that names its contents (`boot/SHA256/…`) is verified against that digest. The first machine that loads a
//! file keeps it, and it is hashed; the bytes of all others are compared with that copy, block by block as they
//! arrive, which costs a hundredth of hashing them again. Files whose path has no digest must at least be the same
//! for all.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::base::text::hex;
use crate::provision::boot::Generated;

/// Whole files by path, without a leading slash.
#[derive(Debug, Default)]
pub(super) struct Contents(HashMap<String, Arc<[u8]>>);

/// Receives a file's bytes in order.
#[derive(Debug)]
pub(super) struct Sink {
    reference: Option<Arc<[u8]>>,
    kept: Vec<u8>,
    at: usize,
}

/// The bytes are not the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong;

impl Contents {
    /// For the file at `path`.
    pub(super) fn sink(&self, path: &str) -> Sink {
        Sink { reference: self.0.get(path.trim_start_matches('/')).cloned(), kept: Vec::new(), at: 0 }
    }

    /// The file is complete.
    pub(super) fn finish(&mut self, path: &str, sink: Sink) -> Result<(), Wrong> {
        let path = path.trim_start_matches('/');
        if let Some(reference) = sink.reference {
            return if sink.at == reference.len() { Ok(()) } else { Err(Wrong) };
        }
        if let Some(Generated::Image { digest, .. }) = Generated::parse(path)
            && digest != hex(&Sha256::digest(&sink.kept))
        {
            return Err(Wrong);
        }
        // Two may have loaded it at the same time.
        let reference = self.0.entry(path.to_owned()).or_insert_with(|| sink.kept.as_slice().into());
        if **reference == *sink.kept { Ok(()) } else { Err(Wrong) }
    }
}

impl Sink {
    /// For files that differ by machine, such as its configuration.
    pub(super) fn keep() -> Self {
        Self { reference: None, kept: Vec::new(), at: 0 }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let end = self.at + bytes.len();
        match &self.reference {
            Some(reference) if reference.get(self.at..end) != Some(bytes) => return Err(Wrong),
            Some(_) => {}
            None => self.kept.extend_from_slice(bytes),
        }
        self.at = end;
        Ok(())
    }

    /// What was kept, as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(contents: &mut Contents, path: &str, bytes: &[u8]) -> Result<(), Wrong> {
        let mut sink = contents.sink(path);
        bytes.chunks(3).try_for_each(|b| sink.take(b))?;
        contents.finish(path, sink)
    }

    #[test]
    fn a_named_digest_must_fit_and_everybody_gets_the_same() {
        let digest = hex(&Sha256::digest(b"kernel"));
        let named = format!("/boot/{digest}/kernel");
        let mut contents = Contents::default();
        assert_eq!(load(&mut contents, &named, b"kernal"), Err(Wrong));
        assert_eq!(load(&mut contents, &named, b"kernel"), Ok(()));
        assert_eq!(load(&mut contents, &named, b"kernal"), Err(Wrong));
        assert_eq!(load(&mut contents, &named, b"kern"), Err(Wrong), "cut short");
        assert_eq!(load(&mut contents, &named, b"kernel!"), Err(Wrong), "too long");
        assert_eq!(load(&mut contents, "grub/x", b"anything"), Ok(()));
        assert_eq!(load(&mut contents, "/grub/x", b"otherwise"), Err(Wrong));
    }
}
