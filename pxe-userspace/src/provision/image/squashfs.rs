//! Writes an image's root file system as SquashFS 4.0 (Linux, fs/squashfs/squashfs_fs.h), compressed with zstd. A
//! machine fetches and mounts it when it boots in two stages.
//!
//! ```text
//! superblock | data blocks and fragments | inodes | directories | fragment table | ids | attributes
//! ```
//!
//! A list of the data blocks follows ([`pxe_contract::blocks`]), which the kernel never reads.
//!
//! The same tree gives the same bytes: names in order, inodes numbered in sequence, one thread, fixed settings.
//! docs/decisions/011-two-stages.md says why neither mksquashfs nor a crate writes it.

mod data;
mod metadata;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};

use self::data::{Compressor, Data, Stored};
use self::metadata::{Metadata, Tables};
use super::tree::{Inode, InodeId, Kind, Name, Tree};

const BLOCK_LOG: u16 = 17;
const BLOCK: usize = 1 << BLOCK_LOG;
/// Inodes, directories and tables are packed in blocks of this many bytes.
const METADATA_BLOCK: usize = 8192;
/// Set in a block's size if the block is stored uncompressed. For metadata it is bit 15.
const DATA_PLAIN: u32 = 1 << 24;
const METADATA_PLAIN: u16 = 1 << 15;
const ZSTD: u16 = 6;
const FLAG_NO_XATTRS: u16 = 0x0200;
/// Stands for: no such table, fragment or set of attributes.
const NONE: u32 = u32::MAX;
const NO_TABLE: u64 = u64::MAX;
/// SQUASHFS_NAME_LEN is 256, but Linux's NAME_MAX is one less.
const MAX_NAME: usize = 255;
/// PATH_MAX limits a symbolic link's target, including a NUL.
const MAX_TARGET: usize = 4095;
/// SQUASHFS_DIR_COUNT: entries below one header.
const DIRECTORY_RUN: usize = 256;
/// Loop devices count in sectors; the kernel ignores an incomplete last one.
const PADDING: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    #[error("{path}: the name is longer than Linux takes")]
    LongName { path: String },
    #[error("{path}: the symbolic link is longer than Linux follows")]
    LongTarget { path: String },
    #[error(
        "the image's files have more than 65,535 different owners and groups, and SquashFS takes no more"
    )]
    TooManyOwners,
    #[error("writing the SquashFS: {0}")]
    Io(#[from] io::Error),
}

/// The attributes that SquashFS can store: their prefix's number and the rest of the name.
pub(super) fn xattr_name(name: &[u8]) -> Option<(u16, &[u8])> {
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    (0..).zip(prefixes).find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))
}

/// Writes `tree` to `out`, which is empty. Returns its length.
pub(super) fn write(tree: &Tree, out: &mut File, level: i32) -> Result<u64, SquashfsError> {
    let mut paths = vec![(Vec::new(), Tree::ROOT)];
    paths.extend(tree.walk());
    check(tree, &paths)?;
    let mut data = Data::new(out, Compressor::new(level)?)?;
    for (_, id) in &paths {
        if let Kind::File(content) = &tree.inode(*id).kind {
            data.file(content)?;
        }
    }
    data.end_fragment()?;
    let Data { out, at, files, fragments, blocks, compressor, .. } = data;

    let mut inodes = Inodes::new(tree, &files, compressor, &paths);
    // A directory refers to its children by their inodes' positions, so children come first.
    for (_, id) in paths.iter().rev() {
        inodes.add(*id)?;
    }
    let used = inodes.finish(Tables { out: &mut *out, at }, &fragments)?;
    let padded = used.next_multiple_of(PADDING);
    out.seek(SeekFrom::Start(used))?;
    out.write_all(&vec![0; (padded - used) as usize])?;
    let list = blocks.list();
    out.write_all(&list)?;
    Ok(padded + list.len() as u64)
}

/// The inodes being written, and what they refer to.
struct Inodes<'a> {
    tree: &'a Tree,
    files: &'a HashMap<[u8; 32], Stored>,
    compressor: Compressor,
    numbers: HashMap<InodeId, u32>,
    links: HashMap<InodeId, u32>,
    /// The inode numbers of their parent directories.
    parents: HashMap<InodeId, u32>,
    ids: Ids,
    xattrs: Xattrs,
    inodes: Metadata,
    directories: Metadata,
    /// The positions of the inodes that were added.
    references: HashMap<InodeId, u64>,
}

impl<'a> Inodes<'a> {
    fn new(
        tree: &'a Tree,
        files: &'a HashMap<[u8; 32], Stored>,
        compressor: Compressor,
        paths: &[(Vec<u8>, InodeId)],
    ) -> Self {
        let (mut numbers, mut links, mut parents) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (_, id) in paths {
            let next = numbers.len() as u32 + 1;
            numbers.entry(*id).or_insert(next);
            *links.entry(*id).or_default() += 1;
        }
        for (_, id) in paths {
            for name in tree.names(*id).into_iter().flatten().map(|(_, name)| name.inode) {
                parents.insert(name, numbers[id]);
            }
        }
        let (ids, xattrs, inodes) = (Ids::default(), Xattrs::default(), Metadata::default());
        let (directories, references) = (Metadata::default(), HashMap::new());
        Self {
            tree,
            files,
            compressor,
            numbers,
            links,
            parents,
            ids,
            xattrs,
            inodes,
            directories,
            references,
        }
    }

    /// Adds an inode, unless it is there already. A directory's children must have been added.
    fn add(&mut self, id: InodeId) -> Result<(), SquashfsError> {
        if self.references.contains_key(&id) {
            return Ok(());
        }
        let inode = self.tree.inode(id);
        let set = self.xattrs.set(inode, &mut self.compressor)?;
        let mut bytes = Vec::new();
        let mode = inode.mode as u16 & 0o7777;
        bytes.extend((basic_type(&inode.kind) + EXTENDED).to_le_bytes());
        bytes.extend(mode.to_le_bytes());
        bytes.extend(self.ids.index(inode.uid)?.to_le_bytes());
        bytes.extend(self.ids.index(inode.gid)?.to_le_bytes());
        bytes.extend(inode.mtime.to_le_bytes());
        bytes.extend(self.numbers[&id].to_le_bytes());
        let links = self.links[&id];
        match &inode.kind {
            Kind::Directory(names) => self.directory(id, names, set, &mut bytes)?,
            Kind::File(content) => {
                let file = &self.files[&content.sha256];
                for field in [file.start, content.len, file.holes] {
                    bytes.extend(field.to_le_bytes());
                }
                let (fragment, offset) = file.fragment.unwrap_or((NONE, 0));
                for field in [links, fragment, offset, set].iter().chain(&file.blocks) {
                    bytes.extend(field.to_le_bytes());
                }
            }
            Kind::Symlink(target) => {
                bytes.extend(links.to_le_bytes());
                bytes.extend((target.len() as u32).to_le_bytes());
                bytes.extend(target);
                bytes.extend(set.to_le_bytes());
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                // new_encode_dev() of linux/kdev_t.h
                let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
                for field in [links, device, set] {
                    bytes.extend(field.to_le_bytes());
                }
            }
            Kind::Fifo => {
                for field in [links, set] {
                    bytes.extend(field.to_le_bytes());
                }
            }
        }
        let (block, offset) = self.inodes.position(&mut self.compressor)?;
        self.inodes.put(&bytes, &mut self.compressor)?;
        self.references.insert(id, u64::from(block) << 16 | u64::from(offset));
        Ok(())
    }

    fn directory(
        &mut self,
        id: InodeId,
        names: &BTreeMap<Vec<u8>, Name>,
        set: u32,
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        let (block, offset) = self.directories.position(&mut self.compressor)?;
        let mut subdirectories = 0;
        let entries: Vec<Entry<'_>> = names
            .iter()
            .map(|(name, found)| {
                let kind = basic_type(&self.tree.inode(found.inode).kind);
                subdirectories += u32::from(kind == DIRECTORY);
                let (number, at) = (self.numbers[&found.inode], self.references[&found.inode]);
                Entry { name, kind, number, at }
            })
            .collect();
        let listing = listing(&entries);
        self.directories.put(&listing, &mut self.compressor)?;
        // "." and "..", which are not stored, count as three bytes.
        let size = listing.len() as u32 + 3;
        // The root has no parent: it gets a number that no inode has.
        let parent = self.parents.get(&id).copied().unwrap_or(self.numbers.len() as u32 + 1);
        for field in [2 + subdirectories, size, block, parent] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(0u16.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(set.to_le_bytes());
        Ok(())
    }

    /// Writes the tables after the data, then the superblock before it. Returns the end of the last table.
    fn finish(self, mut tables: Tables<'_>, fragments: &[u8]) -> io::Result<u64> {
        let Self { mut compressor, numbers, ids, xattrs, inodes, directories, references, .. } = self;
        let inode_table = tables.plain(inodes, &mut compressor)?;
        let directory_table = tables.plain(directories, &mut compressor)?;
        let fragment_count = fragments.len() as u32 / FRAGMENT_ENTRY;
        let fragment_table = tables.indexed(fragments, &[], &mut compressor)?;
        let id_count = ids.numbers.len() as u16;
        let id_table = tables.indexed(&ids.table, &[], &mut compressor)?;
        let no_xattrs = xattrs.sets.is_empty();
        let xattr_table = if no_xattrs {
            NO_TABLE
        } else {
            let pairs = tables.plain(xattrs.pairs, &mut compressor)?;
            let count = xattrs.sets.len() as u32;
            let header = [&pairs.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
            tables.indexed(&xattrs.table, &header, &mut compressor)?
        };
        let Tables { out, at: used } = tables;

        let mut superblock = Vec::from(b"hsqs");
        for field in [numbers.len() as u32, 0, BLOCK as u32, fragment_count] {
            superblock.extend(field.to_le_bytes());
        }
        let flags = if no_xattrs { FLAG_NO_XATTRS } else { 0 };
        for field in [ZSTD, BLOCK_LOG, flags, id_count, 4, 0] {
            superblock.extend(field.to_le_bytes());
        }
        let root = references[&Tree::ROOT];
        for field in
            [root, used, id_table, xattr_table, inode_table, directory_table, fragment_table, NO_TABLE]
        {
            superblock.extend(field.to_le_bytes());
        }
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&superblock)?;
        Ok(used)
    }
}

const SUPERBLOCK: usize = 96;
const FRAGMENT_ENTRY: u32 = 16;

/// Inode types, as directories contain them. All inodes written here are of the extended kind, which has room for
/// attributes and links.
const DIRECTORY: u16 = 1;
const EXTENDED: u16 = 7;

fn basic_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => DIRECTORY,
        Kind::File(_) => 2,
        Kind::Symlink(_) => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::CharDevice { .. } => 5,
        Kind::Fifo => 6,
    }
}

fn check(tree: &Tree, paths: &[(Vec<u8>, InodeId)]) -> Result<(), SquashfsError> {
    for (path, id) in paths {
        let shown = || path.escape_ascii().to_string();
        if path.rsplit(|b| *b == b'/').next().is_some_and(|name| name.len() > MAX_NAME) {
            return Err(SquashfsError::LongName { path: shown() });
        }
        if matches!(&tree.inode(*id).kind, Kind::Symlink(target) if target.len() > MAX_TARGET) {
            return Err(SquashfsError::LongTarget { path: shown() });
        }
    }
    Ok(())
}

/// A directory's entry, and the position of its inode.
struct Entry<'a> {
    name: &'a [u8],
    kind: u16,
    number: u32,
    at: u64,
}

/// A directory's listing: runs of entries whose inodes share a metadata block. Each run has a header with the block and
/// a base inode number, to which the entries' numbers are relative.
fn listing(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let same_run = |first: &Entry<'_>, entry: &Entry<'_>| {
        first.at >> 16 == entry.at >> 16
            && i16::try_from(i64::from(entry.number) - i64::from(first.number)).is_ok()
    };
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let len = rest.iter().take(DIRECTORY_RUN).take_while(|entry| same_run(first, entry)).count();
        let (run, after) = rest.split_at(len);
        for field in [len as u32 - 1, (first.at >> 16) as u32, first.number] {
            bytes.extend(field.to_le_bytes());
        }
        for entry in run {
            let offset = (entry.at & 0xffff) as u16;
            let delta = entry.number.wrapping_sub(first.number) as u16;
            for field in [offset, delta, entry.kind, entry.name.len() as u16 - 1] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.extend(entry.name);
        }
        rest = after;
    }
    bytes
}

/// Owners and groups: inodes refer to them by number.
#[derive(Default)]
struct Ids {
    numbers: HashMap<u32, u16>,
    table: Vec<u8>,
}

impl Ids {
    fn index(&mut self, id: u32) -> Result<u16, SquashfsError> {
        if let Some(index) = self.numbers.get(&id) {
            return Ok(*index);
        }
        // The count, like the index, has 16 bits.
        let index = self.numbers.len() as u16;
        if index == u16::MAX {
            return Err(SquashfsError::TooManyOwners);
        }
        self.numbers.insert(id, index);
        self.table.extend(id.to_le_bytes());
        Ok(index)
    }
}

/// Sets of extended attributes: inodes refer to them by number.
#[derive(Default)]
struct Xattrs {
    sets: HashMap<BTreeMap<Vec<u8>, Vec<u8>>, u32>,
    pairs: Metadata,
    table: Vec<u8>,
}

impl Xattrs {
    fn set(&mut self, inode: &Inode, compressor: &mut Compressor) -> io::Result<u32> {
        let kept = inode.xattrs.iter().filter(|(name, _)| xattr_name(name).is_some());
        let set: BTreeMap<_, _> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        if set.is_empty() {
            return Ok(NONE);
        }
        if let Some(number) = self.sets.get(&set) {
            return Ok(*number);
        }
        let (block, offset) = self.pairs.position(compressor)?;
        let mut bytes = Vec::new();
        for (name, value) in &set {
            let Some((prefix, name)) = xattr_name(name) else { continue };
            bytes.extend(prefix.to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend(name);
            bytes.extend((value.len() as u32).to_le_bytes());
            bytes.extend(value);
        }
        self.pairs.put(&bytes, compressor)?;
        self.table.extend((u64::from(block) << 16 | u64::from(offset)).to_le_bytes());
        self.table.extend((set.len() as u32).to_le_bytes());
        self.table.extend((bytes.len() as u32).to_le_bytes());
        let number = self.sets.len() as u32;
        self.sets.insert(set, number);
        Ok(number)
    }
}

#[cfg(test)]
#[path = "squashfs_tests.rs"]
mod tests;
