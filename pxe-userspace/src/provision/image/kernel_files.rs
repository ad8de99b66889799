//! Finds a kernel and its modules in what was sent: a Debian package, or a tar archive of a directory
//! ([`super::pack_kernel`]). Nothing is unpacked to the host's file system, and no other program reads it.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::compression::Compression;
use super::extract::{self, ExtractError};
use super::kernel::{self, Kernel};
use super::kernels::{AddKernelError, MODULES, is_kernel};
use super::tree::{Content, Inode, InodeId, Kind, Spool, Tree};
use super::{depmod, stage1};

/// What a package begins with: it is an archive of ar(1), deb(5).
const PACKAGE: &[u8; 8] = b"!<arch>\n";

/// A kernel, and the tree that has it and its modules.
pub(super) struct Found {
    pub(super) tree: Tree,
    pub(super) kernel: Kernel,
}

/// The place of a module's contents.
#[derive(Serialize, Deserialize)]
pub(super) struct ModuleFile {
    pub(super) path: String,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Reads `file`; `name` is for messages.
pub(super) fn read(name: &Path, mut file: File, spool: &mut Spool) -> Result<Found, AddKernelError> {
    file.seek(SeekFrom::Start(0))?;
    let mut start = [0; PACKAGE.len()];
    let package = file.read_exact(&mut start).is_ok() && start == *PACKAGE;
    let damaged = |source| AddKernelError::Damaged { path: name.to_owned(), source };
    let mut sent = Tree::new();
    if package {
        let data = data(&mut file).map_err(|source| damaged(ExtractError::Tar(source.into())))?;
        let data = data.ok_or_else(|| AddKernelError::NotAPackage { path: name.to_owned() })?;
        let mut data = BufReader::with_capacity(256 * 1024, file.take(data));
        let unpacked = Compression::of(&mut data).and_then(|compression| compression.reader(data));
        let unpacked = unpacked.map_err(|source| damaged(ExtractError::Tar(source.into())))?;
        extract::apply(&mut sent, spool, 0, unpacked).map_err(damaged)?;
    } else {
        file.seek(SeekFrom::Start(0))?;
        extract::apply(&mut sent, spool, 0, BufReader::new(file))
            .map_err(|source| AddKernelError::NeitherNor { path: name.to_owned(), source })?;
    }
    found(name, &sent, spool, package)
}

/// Moves to the package's member with its files, and returns that member's size. `None` if there is none.
fn data(file: &mut File) -> io::Result<Option<u64>> {
    loop {
        // Name, time, owner, group and mode, size, end mark.
        let mut header = [0; 60];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let size =
            std::str::from_utf8(&header[48..58]).ok().and_then(|size| size.trim_end().parse::<u64>().ok());
        let (Some(size), b"`\n") = (size, &header[58..]) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a member of it has no header of ar's"));
        };
        if header.starts_with(b"data.tar") {
            return Ok(Some(size));
        }
        // At most ten digits, so it fits; members begin at even places.
        let next = i64::try_from(size.next_multiple_of(2)).map_err(io::Error::other)?;
        file.seek(SeekFrom::Current(next))?;
    }
}

/// The kernel of the tree that was sent, in a tree with it and its own modules only.
fn found(name: &Path, sent: &Tree, spool: &mut Spool, package: bool) -> Result<Found, AddKernelError> {
    let none = || AddKernelError::NoKernel { path: name.to_owned() };
    let file = find_kernel(sent).ok_or_else(none)?;
    let mut tree = Tree::new();
    let boot = tree.insert(Tree::ROOT, b"boot", Inode::directory(0o755), 0);
    tree.insert(boot, b"vmlinuz", Inode::new(0o644, Kind::File(file)), 0);
    let mut kernel = kernel::of_image(&tree)?.ok_or_else(none)?;
    let version = kernel.choice.version.clone();
    let places = modules_directories(sent);
    match (places.iter().find(|place| place.version == version), places.first()) {
        (Some(own), _) => {
            let mut at = Tree::ROOT;
            for part in ["lib", "modules", &version] {
                at = tree.insert(at, part.as_bytes(), Inode::directory(0o755), 0);
            }
            stage1::copy_all(sent, own.directory, &mut tree, at);
            let has_index = tree.names(at).is_some_and(|names| names.contains_key(&b"modules.dep"[..]));
            match (has_index, package) {
                (true, _) => {}
                // Debian's packages leave creating the index to their installation.
                (false, true) => depmod::index(&mut tree, at, spool)?,
                (false, false) => {
                    return Err(AddKernelError::NoIndex { path: name.join(&own.path), version });
                }
            }
            kernel.modules = Some(at);
            kernel.choice.modules = true;
        }
        // A kernel with everything built in.
        (None, None) => {}
        (None, Some(other)) => {
            let found = other.version.clone();
            return Err(AddKernelError::OtherModules { path: name.to_owned(), version, found });
        }
    }
    Ok(Found { tree, kernel })
}

/// The file of a kernel: the last by name, if there are several.
fn find_kernel(sent: &Tree) -> Option<Content> {
    let names = |directory: &str| -> Vec<String> {
        let names = sent.find(directory).and_then(|id| sent.names(id)).into_iter().flatten();
        names.filter_map(|(name, _)| String::from_utf8(name.clone()).ok()).collect()
    };
    let in_boot = names("boot").into_iter().map(|name| (format!("boot/{name}"), name));
    let mut found: Vec<(String, Content)> = in_boot
        .chain(names("").into_iter().map(|name| (name.clone(), name)))
        .filter(|(_, name)| is_kernel(name))
        .filter_map(|(path, _)| Some((path.clone(), sent.file(&path)?.clone())))
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.pop().map(|(_, content)| content)
}

/// A `lib/modules/VERSION`, in one of the possible places.
struct Place {
    path: PathBuf,
    version: String,
    directory: InodeId,
}

fn modules_directories(sent: &Tree) -> Vec<Place> {
    let mut found = Vec::new();
    for place in MODULES {
        let names = sent.find(place).and_then(|id| sent.names(id)).into_iter().flatten();
        for (name, entry) in names {
            let Ok(version) = String::from_utf8(name.clone()) else { continue };
            let has_modules = sent.names(entry.inode).is_some_and(|names| {
                names.get(&b"kernel"[..]).is_some_and(|kernel| sent.names(kernel.inode).is_some())
            });
            if has_modules {
                let path = Path::new(place).join(&version);
                found.push(Place { path, version, directory: entry.inode });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Writes the contents of all modules of this version, and their index.
pub(super) fn keep_modules(tree: &Tree, version: &str, contents: File, index: File) -> io::Result<()> {
    let below = format!("lib/modules/{version}/");
    let mut out = io::BufWriter::with_capacity(256 * 1024, contents);
    let (mut files, mut offset) = (Vec::new(), 0);
    for (path, id) in tree.walk() {
        let Kind::File(content) = &tree.inode(id).kind else { continue };
        let Ok(path) = String::from_utf8(path) else { continue };
        let Some(path) = path.strip_prefix(&below) else { continue };
        files.push(ModuleFile { path: path.to_owned(), offset, len: content.len });
        offset += content.len;
        io::copy(&mut content.reader(), &mut out)?;
    }
    out.flush()?;
    let mut out = io::BufWriter::new(index);
    serde_json::to_writer(&mut out, &files)?;
    out.flush()
}
