//! Assembling an image from symbols, in its final place.
//!
//! A source symbol is written to its place as it arrives. Only repair symbols are kept in memory, and for a block
//! never more than it lacks. When source and repair symbols together are as many as the block's symbols, it is decoded:
//! its source symbols are read back, and the missing ones are written.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use pxe_contract::hex;
use pxe_contract::round::Lack;
use pxe_contract::symbols::Geometry;
use raptorq::{EncodingPacket, ObjectTransmissionInformation, PayloadId, SourceBlockDecoder};
use sha2::{Digest as _, Sha256};

use super::Store;

/// The most bytes of repairs: a node has little memory, and further ones can be sent again.
const REPAIRS_MAX: usize = 8 << 20;
/// Holes closer than this are fetched as one: a request costs more.
const COALESCE: u64 = 64 << 10;
/// The most entries in one report; those that are needed first come first.
const LACKS_MAX: usize = 64;

pub(super) struct Assembly {
    geometry: Geometry,
    blocks: Vec<Block>,
    /// Bytes of repairs that are kept.
    repairs: usize,
    /// Bytes of the image that symbols brought.
    received: u64,
    /// Blocks whose bytes were hashed.
    hashed: u32,
    hash: Sha256,
}

enum Block {
    /// All symbols are in their places.
    Whole,
    Partial(Partial),
}

#[derive(Default)]
struct Partial {
    /// A bit for each symbol that is in its place; nothing before the first.
    placed: Vec<u64>,
    count: u32,
    repairs: BTreeMap<u32, Vec<u8>>,
}

impl Assembly {
    /// An image whose first bytes are in their place.
    pub(super) fn new(geometry: Geometry, placed: u64) -> Self {
        let block = |number| {
            let symbols = geometry.symbols(number);
            let placed = (0..symbols).take_while(|symbol| geometry.symbol(number, *symbol).end <= placed);
            let mut partial = Partial::default();
            for symbol in placed {
                partial.place(symbol, symbols);
            }
            if partial.count == symbols { Block::Whole } else { Block::Partial(partial) }
        };
        let blocks = (0..geometry.blocks()).map(block).collect();
        Self { geometry, blocks, repairs: 0, received: 0, hashed: 0, hash: Sha256::new() }
    }

    /// Bytes of the image.
    pub(super) fn len(&self) -> u64 {
        self.geometry.len()
    }

    /// Adds a received symbol. Returns whether it was useful.
    pub(super) fn add(
        &mut self,
        number: u32,
        symbol: u32,
        bytes: &[u8],
        store: &mut impl Store,
    ) -> io::Result<bool> {
        if bytes.len() != usize::from(self.geometry.symbol_size()) {
            return Ok(false);
        }
        let Some(Block::Partial(block)) = self.blocks.get_mut(number as usize) else { return Ok(false) };
        let symbols = self.geometry.symbols(number);
        if symbol < symbols {
            if !block.place(symbol, symbols) {
                return Ok(false);
            }
            let range = self.geometry.symbol(number, symbol);
            store.write_at(&bytes[..(range.end - range.start) as usize], range.start)?;
        } else {
            if block.repairs.contains_key(&symbol) || self.repairs + bytes.len() > REPAIRS_MAX {
                return Ok(false);
            }
            self.repairs += bytes.len();
            block.repairs.insert(symbol, bytes.to_vec());
        }
        if block.count + block.repairs.len() as u32 >= symbols {
            self.solve(number, store)?;
        }
        Ok(true)
    }

    /// Whether the image is complete.
    pub(super) fn complete(&self) -> bool {
        // Blocks are hashed as soon as all before them are whole.
        self.hashed == self.geometry.blocks()
    }

    /// Bytes of the image that came by symbols.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The symbols that blocks still lack.
    pub(super) fn lacks(&self) -> Vec<Lack> {
        let mut lacks: Vec<Lack> = Vec::new();
        for (number, block) in (0..).zip(&self.blocks) {
            let Block::Partial(block) = block else { continue };
            // As many symbols as the block has do not always suffice to decode it (RFC 6330 section 5.4.2.1).
            let have = block.count + block.repairs.len() as u32;
            let symbols = self.geometry.symbols(number).saturating_sub(have).max(1);
            let full = lacks.len() == LACKS_MAX;
            match lacks.last_mut() {
                Some(last) if last.last + 1 == number && last.symbols == symbols => last.last = number,
                _ if full => break,
                _ => lacks.push(Lack { first: number, last: number, symbols }),
            }
        }
        lacks
    }

    /// Ranges that are missing; small gaps between them are included.
    pub(super) fn missing(&self) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for (number, block) in (0..).zip(&self.blocks) {
            let Block::Partial(block) = block else { continue };
            for symbol in (0..self.geometry.symbols(number)).filter(|symbol| !block.is_placed(*symbol)) {
                let range = self.geometry.symbol(number, symbol);
                match missing.last_mut() {
                    Some(last) if range.start - last.end <= COALESCE => last.end = range.end,
                    _ => missing.push(range),
                }
            }
        }
        missing
    }

    /// SHA-256 of the image, in hexadecimal.
    pub(super) fn sha256(mut self, store: &impl Store) -> io::Result<String> {
        for block in &mut self.blocks {
            *block = Block::Whole;
        }
        self.hash_on(store)?;
        Ok(hex::encode(&self.hash.finalize()))
    }

    fn solve(&mut self, number: u32, store: &mut impl Store) -> io::Result<()> {
        let Block::Partial(block) = &self.blocks[number as usize] else { return Ok(()) };
        let symbols = self.geometry.symbols(number);
        let size = self.geometry.symbol_size();
        if block.count < symbols {
            let mut bytes = vec![0; symbols as usize * usize::from(size)];
            // Symbol by symbol, because the file may not exist yet where nothing was written.
            let packets = (0..symbols).filter(|symbol| block.is_placed(*symbol)).map(|symbol| {
                let range = self.geometry.symbol(number, symbol);
                let at = symbol as usize * usize::from(size);
                let bytes = &mut bytes[at..at + usize::from(size)];
                store.read_at(&mut bytes[..(range.end - range.start) as usize], range.start)?;
                Ok(EncodingPacket::new(PayloadId::new(0, symbol), bytes.to_vec()))
            });
            let mut packets = packets.collect::<io::Result<Vec<_>>>()?;
            let repairs = block.repairs.iter();
            packets.extend(
                repairs.map(|(id, bytes)| EncodingPacket::new(PayloadId::new(0, *id), bytes.clone())),
            );
            let len = u64::from(symbols) * u64::from(size);
            let config = ObjectTransmissionInformation::new(len, size, 1, 1, 8);
            let Some(solved) = SourceBlockDecoder::new(0, &config, len).decode(packets) else {
                // One more symbol will suffice.
                return Ok(());
            };
            for symbol in (0..symbols).filter(|symbol| !block.is_placed(*symbol)) {
                let range = self.geometry.symbol(number, symbol);
                let at = symbol as usize * usize::from(size);
                store.write_at(&solved[at..at + (range.end - range.start) as usize], range.start)?;
            }
        }
        self.repairs -= block.repairs.values().map(Vec::len).sum::<usize>();
        let bytes = self.geometry.block(number);
        self.received += bytes.end - bytes.start;
        self.blocks[number as usize] = Block::Whole;
        self.hash_on(store)
    }

    /// Hashes the blocks that are complete so far, so that little is left for the end.
    fn hash_on(&mut self, store: &impl Store) -> io::Result<()> {
        while let Some(Block::Whole) = self.blocks.get(self.hashed as usize) {
            let range = self.geometry.block(self.hashed);
            let mut bytes = vec![0; (range.end - range.start) as usize];
            store.read_at(&mut bytes, range.start)?;
            self.hash.update(&bytes);
            self.hashed += 1;
        }
        Ok(())
    }
}

impl Partial {
    fn is_placed(&self, symbol: u32) -> bool {
        self.placed.get(symbol as usize / 64).is_some_and(|word| word >> (symbol % 64) & 1 == 1)
    }

    /// Marks a symbol as placed. Returns whether it was not placed before.
    fn place(&mut self, symbol: u32, symbols: u32) -> bool {
        if self.is_placed(symbol) {
            return false;
        }
        self.placed.resize(symbols.div_ceil(64) as usize, 0);
        self.placed[symbol as usize / 64] |= 1 << (symbol % 64);
        self.count += 1;
        true
    }
}

#[cfg(test)]
#[path = "assembly_tests.rs"]
pub(super) mod tests;
