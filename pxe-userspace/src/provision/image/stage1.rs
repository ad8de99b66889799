//! Stage 1: what every machine with the same kernel unpacks first. pxe-init, BusyBox for a rescue shell, the modules
//! that a network needs, and empty mount points.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use pxe_contract::modules;

use super::kernel::{self, Kernel, KernelSource};
use super::tree::{Content, Inode, InodeId, Kind, Spool, Tree};

/// BusyBox's applets on a node: enough to look around and to repair a boot by hand.
const APPLETS: &[&str] = &[
    "[",
    "ash",
    "awk",
    "basename",
    "blkid",
    "cat",
    "chmod",
    "chown",
    "chroot",
    "clear",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dmesg",
    "du",
    "echo",
    "env",
    "false",
    "find",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hexdump",
    "hostname",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "ln",
    "ls",
    "lsmod",
    "lspci",
    "md5sum",
    "mkdir",
    "mknod",
    "modprobe",
    "more",
    "mount",
    "mv",
    "nc",
    "netstat",
    "nslookup",
    "ping",
    "poweroff",
    "ps",
    "pwd",
    "readlink",
    "reboot",
    "rm",
    "rmdir",
    "rmmod",
    "route",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "test",
    "top",
    "touch",
    "tr",
    "true",
    "udhcpc",
    "umount",
    "uname",
    "uptime",
    "vi",
    "wc",
    "wget",
    "which",
    "xargs",
    "zcat",
];

#[derive(Debug, thiserror::Error)]
pub enum Stage1Error {
    #[error("{path} is missing: `cargo xtask setup` makes it, or point [boot] assets at where it is")]
    Missing { path: PathBuf },
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("reading the list of the kernel's modules: {0}")]
    Modules(io::Error),
}

/// Reads the parts of stage 1 from the assets directory: `busybox`, `pxe-init`, `kernel/`. The tree's digest shows
/// whether any of them changed.
pub(super) fn load_assets(spool: &mut Spool, directory: &Path) -> Result<Tree, Stage1Error> {
    let mut assets = Tree::new();
    for name in ["busybox", "pxe-init"] {
        let path = directory.join(name);
        if !path.is_file() {
            return Err(Stage1Error::Missing { path });
        }
        follow(spool, &mut assets, Tree::ROOT, &path)?;
    }
    let kernel = directory.join("kernel");
    if kernel.is_dir() {
        let read = |source| Stage1Error::Read { path: kernel.clone(), source };
        let into = assets.insert(Tree::ROOT, b"kernel", Inode::directory(0o755), 0);
        let entries: Result<Vec<_>, _> = kernel.read_dir().map_err(read)?.collect();
        let mut entries: Vec<_> = entries.map_err(read)?.into_iter().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().try_for_each(|entry| follow(spool, &mut assets, into, entry))?;
    }
    Ok(assets)
}

/// [`load`] of what a link leads to, by the link's name: somebody's assets may be links to those of a version.
fn follow(spool: &mut Spool, tree: &mut Tree, into: InodeId, path: &Path) -> Result<(), Stage1Error> {
    let target = path.canonicalize().map_err(|source| Stage1Error::Read { path: path.to_owned(), source })?;
    load_as(spool, tree, into, path.file_name().unwrap_or_default(), &target)
}

/// Copies a file or directory of the host into the tree, its contents and nothing of its owner
/// and times: assets that were made twice are the same assets.
pub(super) fn load(
    spool: &mut Spool,
    tree: &mut Tree,
    into: InodeId,
    path: &Path,
) -> Result<(), Stage1Error> {
    load_as(spool, tree, into, path.file_name().unwrap_or_default(), path)
}

fn load_as(
    spool: &mut Spool,
    tree: &mut Tree,
    into: InodeId,
    name: &OsStr,
    path: &Path,
) -> Result<(), Stage1Error> {
    let read = |source| Stage1Error::Read { path: path.to_owned(), source };
    let name = name.as_bytes();
    let meta = path.symlink_metadata().map_err(read)?;
    if meta.is_dir() {
        let directory = tree.insert(into, name, Inode::directory(0o755), 0);
        let entries: Result<Vec<_>, _> = path.read_dir().map_err(read)?.collect();
        let mut entries: Vec<_> = entries.map_err(read)?.into_iter().map(|entry| entry.path()).collect();
        entries.sort();
        return entries.iter().try_for_each(|entry| load(spool, tree, directory, entry));
    }
    let kind = if meta.is_symlink() {
        Kind::Symlink(path.read_link().map_err(read)?.as_os_str().as_bytes().to_owned())
    } else if meta.is_file() {
        Kind::File(std::fs::File::open(path).and_then(|file| spool.add(file)).map_err(read)?)
    } else {
        return Ok(());
    };
    tree.insert(into, name, Inode::new(0o644, kind), 0);
    Ok(())
}

/// Builds stage 1. `from` is the tree that the kernel came from.
pub(super) fn build(assets: &Tree, from: &Tree, kernel: &Kernel) -> Result<Tree, Stage1Error> {
    let mut tree = Tree::new();
    let program = |name: &str| match assets.file(name) {
        Some(content) => Ok(Inode::new(0o755, Kind::File(content.clone()))),
        None => Err(Stage1Error::Missing { path: name.into() }),
    };
    tree.insert(Tree::ROOT, b"init", program("pxe-init")?, 0);
    for name in ["etc", "image", "proc", "run", "stage2", "sys"] {
        tree.insert(Tree::ROOT, name.as_bytes(), Inode::directory(0o755), 0);
    }
    tree.insert(Tree::ROOT, b"root", Inode::directory(0o700), 0);
    tree.insert(Tree::ROOT, b"tmp", Inode::directory(0o1777), 0);
    let bin = tree.insert(Tree::ROOT, b"bin", Inode::directory(0o755), 0);
    tree.insert(bin, b"busybox", program("busybox")?, 0);
    for applet in APPLETS {
        tree.insert(bin, applet.as_bytes(), symlink("busybox"), 0);
    }
    tree.insert(Tree::ROOT, b"sbin", symlink("bin"), 0);
    // The kernel opens /dev/console for init before anything can mount devtmpfs.
    let dev = tree.insert(Tree::ROOT, b"dev", Inode::directory(0o755), 0);
    tree.insert(dev, b"console", Inode::new(0o600, Kind::CharDevice { major: 5, minor: 1 }), 0);
    tree.insert(dev, b"null", Inode::new(0o666, Kind::CharDevice { major: 1, minor: 3 }), 0);
    if let Some(modules) = kernel.modules {
        let mut at = Tree::ROOT;
        for name in ["lib", "modules", &kernel.choice.version] {
            at = tree.insert(at, name.as_bytes(), Inode::directory(0o755), 0);
        }
        match kernel.choice.source {
            // The stock modules were selected at set-up.
            KernelSource::Assets => copy_all(from, modules, &mut tree, at),
            KernelSource::Image => {
                let paths = kernel::needed_modules(from, modules).map_err(Stage1Error::Modules)?;
                for path in paths {
                    copy_file(from, modules, &mut tree, at, &path);
                }
            }
        }
    }
    Ok(tree)
}

/// Whether a stage 1 can mount a SquashFS with an overlay in memory: the kernel has what that needs built in, or as
/// modules in stage 1.
pub(super) fn mounts_stage2(stage1: &Tree, kernel: &Kernel) -> bool {
    let indexes: String = ["modules.dep", "modules.builtin"]
        .iter()
        .filter_map(|name| stage1.file(&format!("lib/modules/{}/{name}", kernel.choice.version)))
        .filter_map(|index| String::from_utf8(index.read().ok()?).ok())
        .collect();
    let has = |module: &str| {
        let names = indexes.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next());
        names.filter_map(|file| file.split('.').next()).any(|name| name == module)
    };
    modules::STAGE2.into_iter().all(has)
}

fn symlink(target: &str) -> Inode {
    Inode::new(0o777, Kind::Symlink(target.into()))
}

fn plain_file(content: &Content) -> Inode {
    Inode::new(0o644, Kind::File(content.clone()))
}

/// Copies the files and directories below `directory`.
pub(super) fn copy_all(from: &Tree, directory: InodeId, to: &mut Tree, at: InodeId) {
    for (name, found) in from.names(directory).into_iter().flatten() {
        match &from.inode(found.inode).kind {
            Kind::Directory(_) => {
                let below = to.insert(at, name, Inode::directory(0o755), 0);
                copy_all(from, found.inode, to, below);
            }
            Kind::File(content) => {
                to.insert(at, name, plain_file(content), 0);
            }
            // `build` and `source` point to headers that are not on the node.
            Kind::Symlink(_) | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {}
        }
    }
}

/// Copies the file at `path` below `directory`, with its directories. An index may name a file that the image's author
/// removed: the module is then missing, as it would be on a disk.
fn copy_file(from: &Tree, mut directory: InodeId, to: &mut Tree, mut at: InodeId, path: &str) {
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let Some(found) = from.names(directory).and_then(|names| names.get(part.as_bytes())) else { return };
        match &from.inode(found.inode).kind {
            Kind::File(content) if parts.peek().is_none() => {
                to.insert(at, part.as_bytes(), plain_file(content), 0);
            }
            Kind::Directory(_) => {
                directory = found.inode;
                at = to.insert(at, part.as_bytes(), Inode::directory(0o755), 0);
            }
            Kind::File(_)
            | Kind::Symlink(_)
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => return,
        }
    }
}
