//! The images that profiles name. They are added in the background, because a boot never waits for Docker.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pxe_contract::backoff::Backoff;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{DOCKER_NODE_FILE, Image, ImageSource, Images, enrol};
use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, DOCKER_NODE, ENROL, Source};

/// Pauses between attempts to add an image.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));

/// The same where one is here, added from an archive perhaps: it is asked only whether there is a newer one.
const NEWER_AFTER: Duration = Duration::from_secs(600);

/// Whether an image can be booted.
#[derive(Clone, Debug)]
pub enum Availability {
    Ready(Image),
    /// It is being added.
    Preparing,
    /// It could not be added so far, for this reason; the daemon tries again.
    Failed(String),
}

/// The images that the configuration's profiles name. Cloning it is cheap.
///
/// An image in the store is served from there while the engine is asked for a newer one, and when no engine answers.
#[derive(Clone)]
pub struct Wanted(Arc<Inner>);

struct Inner {
    images: Images,
    shutdown: CancellationToken,
    /// The images that are being added.
    pending: Mutex<HashMap<String, Pending>>,
}

struct Pending {
    /// Why the last attempt failed; `None` during the first one.
    failure: Option<String>,
    /// Ends the attempts when no profile names the image any more.
    _attempts: DropGuard,
}

impl Wanted {
    pub fn new(images: Images, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner { images, shutdown, pending: Mutex::default() }))
    }

    /// Adds the images that `config` names, at start and after a reload, and stops adding others.
    pub fn want(&self, config: &Config) {
        let named = config.profiles.iter().filter_map(|profile| match &profile.source {
            Source::Image(reference) => Some(reference),
            Source::Kernel { .. } => None,
        });
        let named: HashSet<&String> = named.collect();
        let mut pending = self.pending();
        pending.retain(|reference, _| named.contains(reference));
        for reference in named {
            pending.entry(reference.clone()).or_insert_with(|| {
                let stop = self.0.shutdown.child_token();
                tokio::spawn(self.clone().bring_in(reference.clone(), stop.clone()));
                Pending { failure: None, _attempts: stop.drop_guard() }
            });
        }
    }

    pub fn availability(&self, reference: &str) -> Availability {
        if let Some(image) = self.0.images.get(reference) {
            return Availability::Ready(image);
        }
        // A pinned one is never brought in: its tag may be another image's by now.
        if reference.contains('@') && !self.pending().contains_key(reference) {
            let words = "a launch pinned it, and it is not here any more: launch the machine again";
            return Availability::Failed(words.to_owned());
        }
        match self.pending().get(reference).and_then(|pending| pending.failure.clone()) {
            Some(cause) => Availability::Failed(cause),
            None => Availability::Preparing,
        }
    }

    async fn bring_in(self, reference: String, stop: CancellationToken) {
        // It is made when it is wanted, and is gone with this.
        let made;
        let source = match reference.as_str() {
            DOCKER_NODE => ImageSource::Path(self.0.images.0.assets.join(DOCKER_NODE_FILE)),
            ENROL => match enrol::archive(&self.0.images.work()) {
                Ok(archive) => {
                    made = archive;
                    ImageSource::Path(made.path().to_owned())
                }
                Err(error) => {
                    tracing::error!(%error, "the image of machines that enrol can't be made in the state directory");
                    return self.failed(&reference, error.to_string());
                }
            },
            _ => ImageSource::Reference(reference.clone()),
        };
        let mut pauses = PAUSES;
        let mut told = None;
        loop {
            let kept;
            let report = reference.clone();
            let progress = move |progress| tracing::debug!(image = report, %progress, "bringing in");
            let added = tokio::select! {
                added = self.0.images.add(&source, false, progress) => added,
                () = self.0.shutdown.cancelled() => return,
            };
            // Not in the middle of an attempt: what it writes has no name until its end.
            if stop.is_cancelled() {
                return;
            }
            match added {
                Ok(image) => {
                    tracing::info!(
                        image = reference,
                        digest = image.record.digest,
                        kernel = image.record.kernel.version,
                        bytes = image.rootfs.len(),
                        "image ready"
                    );
                    self.pending().remove(&reference);
                    return;
                }
                Err(error) => {
                    kept = self.0.images.get(&reference).is_some();
                    let words = error.to_string();
                    // Once, and not with every attempt.
                    match (told.as_ref() == Some(&words), kept) {
                        (true, _) => tracing::debug!(image = reference, %error, kept, "image not brought in"),
                        (false, true) => tracing::info!(
                            image = reference,
                            %error,
                            "the image is here, and it can't be seen whether there is a newer one"
                        ),
                        (false, false) => {
                            tracing::warn!(image = reference, %error, "image not brought in; trying again");
                        }
                    }
                    self.failed(&reference, words.clone());
                    told = Some(words);
                }
            }
            let pause = pauses.pause();
            tokio::select! {
                () = tokio::time::sleep(if kept { pause.max(NEWER_AFTER) } else { pause }) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn failed(&self, reference: &str, why: String) {
        if let Some(pending) = self.pending().get_mut(reference) {
            pending.failure = Some(why);
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        self.0.pending.lock().unpoisoned()
    }
}
