//! The images that profiles name, brought in in the background: a boot never waits for Docker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Image, ImageSource, Images};
use crate::config::{Config, Source};

/// Pause before an image that could not be brought in is tried again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whether an image can be booted.
#[derive(Clone, Debug)]
pub enum Availability {
    Ready(Image),
    /// It is being brought in.
    Preparing,
    /// It could not be brought in so far, for this reason; it is tried again.
    Failed(String),
}

/// The images that the configuration's profiles name. Cloning it is cheap.
///
/// An image that is in the store is served from there while the engine is asked for a newer one,
/// and when no engine answers.
#[derive(Clone)]
pub struct Wanted(Arc<Inner>);

struct Inner {
    images: Images,
    shutdown: CancellationToken,
    /// Why the last attempt at each failed; none while the first one is under way.
    failures: Mutex<HashMap<String, Option<String>>>,
}

impl Wanted {
    pub fn new(images: Images, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner { images, shutdown, failures: Mutex::default() }))
    }

    /// Brings in what `config` names, at start and after a reload.
    pub fn want(&self, config: &Config) {
        for profile in &config.profiles {
            let Source::Image(reference) = &profile.source else { continue };
            let is_new = self.failures().insert(reference.clone(), None).is_none();
            if is_new {
                tokio::spawn(self.clone().bring_in(reference.clone()));
            }
        }
    }

    pub fn availability(&self, reference: &str) -> Availability {
        if let Some(image) = self.0.images.get(reference) {
            return Availability::Ready(image);
        }
        match self.failures().get(reference) {
            Some(Some(cause)) => Availability::Failed(cause.clone()),
            Some(None) | None => Availability::Preparing,
        }
    }

    async fn bring_in(self, reference: String) {
        let source = ImageSource::Reference(reference.clone());
        let mut pause = FIRST_PAUSE;
        loop {
            let report = reference.clone();
            let progress = move |progress| tracing::debug!(image = report, %progress, "bringing in");
            let added = tokio::select! {
                added = self.0.images.add(&source, progress) => added,
                () = self.0.shutdown.cancelled() => return,
            };
            match added {
                Ok(image) => {
                    tracing::info!(
                        image = reference,
                        digest = image.record.digest,
                        kernel = image.record.kernel.version,
                        bytes = image.rootfs.len(),
                        "image ready"
                    );
                    self.failures().remove(&reference);
                    return;
                }
                Err(error) => {
                    let kept = self.0.images.get(&reference).is_some();
                    tracing::warn!(image = reference, %error, kept, "image not brought in; trying again");
                    self.failures().insert(reference.clone(), Some(error.to_string()));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.0.shutdown.cancelled() => return,
            }
        }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, Option<String>>> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
