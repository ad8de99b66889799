//! Has the blobs that a machine loads made from an image's archive or a kernel's, by a child that is confined
//! ([`super::child`]), and takes what it made into the store.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use tempfile::NamedTempFile;

use super::child::{self, Child, Class, Given, Job, Made, MadeKernel, Said, What};
use super::store::Stored;
use super::tree::Spool;
use super::{AddError, Image, ImageRecord, Images, Progress, records, stage1};

impl Images {
    /// From archive to record. `known_as` is the image's name and ID where they are not the archive's to say.
    pub(super) fn build(
        &self,
        name: &Path,
        archive: &File,
        known_as: Option<(String, String)>,
        progress: &dyn Fn(Progress),
    ) -> Result<Image, AddError> {
        let outputs = Outputs::new(self, &[Given::Kernel, Given::Stage1, Given::Rootfs, Given::Stage2])?;
        let scratch = tempfile::tempfile_in(self.0.store.work())?;
        let what = What::Image { known_as: known_as.clone() };
        let mut child = self.child(name, what, archive, &[(Given::Scratch, &scratch)], &outputs)?;
        let (mut assets, mut described) = (String::new(), None);
        let made = loop {
            match child.next()? {
                Said::Ready { assets: digest } => assets = digest,
                Said::Described { id, names } => {
                    let (id, names) = match &known_as {
                        Some((name, id)) => (id.clone(), vec![name.clone()]),
                        None => (id, names),
                    };
                    if let Some(image) = self.known(&id, &assets) {
                        return self.enter(&image, &names);
                    }
                    described = Some((id, names));
                    child.go_on()?;
                }
                Said::Layer { number, of } => progress(Progress::Layer { number, of }),
                Said::Packing => progress(Progress::Packing),
                Said::Made(made) => break *made,
                // The rest: out of turn, or why it could not.
                said => return Err(refused(said)),
            }
        };
        let (id, names) = described.ok_or(child::ChildError::Answer("an image before its description"))?;
        child.finish();
        let record = self.record(made, (id, &names), assets, outputs)?;
        self.enter(&Image::open(&self.0.store, record)?, &names)
    }

    /// Keeps what was made, and describes it.
    fn record(
        &self,
        made: Made,
        (id, names): (String, &[String]),
        assets: String,
        mut outputs: Outputs,
    ) -> Result<ImageRecord, AddError> {
        let reference = names[0].clone();
        for path in &made.lost {
            tracing::warn!(
                image = reference,
                path,
                "an extended attribute is lost: its file's name is not UTF-8"
            );
        }
        tracing::info!(
            image = reference,
            kernel = made.kernel.version,
            path = made.kernel.path,
            reason = made.kernel.reason,
            "kernel chosen"
        );
        Ok(ImageRecord {
            reference,
            id,
            digest: made.digest,
            created: made.created,
            added: Timestamp::now(),
            config: made.config,
            unpacked: made.unpacked,
            kernel: made.kernel,
            kernel_blob: outputs.keep(self, Given::Kernel)?,
            stage1_blob: outputs.keep(self, Given::Stage1)?,
            rootfs_blob: outputs.keep(self, Given::Rootfs)?,
            stage2_blob: made.two_stages.then(|| outputs.keep(self, Given::Stage2)).transpose()?,
            assets,
        })
    }

    /// A kernel's files, from a package or an archive.
    pub(super) fn build_kernel(
        &self,
        name: &Path,
        archive: &File,
    ) -> Result<(MadeKernel, Outputs), AddError> {
        let outputs =
            Outputs::new(self, &[Given::Kernel, Given::Stage1, Given::Modules, Given::ModulesIndex])?;
        let mut child = self.child(name, What::Kernel, archive, &[], &outputs)?;
        let made = loop {
            match child.next()? {
                Said::Ready { .. } => {}
                Said::MadeKernel(made) => break *made,
                // The rest: out of turn, or why it could not.
                said => return Err(refused(said)),
            }
        };
        child.finish();
        Ok((made, outputs))
    }

    fn child(
        &self,
        name: &Path,
        what: What,
        archive: &File,
        more: &[(Given, &File)],
        outputs: &Outputs,
    ) -> Result<Child, AddError> {
        let spool = tempfile::tempfile_in(self.0.store.work())?;
        let mut files = vec![(Given::Archive, archive), (Given::Spool, &spool)];
        files.extend(more);
        files.extend(outputs.0.iter().map(|(given, file)| (*given, file.as_file())));
        let (given, files): (Vec<Given>, Vec<&File>) = files.into_iter().unzip();
        let job = Job { assets: self.0.assets.clone(), name: name.to_owned(), what, files: given };
        Ok(Child::start(&self.0.store.work(), &job, self.0.limits, &files)?)
    }

    /// The digest of the assets as they are now.
    pub(super) fn assets_digest(&self) -> Result<String, AddError> {
        let mut spool = Spool::new(&self.0.store.work())?;
        Ok(child::digest(&stage1::load_assets(&mut spool, &self.0.assets)?))
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

/// The files that a child writes. Those that are not kept are deleted.
pub(super) struct Outputs(Vec<(Given, NamedTempFile)>);

impl Outputs {
    fn new(images: &Images, which: &[Given]) -> Result<Self, AddError> {
        let file = |given: &Given| Ok((*given, NamedTempFile::new_in(images.0.store.work())?));
        Ok(Self(which.iter().map(file).collect::<Result<_, std::io::Error>>()?))
    }

    /// Takes a file into the store, by the digest that it has. The child has ended, so nobody changes it any more.
    pub(super) fn keep(&mut self, images: &Images, which: Given) -> Result<Stored, AddError> {
        let at = self.0.iter().position(|(given, _)| *given == which);
        let (_, mut file) = self.0.remove(at.expect("each is kept once"));
        file.as_file_mut().seek(SeekFrom::Start(0))?;
        Ok(images.0.store.take(file)?)
    }
}

/// What the child says in place of what is expected.
fn refused(said: Said) -> AddError {
    match said {
        Said::Refused { class: Class::Archive, words } => AddError::Refused(words),
        Said::Refused { class: Class::Assets, words } => AddError::Assets(words),
        Said::Refused { class: Class::Work, words } => AddError::Work(std::io::Error::other(words)),
        Said::Ready { .. }
        | Said::NotConfined(_)
        | Said::Described { .. }
        | Said::Layer { .. }
        | Said::Packing
        | Said::Made(_)
        | Said::MadeKernel(_)
        | Said::TooLarge
        | Said::NoMemory => child::ChildError::Answer("something else than it was asked for").into(),
        #[cfg(test)]
        Said::Probed(_) => child::ChildError::Answer("something else than it was asked for").into(),
    }
}
