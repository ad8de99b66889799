//! Writes an image's root file system as SquashFS 4.0 (Linux, fs/squashfs/squashfs_fs.h), compressed
//! with zstd: what a machine fetches and mounts when it boots in two stages.
//!
//! ```text
//! superblock | data blocks and fragments | inodes | directories | fragment table | ids | attributes
//! ```
//!
//! A list of the data blocks follows ([`pxe_contract::blocks`]), which the kernel never looks at.
//!
//! The same tree gives the same bytes: names in order, inode numbers counted, one thread, fixed
//! settings. docs/decisions/011-two-stages.md says why neither mksquashfs nor a crate writes it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};

use pxe_contract::blocks::Blocks;
use sha2::{Digest as _, Sha256};

use super::tree::{Content, Inode, InodeId, Kind, Tree};

const BLOCK_LOG: u16 = 17;
const BLOCK: usize = 1 << BLOCK_LOG;
/// Inodes, directories and tables are packed in blocks of this many bytes.
const METADATA_BLOCK: usize = 8192;
/// In a block's size: it is stored as it is. For metadata it is bit 15.
const DATA_PLAIN: u32 = 1 << 24;
const METADATA_PLAIN: u16 = 1 << 15;
const ZSTD: u16 = 6;
const FLAG_NO_XATTRS: u16 = 0x0200;
/// No such table, fragment or set of attributes.
const NONE: u32 = u32::MAX;
const NO_TABLE: u64 = u64::MAX;
/// SQUASHFS_NAME_LEN is 256, and Linux's NAME_MAX less.
const MAX_NAME: usize = 255;
/// PATH_MAX: what a symbolic link can hold, a NUL included.
const MAX_TARGET: usize = 4095;
/// SQUASHFS_DIR_COUNT: entries below one header.
const DIRECTORY_RUN: usize = 256;
/// loop devices count in sectors; the kernel ignores a last one that is not whole.
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

/// Attributes that SquashFS has a place for: their prefix's number and the rest of the name.
pub(super) fn xattr_name(name: &[u8]) -> Option<(u16, &[u8])> {
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    (0..).zip(prefixes).find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))
}

/// Writes `tree` to `out`, which is empty. Gives back its length.
pub(super) fn write(tree: &Tree, out: &mut File, level: i32) -> Result<u64, SquashfsError> {
    let mut paths = vec![(Vec::new(), Tree::ROOT)];
    paths.extend(tree.walk());
    check(tree, &paths)?;
    let mut numbers: HashMap<InodeId, u32> = HashMap::new();
    let mut links: HashMap<InodeId, u32> = HashMap::new();
    for (_, id) in &paths {
        let next = numbers.len() as u32 + 1;
        numbers.entry(*id).or_insert(next);
        *links.entry(*id).or_default() += 1;
    }
    let compressor = Compressor::new(level)?;
    let mut data = Data::new(out, compressor)?;
    for (_, id) in &paths {
        if let Kind::File(content) = &tree.inode(*id).kind {
            data.file(content)?;
        }
    }
    data.end_fragment()?;
    let Data { out, at, files, fragments, blocks, mut compressor, .. } = data;

    let mut ids = Ids::default();
    let mut xattrs = Xattrs::default();
    let mut inodes = Metadata::default();
    let mut directories = Metadata::default();
    let mut references: HashMap<InodeId, u64> = HashMap::new();
    let mut parents: HashMap<InodeId, u32> = HashMap::new();
    for (_, id) in &paths {
        for name in tree.names(*id).into_iter().flatten().map(|(_, name)| name.inode) {
            parents.insert(name, numbers[id]);
        }
    }
    // A directory names its children by where their inodes are: children first.
    for (_, id) in paths.iter().rev() {
        if references.contains_key(id) {
            continue;
        }
        let inode = tree.inode(*id);
        let set = xattrs.set(inode, &mut compressor)?;
        let mut bytes = Vec::new();
        let mode = inode.mode as u16 & 0o7777;
        bytes.extend((basic_type(&inode.kind) + EXTENDED).to_le_bytes());
        bytes.extend(mode.to_le_bytes());
        bytes.extend(ids.index(inode.uid)?.to_le_bytes());
        bytes.extend(ids.index(inode.gid)?.to_le_bytes());
        bytes.extend(inode.mtime.to_le_bytes());
        bytes.extend(numbers[id].to_le_bytes());
        match &inode.kind {
            Kind::Directory(names) => {
                let (block, offset) = directories.position(&mut compressor)?;
                let mut subdirectories = 0;
                let entries: Vec<Entry<'_>> = names
                    .iter()
                    .map(|(name, found)| {
                        let kind = basic_type(&tree.inode(found.inode).kind);
                        subdirectories += u32::from(kind == DIRECTORY);
                        let (number, at) = (numbers[&found.inode], references[&found.inode]);
                        Entry { name, kind, number, at }
                    })
                    .collect();
                let listing = listing(&entries);
                directories.put(&listing, &mut compressor)?;
                // "." and "..", which are not stored, count three bytes.
                let size = listing.len() as u32 + 3;
                let parent = parents.get(id).copied().unwrap_or(numbers.len() as u32 + 1);
                for field in [2 + subdirectories, size, block, parent] {
                    bytes.extend(field.to_le_bytes());
                }
                bytes.extend(0u16.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
                bytes.extend(set.to_le_bytes());
            }
            Kind::File(content) => {
                let file = &files[&content.sha256];
                for field in [file.start, content.len, file.holes] {
                    bytes.extend(field.to_le_bytes());
                }
                let (fragment, offset) = file.fragment.unwrap_or((NONE, 0));
                for field in [links[id], fragment, offset, set].iter().chain(&file.blocks) {
                    bytes.extend(field.to_le_bytes());
                }
            }
            Kind::Symlink(target) => {
                bytes.extend(links[id].to_le_bytes());
                bytes.extend((target.len() as u32).to_le_bytes());
                bytes.extend(target);
                bytes.extend(set.to_le_bytes());
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                // new_encode_dev() of linux/kdev_t.h
                let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
                for field in [links[id], device, set] {
                    bytes.extend(field.to_le_bytes());
                }
            }
            Kind::Fifo => {
                for field in [links[id], set] {
                    bytes.extend(field.to_le_bytes());
                }
            }
        }
        let (block, offset) = inodes.position(&mut compressor)?;
        inodes.put(&bytes, &mut compressor)?;
        references.insert(*id, u64::from(block) << 16 | u64::from(offset));
    }

    let mut tables = Tables { out, at };
    let inode_table = tables.plain(inodes, &mut compressor)?;
    let directory_table = tables.plain(directories, &mut compressor)?;
    let fragment_count = fragments.len() as u32 / FRAGMENT_ENTRY;
    let fragment_table = tables.indexed(&fragments, &[], &mut compressor)?;
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
    for field in [root, used, id_table, xattr_table, inode_table, directory_table, fragment_table, NO_TABLE] {
        superblock.extend(field.to_le_bytes());
    }
    let padded = used.next_multiple_of(PADDING);
    out.write_all(&vec![0; (padded - used) as usize])?;
    let list = blocks.list();
    out.write_all(&list)?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&superblock)?;
    Ok(padded + list.len() as u64)
}

const SUPERBLOCK: usize = 96;
const FRAGMENT_ENTRY: u32 = 16;

/// Types as directories name them. An inode here is always of the extended kind of its type, which
/// has room for attributes and links.
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

/// A directory's entry, and where its inode is.
struct Entry<'a> {
    name: &'a [u8],
    kind: u16,
    number: u32,
    at: u64,
}

/// A directory's listing: runs of entries whose inodes share a metadata block, each run below a
/// header with the block and a number that the others' are counted from.
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

struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    fn new(level: i32) -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(level)?))
    }

    /// The bytes packed, where that is shorter.
    fn pack(&mut self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.compress(bytes)?).filter(|packed| packed.len() < bytes.len()))
    }
}

/// Contents, written as they come.
struct Data<'a> {
    out: &'a mut File,
    at: u64,
    compressor: Compressor,
    /// By SHA-256: contents that are there already are not stored again.
    files: HashMap<[u8; 32], Stored>,
    /// Small files, packed together.
    fragment: Vec<u8>,
    /// The table of fragments that were written.
    fragments: Vec<u8>,
    blocks: Blocks,
}

/// Where a file's contents are.
struct Stored {
    start: u64,
    blocks: Vec<u32>,
    /// Bytes in blocks that are all zero, and not stored.
    holes: u64,
    /// The fragment's number, and where in it.
    fragment: Option<(u32, u32)>,
}

impl<'a> Data<'a> {
    fn new(out: &'a mut File, compressor: Compressor) -> io::Result<Self> {
        out.write_all(&[0; SUPERBLOCK])?;
        Ok(Self {
            out,
            at: SUPERBLOCK as u64,
            compressor,
            files: HashMap::new(),
            fragment: Vec::new(),
            fragments: Vec::new(),
            blocks: Blocks::from(SUPERBLOCK as u32),
        })
    }

    fn file(&mut self, content: &Content) -> io::Result<()> {
        if self.files.contains_key(&content.sha256) {
            return Ok(());
        }
        let mut stored = Stored { start: self.at, blocks: Vec::new(), holes: 0, fragment: None };
        if content.len < BLOCK as u64 {
            let bytes = content.read()?;
            if self.fragment.len() + bytes.len() > BLOCK {
                self.end_fragment()?;
            }
            if !bytes.is_empty() {
                let number = self.fragments.len() as u32 / FRAGMENT_ENTRY;
                stored.fragment = Some((number, self.fragment.len() as u32));
                self.fragment.extend(bytes);
                if ends_fragment(content) {
                    self.end_fragment()?;
                }
            }
            stored.start = 0;
        } else {
            let mut reader = content.reader();
            let mut left = content.len;
            let mut block = vec![0; BLOCK];
            while left > 0 {
                let len = left.min(BLOCK as u64) as usize;
                reader.read_exact(&mut block[..len])?;
                left -= len as u64;
                let hole = block[..len].iter().all(|b| *b == 0);
                stored.holes += if hole { len as u64 } else { 0 };
                stored.blocks.push(if hole { 0 } else { self.block(&block[..len])? });
            }
        }
        self.files.insert(content.sha256, stored);
        Ok(())
    }

    fn end_fragment(&mut self) -> io::Result<()> {
        let fragment = std::mem::take(&mut self.fragment);
        if !fragment.is_empty() {
            self.fragments.extend(self.at.to_le_bytes());
            let size = self.block(&fragment)?;
            self.fragments.extend(size.to_le_bytes());
            self.fragments.extend([0; 4]);
        }
        Ok(())
    }

    /// Writes a block and gives its size as it is entered.
    fn block(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let packed = self.compressor.pack(bytes)?;
        let (bytes, plain) = packed.as_ref().map_or((bytes, DATA_PLAIN), |packed| (packed, 0));
        self.out.write_all(bytes)?;
        self.blocks.add(bytes.len() as u32, Sha256::digest(bytes).into());
        self.at += bytes.len() as u64;
        Ok(bytes.len() as u32 | plain)
    }
}

/// Whether a fragment ends with this file: the larger it is, the likelier, and after 64 KiB in the
/// mean. Were fragments only ended when they are full, a file that changes its size would move those
/// after it from one to another, and change all the fragments up to the last.
fn ends_fragment(content: &Content) -> bool {
    let [a, b, c, d, ..] = content.sha256;
    u64::from(u32::from_le_bytes([a, b, c, d])) % (BLOCK as u64 / 2) < content.len
}

/// Metadata blocks in the making.
#[derive(Default)]
struct Metadata {
    packed: Vec<u8>,
    block: Vec<u8>,
    /// Where each block begins.
    starts: Vec<u64>,
}

impl Metadata {
    /// Where the next byte goes: its block's place among the packed ones, and where in that.
    fn position(&mut self, compressor: &mut Compressor) -> io::Result<(u32, u16)> {
        if self.block.len() == METADATA_BLOCK {
            self.end_block(compressor)?;
        }
        Ok((self.packed.len() as u32, self.block.len() as u16))
    }

    fn put(&mut self, mut bytes: &[u8], compressor: &mut Compressor) -> io::Result<()> {
        while !bytes.is_empty() {
            self.position(compressor)?;
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_BLOCK - self.block.len()));
            self.block.extend(now);
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self, compressor: &mut Compressor) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if !block.is_empty() {
            self.starts.push(self.packed.len() as u64);
            let packed = compressor.pack(&block)?;
            let (bytes, plain) = packed.as_ref().map_or((&block, METADATA_PLAIN), |packed| (packed, 0));
            self.packed.extend((bytes.len() as u16 | plain).to_le_bytes());
            self.packed.extend(bytes);
        }
        Ok(())
    }
}

/// What follows the data.
struct Tables<'a> {
    out: &'a mut File,
    at: u64,
}

impl Tables<'_> {
    /// Writes metadata blocks, and says where they begin.
    fn plain(&mut self, mut metadata: Metadata, compressor: &mut Compressor) -> io::Result<u64> {
        metadata.end_block(compressor)?;
        self.put(&metadata.packed)
    }

    /// Writes metadata blocks, then `header` and where each of them begins; says where that is.
    fn indexed(&mut self, table: &[u8], header: &[u8], compressor: &mut Compressor) -> io::Result<u64> {
        let mut metadata = Metadata::default();
        metadata.put(table, compressor)?;
        metadata.end_block(compressor)?;
        let start = self.put(&metadata.packed)?;
        let index = self.put(header)?;
        for block in metadata.starts {
            self.put(&(start + block).to_le_bytes())?;
        }
        Ok(index)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.out.write_all(bytes)?;
        let start = self.at;
        self.at += bytes.len() as u64;
        Ok(start)
    }
}

/// Owners and groups: inodes name them by number.
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
        // The count has 16 bits as well as the index.
        let index = self.numbers.len() as u16;
        if index == u16::MAX {
            return Err(SquashfsError::TooManyOwners);
        }
        self.numbers.insert(id, index);
        self.table.extend(id.to_le_bytes());
        Ok(index)
    }
}

/// Sets of extended attributes: inodes name them by number.
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
