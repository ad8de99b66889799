//! Data blocks and fragments: the contents of files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};

use pxe_contract::blocks::Blocks;
use sha2::{Digest as _, Sha256};

use super::super::tree::Content;
use super::{BLOCK, DATA_PLAIN, FRAGMENT_ENTRY, SUPERBLOCK};

pub(super) struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    pub(super) fn new(level: i32) -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(level)?))
    }

    /// The compressed bytes, if they are shorter.
    pub(super) fn pack(&mut self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.compress(bytes)?).filter(|packed| packed.len() < bytes.len()))
    }
}

/// Contents, written in the order in which they are added.
pub(super) struct Data<'a> {
    pub(super) out: &'a mut File,
    pub(super) at: u64,
    pub(super) compressor: Compressor,
    /// By SHA-256, so that equal contents are stored only once.
    pub(super) files: HashMap<[u8; 32], Stored>,
    /// The current fragment: small files, packed together.
    pub(super) fragment: Vec<u8>,
    /// The table of fragments that were written.
    pub(super) fragments: Vec<u8>,
    pub(super) blocks: Blocks,
}

/// The place of a file's contents.
pub(super) struct Stored {
    pub(super) start: u64,
    pub(super) blocks: Vec<u32>,
    /// Bytes in blocks that are all zero, which are not stored.
    pub(super) holes: u64,
    /// The fragment's number, and the offset in it.
    pub(super) fragment: Option<(u32, u32)>,
}

impl<'a> Data<'a> {
    pub(super) fn new(out: &'a mut File, compressor: Compressor) -> io::Result<Self> {
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

    pub(super) fn file(&mut self, content: &Content) -> io::Result<()> {
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

    pub(super) fn end_fragment(&mut self) -> io::Result<()> {
        let fragment = std::mem::take(&mut self.fragment);
        if !fragment.is_empty() {
            self.fragments.extend(self.at.to_le_bytes());
            let size = self.block(&fragment)?;
            self.fragments.extend(size.to_le_bytes());
            self.fragments.extend([0; 4]);
        }
        Ok(())
    }

    /// Writes a block, and returns its size as the file system stores it.
    pub(super) fn block(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let packed = self.compressor.pack(bytes)?;
        let (bytes, plain) = packed.as_ref().map_or((bytes, DATA_PLAIN), |packed| (packed, 0));
        self.out.write_all(bytes)?;
        self.blocks.add(bytes.len() as u32, Sha256::digest(bytes).into());
        self.at += bytes.len() as u64;
        Ok(bytes.len() as u32 | plain)
    }
}

/// Whether a fragment ends with this file: the larger the file, the likelier, and after 64 KiB on average. If fragments
/// ended only when full, a file whose size changes would shift the files after it into other fragments, and change all
/// fragments up to the last.
pub(super) fn ends_fragment(content: &Content) -> bool {
    let [a, b, c, d, ..] = content.sha256;
    u64::from(u32::from_le_bytes([a, b, c, d])) % (BLOCK as u64 / 2) < content.len
}
