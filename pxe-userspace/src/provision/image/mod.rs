//! Builds what a machine loads from Docker images: `docker` or a file → `oci` (manifest, layers) → `extract` (layers →
//! one tree) → `kernel`, `stage1` → `initrd` → `store`. All but the first and the last are done by a process of their own
//! that can open nothing: `child`.
//!
//! A machine loads three things: the kernel; stage 1, the same for every machine with that kernel; and the image's root
//! file system, below `/image` in an archive of its own. At the archive's top, `/image.json` says what to run. The
//! archive comes in two forms: an initrd, which Linux unpacks over stage 1, and a SquashFS (stage 2), which pxe-init
//! fetches and mounts.

mod build;
mod child;
mod compression;
mod depmod;
mod docker;
mod documents;
mod enrol;
mod extract;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod initrd;
mod kernel;
mod kernel_files;
mod kernels;
mod manifest;
mod oci;
mod pinned;
mod sent;
mod sparse;
mod squashfs;
mod stage1;
mod store;
mod tar;
mod tree;
mod wanted;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::kernels::ModuleSets;
use self::store::Store;
use crate::base::lock::Unpoisoned as _;
use crate::nodes::engine::{Engine, NoEngine};
use crate::provision::blob::Blob;

pub use self::child::{ChildError, run as import_child};
pub use self::docker::ExportError;
pub use self::extract::ExtractError;
pub use self::initrd::{InitrdError, archive};
pub use self::kernel::{KernelChoice, KernelError, KernelSource};
pub use self::kernels::{
    AddKernelError, KernelList, KernelOrigin, KernelRecord, ModuleError, ModuleSet, ModulesRecord, NewKernel,
};
pub use self::oci::{ArchiveError, ImageConfig};
pub use self::pinned::pinned;
pub use self::sent::{pack_kernel, pack_layout};
pub use self::squashfs::SquashfsError;
pub use self::stage1::Stage1Error;
pub use self::store::{StoreError, Stored};
pub use self::tar::TarError;
pub use self::wanted::{Availability, Wanted};

/// Its path below the assets.
const DOCKER_NODE_FILE: &str = "docker-node/image.tar";

/// The images that machines can boot. Cloning it is cheap.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    store: Store,
    assets: PathBuf,
    engine: Engine,
    /// Of one import.
    limits: child::Limits,
    images: Mutex<BTreeMap<String, Image>>,
    kernels: Mutex<KernelList>,
    module_sets: Mutex<ModuleSets>,
    /// Held while there are blobs that no record refers to yet.
    adding: tokio::sync::Mutex<()>,
}

/// An image that can be sent. Cloning it is cheap; its blobs stay readable while it is held, also after the image was
/// removed.
#[derive(Clone, Debug)]
pub struct Image {
    pub record: Arc<ImageRecord>,
    pub kernel: Blob,
    pub stage1: Blob,
    pub rootfs: Blob,
    /// The root file system as a SquashFS.
    pub stage2: Option<Blob>,
}

/// The record of an image under one of its names, as stored and as `bridgehead images --json` prints it. Each name has
/// a record of its own; they share the blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ImageRecord {
    /// With tag: `hello-metal:latest`.
    pub reference: String,
    /// The image's ID at its source.
    pub id: String,
    /// SHA-256 of the root file system's tree: equal contents have equal digests everywhere.
    pub digest: String,
    /// When the image was built, according to its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it was added.
    #[serde(serialize_with = "crate::base::text::micros")]
    pub added: Timestamp,
    pub config: ImageConfig,
    pub kernel: KernelChoice,
    pub kernel_blob: Stored,
    pub stage1_blob: Stored,
    pub rootfs_blob: Stored,
    /// `None` if the kernel has no modules to mount it with, and in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage2_blob: Option<Stored>,
    pub unpacked: Unpacked,
    /// Digest of the assets that it was built with: with others it is built anew.
    pub assets: String,
}

/// Bytes of a machine's memory that the parts take once unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Unpacked {
    pub kernel: u64,
    pub stage1: u64,
    pub rootfs: u64,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageSource {
    /// The reference of an image in a Docker engine.
    Reference(String),
    /// What `docker save` wrote, or an OCI layout: a tar archive or a directory.
    Path(PathBuf),
}

/// The progress of [`Images::add`]; its text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The engine pulls the image from its registry: what it says, and bytes so far.
    Pulling {
        words: String,
        bytes: u64,
    },
    Exported {
        bytes: u64,
    },
    Layer {
        number: usize,
        of: usize,
    },
    Packing,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulling { words, .. } => write!(f, "pulling: {words}"),
            Self::Exported { .. } => write!(f, "exporting"),
            Self::Layer { number, of } => write!(f, "layer {number} of {of}"),
            Self::Packing => write!(f, "packing"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Child(#[from] ChildError),
    /// What the child says of the archive. The variants from `Archive` on are such words' origin.
    #[error("{0}")]
    Refused(String),
    /// What the child says of the assets.
    #[error("{0}")]
    Assets(String),
    #[error("{path} can't be read: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("layer {number} of {of}: {source}")]
    Layer { number: usize, of: usize, source: ExtractError },
    #[error("layer {number} is damaged: its SHA-256 is {found}, and the image says {expected}")]
    LayerDigest { number: usize, found: String, expected: String },
    #[error(
        "the image names nothing to run. Give it an ENTRYPOINT or CMD (`docker import -c 'CMD [\"…\"]'`)"
    )]
    NoCommand,
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Stage1(#[from] Stage1Error),
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    #[error(transparent)]
    Squashfs(#[from] SquashfsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("working in the state directory: {0}")]
    Work(#[from] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("there is no image {0}")]
    NoSuchImage(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What [`Images::gc`] freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Freed {
    pub files: u64,
    pub bytes: u64,
}

impl Images {
    /// Opens the images in the state directory. A record whose blobs are missing is dropped with a warning: the image
    /// can be added again.
    pub fn open(state_dir: &Path, assets: &Path, engine: Engine) -> Result<Self, StoreError> {
        Self::open_with(state_dir, assets, engine, child::Limits::IMPORT)
    }

    fn open_with(
        state_dir: &Path,
        assets: &Path,
        engine: Engine,
        limits: child::Limits,
    ) -> Result<Self, StoreError> {
        let store = Store::open(state_dir.join("images"))?;
        let mut images = BTreeMap::new();
        for record in store.records()? {
            match Image::open(&store, record) {
                Ok(image) => drop(images.insert(image.record.reference.clone(), image)),
                Err(error) => tracing::warn!(%error, "an image's blob is missing: add the image again"),
            }
        }
        let kernels = Mutex::new(store.kernels()?);
        Ok(Self(Arc::new(Inner {
            store,
            assets: assets.to_owned(),
            engine,
            limits,
            kernels,
            module_sets: Mutex::default(),
            images: Mutex::new(images),
            adding: tokio::sync::Mutex::new(()),
        })))
    }

    /// Whether the engine has an image of this name. It is not asked to pull it.
    pub async fn is_at_engine(&self, reference: &str) -> Result<(), AddError> {
        let docker = self.0.engine.connect().await?;
        docker::resolve(&docker, reference).await?;
        Ok(())
    }

    /// Adds an image, or finds that it is already here. One at a time; other calls wait. With `pull`, the engine pulls a
    /// reference that it does not have.
    pub async fn add(
        &self,
        source: &ImageSource,
        pull: bool,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Image, AddError> {
        let _adding = self.0.adding.lock().await;
        let (name, known_as, exported) = match source {
            ImageSource::Path(path) => (path.clone(), None, None),
            ImageSource::Reference(reference) => {
                let docker = self.0.engine.connect().await?;
                let id = match docker::resolve(&docker, reference).await {
                    Err(ExportError::NoSuchImage { .. }) if pull => {
                        let report = |words, bytes| progress(Progress::Pulling { words, bytes });
                        docker::pull(&docker, reference, report).await?;
                        docker::resolve(&docker, reference).await?
                    }
                    resolved => resolved?,
                };
                let images = self.clone();
                let assets = blocking(move || images.assets_digest()).await?;
                if let Some(image) = self.known(&id, &assets) {
                    return self.enter(&image, &[canonical(reference)]);
                }
                let report = |bytes| progress(Progress::Exported { bytes });
                let file = docker::export(&docker, &id, &self.0.store.work(), report).await?;
                (PathBuf::from(reference), Some((canonical(reference), id)), Some(file))
            }
        };
        let images = self.clone();
        blocking(move || {
            let archive = match exported {
                Some(file) => file,
                None => sent::open_layout(&name, &images.0.store.work())
                    .map_err(|source| AddError::Open { path: name.clone(), source })?,
            };
            images.build(&name, &archive, known_as, &progress)
        })
        .await
    }

    /// The image of this name; `web` means `web:latest`.
    pub fn get(&self, reference: &str) -> Option<Image> {
        self.images().get(&canonical(reference)).cloned()
    }

    /// All names of this record's image.
    pub fn names(&self, record: &ImageRecord) -> Vec<String> {
        let images = self.images();
        let same = images.values().filter(|image| image.record.is_the_same(record));
        same.map(|image| image.record.reference.clone()).collect()
    }

    /// An image that was built from the same source and the same assets, under any name.
    fn known(&self, id: &str, assets: &str) -> Option<Image> {
        let images = self.images();
        images.values().find(|image| image.record.id == id && image.record.assets == assets).cloned()
    }

    /// A blob of an image by its SHA-256, also if the image was replaced or removed since. So a machine that has
    /// already read its configuration still finds it, until [`Images::gc`].
    pub fn blob(&self, sha256: &str) -> io::Result<Option<Blob>> {
        self.0.store.find(sha256)
    }

    /// The directory for files until they are added. What a killed daemon left there is deleted.
    pub fn work(&self) -> PathBuf {
        self.0.store.work()
    }

    /// All records, by name.
    pub fn list(&self) -> Vec<ImageRecord> {
        self.images().values().map(|image| ImageRecord::clone(&image.record)).collect()
    }

    /// Removes an image's name. After the last one its blobs are unused, and stay until [`Images::gc`].
    pub fn rm(&self, reference: &str) -> Result<(), RemoveError> {
        let mut images = self.images();
        let reference = canonical(reference);
        let removed = images.remove(&reference).ok_or(RemoveError::NoSuchImage(reference.clone()))?;
        if let Err(error) = self.0.store.set_records(&records(&images)) {
            images.insert(reference, removed);
            return Err(error.into());
        }
        Ok(())
    }

    /// Removes the blobs that no image and no kernel uses, except `kept`. Waits for an image that is being added.
    pub async fn gc(&self, kept: BTreeSet<String>) -> Result<Freed, StoreError> {
        let _adding = self.0.adding.lock().await;
        let this = self.clone();
        blocking(move || {
            let images = this.images();
            let mut kept = kept;
            kept.extend(images.values().flat_map(|image| image.record.blobs().map(|b| b.sha256.clone())));
            kept.extend(this.kernel_blobs());
            let (files, bytes) = this.0.store.sweep(&kept)?;
            Ok(Freed { files, bytes })
        })
        .await
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, Image>> {
        self.0.images.lock().unpoisoned()
    }
}

impl ImageRecord {
    /// Whether both records are of the same image, perhaps under two names.
    fn is_the_same(&self, other: &Self) -> bool {
        (&self.id, &self.rootfs_blob, &self.assets) == (&other.id, &other.rootfs_blob, &other.assets)
    }

    /// All of its blobs.
    pub fn blobs(&self) -> impl Iterator<Item = &Stored> {
        [&self.kernel_blob, &self.stage1_blob, &self.rootfs_blob].into_iter().chain(&self.stage2_blob)
    }
}

impl Image {
    fn open(store: &Store, record: ImageRecord) -> Result<Self, StoreError> {
        Ok(Self {
            kernel: store.blob(&record.kernel_blob)?,
            stage1: store.blob(&record.stage1_blob)?,
            rootfs: store.blob(&record.rootfs_blob)?,
            stage2: record.stage2_blob.as_ref().map(|stored| store.blob(stored)).transpose()?,
            record: Arc::new(record),
        })
    }
}

/// A reference in Docker's full form, but without its default registry: `web` is `web:latest`.
pub fn canonical(reference: &str) -> String {
    let short = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let name = short.rsplit('/').next().unwrap_or(short);
    if short.starts_with("sha256:") || name.contains([':', '@']) {
        short.to_owned()
    } else {
        format!("{short}:latest")
    }
}

fn records(images: &BTreeMap<String, Image>) -> Vec<&ImageRecord> {
    images.values().map(|image| &*image.record).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down, and every task that waits here with it.
        Err(_) => std::future::pending().await,
    }
}
