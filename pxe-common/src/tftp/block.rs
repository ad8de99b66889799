//! Block numbers: 16 bits on the wire, 32 bits everywhere else.

/// A block's number as packets carry it. Block 1 is a file's first, 0 acknowledges the options;
/// after 65,535 comes 0 again, which every client in use follows though no RFC says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNo(pub u16);

impl BlockNo {
    /// The number that block `index` (1 for the first) has on the wire.
    #[inline(always)]
    pub const fn of(index: u32) -> Self {
        Self(index as u16)
    }

    /// How many blocks this one is ahead of block `index`, the wrap considered.
    #[inline(always)]
    pub const fn ahead_of(self, index: u32) -> u16 {
        self.0.wrapping_sub(index as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        assert_eq!(BlockNo::of(65_536), BlockNo(0));
        assert_eq!(BlockNo(1).ahead_of(65_535), 2);
        assert_eq!(BlockNo(65_535).ahead_of(65_536), u16::MAX, "one behind");
    }
}
