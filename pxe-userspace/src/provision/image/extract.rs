//! Applies image layers to a tree, in the order and by the rules of the OCI image specification ("Image Layer
//! Filesystem Changeset"). Nothing is written to the host's file system, so a hostile archive can't escape; nonsensical
//! entries are refused nevertheless.

use std::io::{self, Read};

use super::tar::{EntryKind, SparseMap, TarEntry, TarError, TarReader};
use super::tree::{Inode, InodeId, Kind, Spool, Tree, Unresolved};

/// `.wh.NAME` hides NAME in the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that the layers below have in this directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are AUFS's own bookkeeping (`.wh..wh.plnk`).
const AUFS: &[u8] = b".wh..wh.";

#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("{path}: the path leads out of the image")]
    Outside { path: String },
    #[error("{path}: what should be its directory is something else")]
    NotADirectory { path: String },
    #[error("{path}: its directory can't be reached: symbolic links in a circle, or more than 1,024 levels")]
    Unreachable { path: String },
    #[error("{path}: a hard link to {target}, which {problem}")]
    HardLink { path: String, target: String, problem: &'static str },
    #[error(
        "{path} has {size} bytes with its holes; a file in an initrd has less than 4 GiB. Keep such data out of the image"
    )]
    TooBig { path: String, size: u64 },
    #[error("{path}: a name with a NUL byte")]
    Nul { path: String },
    #[error("{path}: the contents can't be kept: {source}")]
    Spool { path: String, source: io::Error },
    #[error(transparent)]
    Tar(#[from] TarError),
}

/// Applies one layer's tar archive. `layer` is its number, counted from the bottom.
pub(super) fn apply(
    tree: &mut Tree,
    spool: &mut Spool,
    layer: usize,
    archive: impl Read,
) -> Result<(), ExtractError> {
    let mut archive = TarReader::new(archive);
    while let Some(entry) = archive.next()? {
        let parts = parts(&entry.path)?;
        let Some((name, directory)) = parts.split_last() else {
            set_root(tree, &entry);
            continue;
        };
        let directory = directory_for(tree, &entry.path, directory, layer)?;
        if *name == OPAQUE {
            hide_lower(tree, directory, layer);
        } else if name.starts_with(AUFS) {
            continue;
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            whiteout(tree, directory, hidden, layer);
        } else if entry.kind == EntryKind::HardLink {
            let target = link_target(tree, &entry)?;
            tree.link(directory, name, target, layer);
        } else {
            let inode = inode(spool, &mut archive, &entry)?;
            tree.insert(directory, name, inode, layer);
        }
    }
    Ok(())
}

fn inode<R: Read>(
    spool: &mut Spool,
    archive: &mut TarReader<R>,
    entry: &TarEntry,
) -> Result<Inode, ExtractError> {
    let (major, minor) = entry.device;
    let kind = match entry.kind {
        EntryKind::File => {
            let contents = match &entry.sparse {
                // Checked before the contents are read, because a few bytes can claim any size.
                Some(SparseMap { size, .. }) if *size > u32::MAX.into() => {
                    return Err(ExtractError::TooBig { path: shown(&entry.path), size: *size });
                }
                None if entry.size > u32::MAX.into() => {
                    return Err(ExtractError::TooBig { path: shown(&entry.path), size: entry.size });
                }
                Some(map) => spool.add(map.expand(archive.data())),
                None => spool.add(archive.data()),
            };
            Kind::File(contents.map_err(|source| ExtractError::Spool { path: shown(&entry.path), source })?)
        }
        EntryKind::Directory => Kind::Directory(Default::default()),
        EntryKind::Symlink if entry.link.contains(&0) => {
            return Err(ExtractError::Nul { path: shown(&entry.path) });
        }
        EntryKind::Symlink | EntryKind::HardLink => Kind::Symlink(entry.link.clone()),
        EntryKind::CharDevice => Kind::CharDevice { major, minor },
        EntryKind::BlockDevice => Kind::BlockDevice { major, minor },
        EntryKind::Fifo => Kind::Fifo,
    };
    Ok(Inode {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
        kind,
    })
}

/// `./` has the root directory's own owner and mode.
fn set_root(tree: &mut Tree, entry: &TarEntry) {
    if entry.kind == EntryKind::Directory {
        let root = tree.inode_mut(Tree::ROOT);
        (root.mode, root.uid, root.gid, root.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        root.xattrs.clone_from(&entry.xattrs);
    }
}

/// The directory that an entry goes into. Symbolic links of lower layers on the path are followed, as in Docker:
/// `lib -> usr/lib` below, `lib/x` above. Missing directories are created, also in place of a lower layer's
/// non-directory: a file below, a directory with files above.
fn directory_for(
    tree: &mut Tree,
    path: &[u8],
    directory: &[&[u8]],
    layer: usize,
) -> Result<InodeId, ExtractError> {
    loop {
        match tree.resolve(directory.iter().copied()) {
            Ok(id) if tree.names(id).is_some() => return Ok(id),
            Ok(_) | Err(Unresolved::NotADirectory) => {
                let (parent, name) = obstacle(tree, directory, layer)
                    .ok_or_else(|| ExtractError::NotADirectory { path: shown(path) })?;
                tree.insert(parent, name, Inode::directory(0o755), layer);
            }
            Err(Unresolved::Missing { directory, name }) => {
                tree.insert(directory, &name, Inode::directory(0o755), layer);
            }
            Err(Unresolved::TooManyLinks | Unresolved::TooDeep) => {
                return Err(ExtractError::Unreachable { path: shown(path) });
            }
        }
    }
}

/// The name on the path that is not a directory, if a lower layer put it there.
fn obstacle<'a>(tree: &Tree, directory: &[&'a [u8]], layer: usize) -> Option<(InodeId, &'a [u8])> {
    let leads =
        |parts: &[&[u8]]| tree.resolve(parts.iter().copied()).ok().filter(|id| tree.names(*id).is_some());
    let at = (0..directory.len()).find(|at| leads(&directory[..=*at]).is_none())?;
    let parent = leads(&directory[..at])?;
    let found = tree.names(parent)?.get(directory[at])?;
    (found.layer != layer).then_some((parent, directory[at]))
}

/// The inode that a hard link names. A symbolic link at the end of the path is not followed.
fn link_target(tree: &Tree, entry: &TarEntry) -> Result<InodeId, ExtractError> {
    let wrong =
        |problem| ExtractError::HardLink { path: shown(&entry.path), target: shown(&entry.link), problem };
    let target = parts(&entry.link).map_err(|_| wrong("leads out of the image"))?;
    let (name, directory) = target.split_last().ok_or_else(|| wrong("is the root directory"))?;
    let found = tree
        .resolve(directory.iter().copied())
        .ok()
        .and_then(|directory| tree.names(directory)?.get(*name))
        .ok_or_else(|| wrong("is not there"))?;
    match tree.inode(found.inode).kind {
        Kind::Directory(_) => Err(wrong("is a directory")),
        _ => Ok(found.inode),
    }
}

/// Removes what lower layers have as `name`: a whiteout does not apply to its own layer.
fn whiteout(tree: &mut Tree, directory: InodeId, name: &[u8], layer: usize) {
    let Some(found) = tree.names(directory).and_then(|names| names.get(name)).copied() else { return };
    hide_lower(tree, found.inode, layer);
    let emptied = tree.names(found.inode).is_none_or(|names| names.is_empty());
    if found.layer != layer
        && emptied
        && let Some(names) = tree.names_mut(directory)
    {
        names.remove(name);
    }
}

/// Removes everything that lower layers put into a directory, at any depth.
fn hide_lower(tree: &mut Tree, directory: InodeId, layer: usize) {
    let names: Vec<_> = tree.names(directory).into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for name in names {
        whiteout(tree, directory, &name, layer);
    }
}

/// A path's components from the root, without `.` and doubled slashes, and with `..` resolved.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ExtractError> {
    if path.contains(&0) {
        return Err(ExtractError::Nul { path: shown(path) });
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            // The parent of the root is the root, for an absolute path.
            b".." if parts.pop().is_none() && !path.starts_with(b"/") => {
                return Err(ExtractError::Outside { path: shown(path) });
            }
            b".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
#[path = "extract_tests.rs"]
mod tests;
