//! The Internet checksum (RFC 1071): a one's complement sum of 16-bit words.

/// A running sum. Add everything that it covers, then [`finish`](Checksum::finish).
///
/// Partial sums of parts that begin at even offsets may be added in any order. So the sum of a file's block can be
/// computed once and used for every packet that carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u32);

impl Checksum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Continues from a sum that was [folded](Checksum::folded) earlier.
    #[inline(always)]
    pub const fn from_folded(sum: u16) -> Self {
        Self(sum as u32)
    }

    /// Adds one 16-bit word given in host byte order.
    #[inline(always)]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u32)
    }

    /// Adds four bytes: an address.
    #[inline(always)]
    pub const fn quad(self, b: [u8; 4]) -> Self {
        self.word(u16::from_be_bytes([b[0], b[1]])).word(u16::from_be_bytes([b[2], b[3]]))
    }

    /// Adds `bytes`, and pads an odd end with a zero (RFC 1071 section 4.1).
    ///
    /// Not for the kernel programs: the length is unbounded.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // 64-bit accumulation: one addition for four words, and the carries are folded at the end.
        let mut sum = u64::from(self.0);
        let mut chunks = bytes.chunks_exact(4);
        for c in &mut chunks {
            sum += u64::from(u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
        }
        let mut tail = [0u8; 4];
        tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        sum += u64::from(u32::from_be_bytes(tail));
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        Self(sum as u32)
    }

    /// The sum folded to 16 bits, not complemented: it can be stored and continued.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum field's value.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }

    /// The UDP checksum field's value: zero would mean "none", so all ones are sent instead (RFC 768).
    #[inline(always)]
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc1071_example() {
        let sum = Checksum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    #[test]
    fn odd_end_is_padded() {
        assert_eq!(Checksum::ZERO.bytes(&[0x12, 0x34, 0x56]), Checksum::ZERO.word(0x1234).word(0x5600));
    }

    #[test]
    fn zero_is_sent_as_ones() {
        assert_eq!(Checksum::ZERO.word(0xffff).finish_udp(), 0xffff);
    }
}
