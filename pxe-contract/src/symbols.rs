//! One image to many machines at once: the packet of a multicast round, and how an image is cut into symbols.
//!
//! An image is cut into blocks of a few thousand symbols, and each block is an object of its own for
//! RaptorQ (RFC 6330): its first symbols are the bytes themselves, all later ones are repairs, and
//! any as many symbols as the block has restore it. RFC 6330's own header (section 3.2) numbers 256
//! blocks at most; an image has more.
//!
//! ```text
//!  0      4                  12               20         24         28         32
//!  +------+------------------+----------------+----------+----------+----------+---------
//!  | BHC1 | image (8 bytes   | bytes of the   | sequence | block    | symbol   | a whole
//!  |      | of its SHA-256)  | image          |          |          |          | symbol
//!  +------+------------------+----------------+----------+----------+----------+---------
//! ```
//!
//! Numbers are in network order. `sequence` counts a round's packets, so that receivers know what they
//! lost and the sender what a receiver has seen. A packet whose `symbol` is all ones has no payload and
//! asks receivers for their reports.

use core::ops::Range;

/// Bytes before a symbol.
pub const HEADER: usize = 32;
/// Symbols are numbered in 24 bits (RFC 6330 section 3.2).
pub const SYMBOL_END: u32 = 1 << 24;
/// The most symbols that RaptorQ takes in a block (RFC 6330 section 5.1.2).
pub const BLOCK_SYMBOLS_MAX: u16 = 56_403;

const MAGIC: [u8; 4] = *b"BHC1";
const POLL: u32 = u32::MAX;

/// The header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The first bytes of the image's SHA-256.
    pub image: [u8; 8],
    /// Bytes of the whole image.
    pub len: u64,
    /// Packets of this round before this one.
    pub sequence: u32,
    /// Its contents.
    pub content: Content,
}

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A symbol of a block.
    Symbol {
        /// The block.
        block: u32,
        /// Below the block's count of symbols, a part of the image; a repair from there on.
        symbol: u32,
    },
    /// No payload: receivers are to report what they lack.
    Poll,
}

impl Header {
    /// A packet's header and payload; `None` if it is not one of ours.
    pub fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = packet.split_first_chunk::<HEADER>()?;
        let four =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let content = match (four(24), four(28)) {
            (0, POLL) if payload.is_empty() => Content::Poll,
            (block, symbol) if symbol < SYMBOL_END && !payload.is_empty() => {
                Content::Symbol { block, symbol }
            }
            _ => return None,
        };
        let mut image = [0; 8];
        image.copy_from_slice(&header[4..12]);
        let len = u64::from(four(12)) << 32 | u64::from(four(16));
        (header[..4] == MAGIC).then_some((Self { image, len, sequence: four(20), content }, payload))
    }

    /// The header's bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let (block, symbol) = match self.content {
            Content::Symbol { block, symbol } => (block, symbol),
            Content::Poll => (0, POLL),
        };
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.image);
        bytes[12..20].copy_from_slice(&self.len.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[24..28].copy_from_slice(&block.to_be_bytes());
        bytes[28..32].copy_from_slice(&symbol.to_be_bytes());
        bytes
    }
}

/// How an image is divided into blocks and symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    len: u64,
    symbol_size: u16,
    block_symbols: u16,
}

impl Geometry {
    /// An image of `len` bytes in symbols of `symbol_size`, `block_symbols` per block; `None` if that is impossible.
    pub fn new(len: u64, symbol_size: u16, block_symbols: u16) -> Option<Self> {
        let block = u64::from(symbol_size) * u64::from(block_symbols);
        let possible = len > 0
            && block > 0
            && block_symbols <= BLOCK_SYMBOLS_MAX
            && len.div_ceil(block) <= u64::from(u32::MAX);
        possible.then_some(Self { len, symbol_size, block_symbols })
    }

    /// Bytes of the image.
    #[expect(clippy::len_without_is_empty, reason = "an empty image is not cut")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of a symbol. The image's last one is filled up with zeros.
    pub fn symbol_size(&self) -> u16 {
        self.symbol_size
    }

    /// Blocks in all.
    pub fn blocks(&self) -> u32 {
        self.len.div_ceil(self.block_len()) as u32
    }

    /// Symbols of a block, which is one of [`Self::blocks`].
    pub fn symbols(&self, block: u32) -> u32 {
        let bytes = self.block(block);
        (bytes.end - bytes.start).div_ceil(u64::from(self.symbol_size)) as u32
    }

    /// Where a block's bytes are.
    pub fn block(&self, block: u32) -> Range<u64> {
        let start = u64::from(block) * self.block_len();
        start..(start + self.block_len()).min(self.len)
    }

    /// Where a symbol's bytes are, for a symbol that is part of the image.
    pub fn symbol(&self, block: u32, symbol: u32) -> Range<u64> {
        let start = self.block(block).start + u64::from(symbol) * u64::from(self.symbol_size);
        start..(start + u64::from(self.symbol_size)).min(self.len)
    }

    fn block_len(&self) -> u64 {
        u64::from(self.symbol_size) * u64::from(self.block_symbols)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        let symbol =
            (any::<u32>(), 0..SYMBOL_END).prop_map(|(block, symbol)| Content::Symbol { block, symbol });
        prop_oneof![symbol, Just(Content::Poll)]
    }

    #[test]
    fn the_layout_is_as_documented() {
        let content = Content::Symbol { block: 0x0a0b_0c0d, symbol: 0x0001_0203 };
        let header = Header { image: *b"ABCDEFGH", len: 0x0102_0304_0506_0708, sequence: 9, content };
        let expected =
            b"BHC1ABCDEFGH\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09\x0a\x0b\x0c\x0d\0\x01\x02\x03";
        assert_eq!(&header.bytes(), expected);
    }

    proptest! {
        #[test]
        fn a_header_reads_back(image: [u8; 8], len: u64, sequence: u32, content in content(), payload: [u8; 3]) {
            let header = Header { image, len, sequence, content };
            let payload = if content == Content::Poll { &[][..] } else { &payload };
            let packet = [&header.bytes()[..], payload].concat();
            prop_assert_eq!(Header::parse(&packet), Some((header, payload)));
        }

        #[test]
        fn what_is_read_is_what_was_there(packet in proptest::collection::vec(any::<u8>(), 0..64), magic: bool) {
            let mut packet = packet;
            if magic && packet.len() >= 4 {
                packet[..4].copy_from_slice(b"BHC1");
            }
            if let Some((header, payload)) = Header::parse(&packet) {
                prop_assert_eq!([&header.bytes()[..], payload].concat(), packet);
            }
        }

        #[test]
        fn every_byte_is_in_one_symbol(len in 1u64..100_000, size in 1u16..200, symbols in 1u16..40) {
            let geometry = Geometry::new(len, size, symbols).unwrap();
            let ranges: Vec<_> = (0..geometry.blocks())
                .flat_map(|block| (0..geometry.symbols(block)).map(move |symbol| geometry.symbol(block, symbol)))
                .collect();
            prop_assert_eq!(ranges[0].start, 0);
            prop_assert_eq!(ranges.last().unwrap().end, len);
            prop_assert!(ranges.iter().all(|r| !r.is_empty() && r.end - r.start <= u64::from(size)));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!((0..geometry.blocks()).all(|block| geometry.symbols(block) <= u32::from(symbols)));
        }
    }

    #[test]
    fn what_can_not_be_cut_is_refused() {
        for (len, size, symbols) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 56_404), (u64::MAX, 1, 1)] {
            assert_eq!(Geometry::new(len, size, symbols), None);
        }
    }
}
