//! Metadata blocks, and the tables that consist of them.

use std::fs::File;
use std::io::{self, Write as _};

use super::data::Compressor;
use super::{METADATA_BLOCK, METADATA_PLAIN};

/// Metadata blocks that are being filled.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) packed: Vec<u8>,
    pub(super) block: Vec<u8>,
    /// Where each block begins.
    pub(super) starts: Vec<u64>,
}

impl Metadata {
    /// The position of the next byte: the start of its block among the packed ones, and the offset in that block.
    pub(super) fn position(&mut self, compressor: &mut Compressor) -> io::Result<(u32, u16)> {
        if self.block.len() == METADATA_BLOCK {
            self.end_block(compressor)?;
        }
        Ok((self.packed.len() as u32, self.block.len() as u16))
    }

    pub(super) fn put(&mut self, mut bytes: &[u8], compressor: &mut Compressor) -> io::Result<()> {
        while !bytes.is_empty() {
            self.position(compressor)?;
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_BLOCK - self.block.len()));
            self.block.extend(now);
            bytes = later;
        }
        Ok(())
    }

    pub(super) fn end_block(&mut self, compressor: &mut Compressor) -> io::Result<()> {
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
pub(super) struct Tables<'a> {
    pub(super) out: &'a mut File,
    pub(super) at: u64,
}

impl Tables<'_> {
    /// Writes metadata blocks, and returns their start.
    pub(super) fn plain(&mut self, mut metadata: Metadata, compressor: &mut Compressor) -> io::Result<u64> {
        metadata.end_block(compressor)?;
        self.put(&metadata.packed)
    }

    /// Writes metadata blocks, then `header` and the start of each block; returns the position of `header`.
    pub(super) fn indexed(
        &mut self,
        table: &[u8],
        header: &[u8],
        compressor: &mut Compressor,
    ) -> io::Result<u64> {
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

    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.out.write_all(bytes)?;
        let start = self.at;
        self.at += bytes.len() as u64;
        Ok(start)
    }
}
