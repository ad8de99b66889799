//! Builds the blobs that a machine loads from an image's archive.

use std::io::{self, Read, Seek as _};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use pxe_contract::paths::file;
use sha2::{Digest as _, Sha256};

use super::documents::stem;
use super::initrd::Initrd;
use super::kernel::{self, Kernel};
use super::oci::{Archive, Described};
use super::store::Stored;
use super::tree::{Content, Inode, Kind, Spool, Tree};
use super::{
    AddError, Image, ImageRecord, Images, KernelError, Progress, TarError, Unpacked, canonical, extract,
    manifest, records, squashfs, stage1,
};
use crate::base::text::hex;

/// Stage 1 is built once per kernel, so some seconds are well spent.
pub(super) const STAGE1_LEVEL: i32 = 10;
/// The root file system is built for each image and is often large: a level that saves transfer time at little cost.
const ROOTFS_LEVEL: i32 = 3;

impl Images {
    /// From archive to record. Everything that can be refused early is refused early.
    pub(super) fn build(
        &self,
        name: &Path,
        archive: &Archive,
        engine_id: Option<(String, String)>,
        progress: &dyn Fn(Progress),
    ) -> Result<Image, AddError> {
        let (mut spool, assets, assets_digest) = self.load_assets()?;
        let described = archive.describe()?;
        if described.config.argv().is_empty() {
            return Err(AddError::NoCommand);
        }
        let (names, id) = match engine_id {
            Some((reference, id)) => (vec![reference], id),
            None if described.references.is_empty() => (vec![canonical(&stem(name))], described.id.clone()),
            None => (described.references.iter().map(|name| canonical(name)).collect(), described.id.clone()),
        };
        if let Some(image) = self.known(&id, &assets_digest) {
            return self.enter(&image, &names);
        }
        let reference = names[0].clone();
        let tree = unpack(archive, &described, &mut spool, progress)?;
        progress(Progress::Packing);
        let (kernel, from) = self.choose_kernel(&tree, &assets)?;
        tracing::info!(
            image = reference,
            kernel = kernel.choice.version,
            path = kernel.choice.path,
            reason = kernel.choice.reason,
            "kernel chosen"
        );
        let stage1 = stage1::build(&assets, from, &kernel)?;
        let digest = format!("sha256:{}", hex(&tree.digest()));
        let manifest = |has_place: &dyn Fn(&[u8]) -> bool| {
            let description =
                manifest::description(&reference, &id, &digest, &described.config, &tree, has_place);
            serde_json::to_vec_pretty(&description).map_err(io::Error::from)
        };
        let store = &self.0.store;
        let kernel_blob = store.put(|out| io::copy(&mut kernel.file.reader(), out).map(drop))?;
        let stage1_blob = store.put(|out| {
            let mut initrd = Initrd::new(out, STAGE1_LEVEL)?;
            initrd.tree("", &stage1)?;
            initrd.finish().map(drop)
        })?;
        let rootfs_blob = store.put(|out| {
            let mut initrd = Initrd::new(out, ROOTFS_LEVEL)?;
            initrd.tree(file::name(file::IMAGE), &tree)?;
            // The last file: if it is missing, Linux ran out of memory while it unpacked.
            initrd.file(file::name(file::IMAGE_DESCRIPTION), &manifest(&|_| false)?)?;
            initrd.finish().map(drop)
        })?;
        let rootfs_unpacked = tree.unpacked_size();
        let stage2_blob = if stage1::mounts_stage2(&stage1, &kernel) {
            let description = spool.add(&manifest(&|name| squashfs::xattr_name(name).is_some())?[..])?;
            Some(self.stage2(tree.below(file::name(file::IMAGE).as_bytes()), description)?)
        } else {
            None
        };
        let record = ImageRecord {
            reference,
            id,
            digest,
            created: described.created,
            added: Timestamp::now(),
            config: described.config,
            unpacked: Unpacked {
                kernel: kernel.memory,
                stage1: stage1.unpacked_size(),
                rootfs: rootfs_unpacked,
            },
            kernel: kernel.choice,
            kernel_blob,
            stage1_blob,
            rootfs_blob,
            stage2_blob,
            assets: assets_digest,
        };
        self.enter(&Image::open(store, record)?, &names)
    }

    pub(super) fn load_assets(&self) -> Result<(Spool, Tree, String), AddError> {
        let mut spool = Spool::new(&self.0.store.work())?;
        let assets = stage1::load_assets(&mut spool, &self.0.assets)?;
        let digest = format!("sha256:{}", hex(&assets.digest()));
        Ok((spool, assets, digest))
    }

    /// The image's own kernel, or else that of the assets, and the tree that contains it.
    fn choose_kernel<'a>(&self, tree: &'a Tree, assets: &'a Tree) -> Result<(Kernel, &'a Tree), AddError> {
        if let Some(kernel) = kernel::of_image(tree)? {
            return Ok((kernel, tree));
        }
        match kernel::of_assets(assets)? {
            Some(kernel) => Ok((kernel, assets)),
            None => Err(KernelError::None { assets: self.0.assets.display().to_string() }.into()),
        }
    }

    /// Packs the image, which is below `/image` in the tree, as a SquashFS.
    fn stage2(&self, mut tree: Tree, description: Content) -> Result<Stored, AddError> {
        let name = file::name(file::IMAGE_DESCRIPTION).as_bytes();
        tree.insert(Tree::ROOT, name, Inode::new(0o644, Kind::File(description)), 0);
        let store = &self.0.store;
        // The superblock comes first, and contains offsets that are known last.
        let mut file = tempfile::tempfile_in(store.work())?;
        squashfs::write(&tree, &mut file, ROOTFS_LEVEL)?;
        file.rewind()?;
        Ok(store.put(|out| io::copy(&mut file, out).map(drop))?)
    }

    /// Records the image under these names: from now on machines can boot it, also after a restart. Returns it under
    /// the first one.
    pub(super) fn enter(&self, image: &Image, names: &[String]) -> Result<Image, AddError> {
        let mut images = self.images();
        let mut changed = images.clone();
        for name in names {
            let there = changed.get(name).is_some_and(|there| there.record.is_the_same(&image.record));
            if !there {
                let record = ImageRecord { reference: name.clone(), ..ImageRecord::clone(&image.record) };
                changed.insert(name.clone(), Image { record: Arc::new(record), ..image.clone() });
            }
        }
        if changed.values().map(|image| &image.record).ne(images.values().map(|image| &image.record)) {
            self.0.store.set_records(&records(&changed))?;
            *images = changed;
        }
        Ok(names.first().and_then(|name| images.get(name)).unwrap_or(image).clone())
    }
}

/// Applies the layers in order, and verifies each one's contents against the image's configuration.
fn unpack(
    archive: &Archive,
    described: &Described,
    spool: &mut Spool,
    progress: &dyn Fn(Progress),
) -> Result<Tree, AddError> {
    let mut tree = Tree::new();
    let of = described.layers.len();
    for (index, layer) in described.layers.iter().enumerate() {
        let number = index + 1;
        progress(Progress::Layer { number, of });
        let mut reader = HashingReader { inner: archive.layer(layer)?, hash: Sha256::new() };
        extract::apply(&mut tree, spool, index, &mut reader).map_err(|source| AddError::Layer {
            number,
            of,
            source,
        })?;
        // Padding after the archive's end is part of the digest.
        io::copy(&mut reader, &mut io::sink()).map_err(|source| AddError::Layer {
            number,
            of,
            source: TarError::from(source).into(),
        })?;
        let found = format!("sha256:{}", hex(&reader.hash.finalize()));
        if found != layer.diff_id {
            return Err(AddError::LayerDigest { number, found, expected: layer.diff_id.clone() });
        }
    }
    Ok(tree)
}

struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}
