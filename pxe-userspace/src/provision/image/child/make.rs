//! The child's side: receives a job, is confined, does the job with the descriptors that it was given, and says so.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::getppid;
use pxe_contract::paths::file;
use sha2::{Digest as _, Sha256};

use super::confine;
use super::messages::{self, Class, File as Given, Job, LOST_MAX, Made, Said, What};
use crate::base::text::hex;
use crate::provision::image::documents::stem;
use crate::provision::image::initrd::Initrd;
use crate::provision::image::kernel::{self, Kernel};
use crate::provision::image::oci::{Archive, Described};
use crate::provision::image::stage1::{self, Stage1Error};
use crate::provision::image::tree::{Inode, Kind, Spool, Tree};
use crate::provision::image::{
    AddError, AddKernelError, KernelError, TarError, Unpacked, canonical, extract, kernel_files, manifest,
    squashfs,
};

/// Stage 1 is built once per kernel, so some seconds are well spent.
pub(in crate::provision::image) const STAGE1_LEVEL: i32 = 10;
/// The root file system is built for each image and is often large: a level that saves transfer time at little cost.
const ROOTFS_LEVEL: i32 = 3;

/// Runs the child: its stdin is the daemon's socket. The hidden command `import-child` is this.
pub fn run() -> ExitCode {
    match child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A file of the daemon's, who shows what is in it.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn child() -> io::Result<()> {
    let daemon = getppid();
    close_others()?;
    let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (job, limits, descriptors) = messages::take(&channel)?;
    // By read(2) and write(2): a socket's own calls are among those that are given up.
    let mut channel = File::from(OwnedFd::from(channel));
    let mut files = Files(
        job.files.iter().copied().zip(descriptors.into_iter().map(|fd| Some(File::from(fd)))).collect(),
    );
    // Where memory runs out, it is the child that ends, not the daemon.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // So that a write beyond the limit is an error with words.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block()?;
    // The appliance's own files, read with the appliance's rights before anything of a stranger's.
    let mut spool = Spool::on(files.take(Given::Spool)?);
    let assets = stage1::load_assets(&mut spool, &job.assets);
    if let Err(error) = confine::process(&limits, daemon) {
        return messages::send(&mut channel, &Said::NotConfined(error.to_string()));
    }
    let mut work = Work { job, files, spool, channel };
    let done = assets.map_err(Failed::from).and_then(|assets| work.perform(&assets));
    match done {
        Ok(said) => work.say(&said),
        Err(failed) => work.say(&failed.said()),
    }
}

/// Closes what the daemon left open by mistake: everything but the standard streams.
fn close_others() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The listing's own is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// The files of the job; each is used once.
struct Files(Vec<(Given, Option<File>)>);

impl Files {
    fn take(&mut self, which: Given) -> io::Result<File> {
        let found = self.0.iter_mut().find(|(given, _)| *given == which);
        let missing = || io::Error::other(format!("the job has no file {which:?}"));
        found.and_then(|(_, file)| file.take()).ok_or_else(missing)
    }
}

/// Why nothing is made.
enum Failed {
    Image(AddError),
    Kernel(AddKernelError),
    Channel(io::Error),
}

impl From<AddError> for Failed {
    fn from(error: AddError) -> Self {
        Self::Image(error)
    }
}

impl From<Stage1Error> for Failed {
    fn from(error: Stage1Error) -> Self {
        Self::Image(error.into())
    }
}

impl From<AddKernelError> for Failed {
    fn from(error: AddKernelError) -> Self {
        Self::Kernel(error)
    }
}

impl Failed {
    fn said(&self) -> Said {
        let error: &(dyn Error + 'static) = match self {
            Self::Image(error) => error,
            Self::Kernel(error) => error,
            Self::Channel(error) => error,
        };
        if let Some(limit) = limit(error) {
            return limit;
        }
        let (class, words) = match self {
            Self::Image(AddError::Work(error)) | Self::Kernel(AddKernelError::Work(error)) => {
                (Class::Work, error.to_string())
            }
            Self::Image(AddError::Stage1(_)) | Self::Kernel(AddKernelError::Stage1(_)) => {
                (Class::Assets, error.to_string())
            }
            Self::Image(_) | Self::Kernel(_) | Self::Channel(_) => (Class::Archive, error.to_string()),
        };
        Said::Refused { class, words }
    }
}

/// The limit that is the cause, if one is.
fn limit(error: &(dyn Error + 'static)) -> Option<Said> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>() {
            Some(error) if error.raw_os_error() == Some(libc::EFBIG) => return Some(Said::TooLarge),
            Some(error) if error.kind() == io::ErrorKind::OutOfMemory => return Some(Said::NoMemory),
            _ => cause = error.source(),
        }
    }
    None
}

struct Work {
    job: Job,
    files: Files,
    spool: Spool,
    channel: File,
}

impl Work {
    fn say(&mut self, said: &Said) -> io::Result<()> {
        messages::send(&mut self.channel, said)
    }

    fn tell(&mut self, said: &Said) -> Result<(), Failed> {
        self.say(said).map_err(Failed::Channel)
    }

    fn perform(&mut self, assets: &Tree) -> Result<Said, Failed> {
        self.tell(&Said::Ready { assets: digest(assets) })?;
        match self.job.what.clone() {
            What::Image { known_as } => self.image(known_as, assets),
            What::Kernel => self.kernel(assets),
            #[cfg(test)]
            What::Probe => {
                let probed = super::tests::probe();
                self.tell(&Said::Probed(probed))?;
                // Until the test has looked at this process.
                messages::may_go_on(&mut self.channel).map_err(Failed::Channel)?;
                Ok(Said::Packing)
            }
        }
    }

    /// From archive to files. Everything that can be refused early is refused early.
    fn image(&mut self, known_as: Option<(String, String)>, assets: &Tree) -> Result<Said, Failed> {
        let (name, file) = (self.job.name.clone(), self.take(Given::Archive)?);
        let archive = Archive::in_file(&name, file, self.take(Given::Scratch)?).map_err(AddError::from)?;
        let described = archive.describe().map_err(AddError::from)?;
        if described.config.argv().is_empty() {
            return Err(AddError::NoCommand.into());
        }
        let (names, id) = match known_as {
            Some((reference, id)) => (vec![reference], id),
            None if described.references.is_empty() => (vec![canonical(&stem(&name))], described.id.clone()),
            None => (described.references.iter().map(|name| canonical(name)).collect(), described.id.clone()),
        };
        let reference = names[0].clone();
        self.tell(&Said::Described { id: id.clone(), names })?;
        messages::may_go_on(&mut self.channel).map_err(Failed::Channel)?;
        let tree = self.unpack(&archive, &described)?;
        self.tell(&Said::Packing)?;
        let (kernel, from) = choose_kernel(&self.job, &tree, assets)?;
        let stage1 = stage1::build(assets, from, &kernel)?;
        let tree_digest = digest(&tree);
        let description = |has_place: &dyn Fn(&[u8]) -> bool| {
            manifest::description(&reference, &id, &tree_digest, &described.config, &tree, has_place)
        };
        let json = |description: &_| serde_json::to_vec_pretty(description).map_err(io::Error::from);
        io::copy(&mut kernel.file.reader(), &mut self.take(Given::Kernel)?).map_err(AddError::Work)?;
        self.pack(Given::Stage1, &stage1)?;
        let (whole, mut lost) = description(&|_| false);
        let mut initrd = self.initrd(Given::Rootfs, ROOTFS_LEVEL)?;
        initrd.tree(file::name(file::IMAGE), &tree).map_err(AddError::from)?;
        // The last file: if it is missing, Linux ran out of memory while it unpacked.
        let whole = json(&whole).map_err(AddError::Work)?;
        initrd.file(file::name(file::IMAGE_DESCRIPTION), &whole).map_err(AddError::from)?;
        finish(initrd)?;
        let unpacked =
            Unpacked { kernel: kernel.memory, stage1: stage1.unpacked_size(), rootfs: tree.unpacked_size() };
        let two_stages = stage1::mounts_stage2(&stage1, &kernel);
        let choice = kernel.choice;
        if two_stages {
            let (rest, _) = description(&|name| squashfs::xattr_name(name).is_some());
            let rest = self.spool.add(&json(&rest).map_err(AddError::Work)?[..]).map_err(AddError::Work)?;
            let mut tree = tree.below(file::name(file::IMAGE).as_bytes());
            let name = file::name(file::IMAGE_DESCRIPTION).as_bytes();
            tree.insert(Tree::ROOT, name, Inode::new(0o644, Kind::File(rest)), 0);
            squashfs::write(&tree, &mut self.take(Given::Stage2)?, ROOTFS_LEVEL).map_err(AddError::from)?;
        }
        lost.truncate(LOST_MAX);
        Ok(Said::Made(Box::new(Made {
            digest: tree_digest,
            created: described.created,
            config: described.config,
            kernel: choice,
            unpacked,
            two_stages,
            lost,
        })))
    }

    /// Applies the layers in order, and verifies each one's contents against the image's configuration.
    fn unpack(&mut self, archive: &Archive, described: &Described) -> Result<Tree, Failed> {
        let mut tree = Tree::new();
        let of = described.layers.len();
        for (index, layer) in described.layers.iter().enumerate() {
            let number = index + 1;
            self.tell(&Said::Layer { number, of })?;
            let inner = archive.layer(layer).map_err(AddError::from)?;
            let mut reader = HashingReader { inner, hash: Sha256::new() };
            extract::apply(&mut tree, &mut self.spool, index, &mut reader)
                .map_err(|source| AddError::Layer { number, of, source })?;
            // Padding after the archive's end is part of the digest.
            io::copy(&mut reader, &mut io::sink()).map_err(|source| AddError::Layer {
                number,
                of,
                source: TarError::from(source).into(),
            })?;
            let found = format!("sha256:{}", hex(&reader.hash.finalize()));
            if found != layer.diff_id {
                return Err(AddError::LayerDigest { number, found, expected: layer.diff_id.clone() }.into());
            }
        }
        Ok(tree)
    }

    /// From a package, or what was sent of a directory, to a kernel's files.
    fn kernel(&mut self, assets: &Tree) -> Result<Said, Failed> {
        let (name, file) = (self.job.name.clone(), self.take(Given::Archive)?);
        let found = kernel_files::read(&name, file, &mut self.spool)?;
        let kernel_files::Found { tree, kernel } = found;
        let stage1 = stage1::build(assets, &tree, &kernel)?;
        io::copy(&mut kernel.file.reader(), &mut self.take(Given::Kernel)?).map_err(AddError::Work)?;
        self.pack(Given::Stage1, &stage1)?;
        let modules = kernel.modules.is_some();
        if modules {
            let (contents, index) = (self.take(Given::Modules)?, self.take(Given::ModulesIndex)?);
            kernel_files::keep_modules(&tree, &kernel.choice.version, contents, index)
                .map_err(AddError::Work)?;
        }
        Ok(Said::MadeKernel(Box::new(messages::MadeKernel {
            modules,
            memory: kernel.memory,
            stage1_unpacked: stage1.unpacked_size(),
            two_stages: stage1::mounts_stage2(&stage1, &kernel),
            version: kernel.choice.version,
        })))
    }

    fn take(&mut self, which: Given) -> Result<File, AddError> {
        self.files.take(which).map_err(AddError::Work)
    }

    fn initrd(&mut self, into: Given, level: i32) -> Result<Initrd<io::BufWriter<File>>, AddError> {
        let out = io::BufWriter::with_capacity(256 * 1024, self.take(into)?);
        Initrd::new(out, level).map_err(AddError::Work)
    }

    fn pack(&mut self, into: Given, tree: &Tree) -> Result<(), AddError> {
        let mut initrd = self.initrd(into, STAGE1_LEVEL)?;
        initrd.tree("", tree)?;
        finish(initrd)
    }
}

fn finish(initrd: Initrd<io::BufWriter<File>>) -> Result<(), AddError> {
    let written = initrd.finish()?.into_inner().map_err(io::IntoInnerError::into_error);
    written.map(drop).map_err(AddError::Work)
}

/// The image's own kernel, or else that of the assets, and the tree that contains it.
fn choose_kernel<'a>(job: &Job, tree: &'a Tree, assets: &'a Tree) -> Result<(Kernel, &'a Tree), AddError> {
    if let Some(kernel) = kernel::of_image(tree)? {
        return Ok((kernel, tree));
    }
    match kernel::of_assets(assets)? {
        Some(kernel) => Ok((kernel, assets)),
        None => Err(KernelError::None { assets: job.assets.display().to_string() }.into()),
    }
}

/// Of a tree, as records have it.
pub(in crate::provision::image) fn digest(tree: &Tree) -> String {
    format!("sha256:{}", hex(&tree.digest()))
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
