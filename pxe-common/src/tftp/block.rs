//! Block numbers: 16 bits on the wire, 32 bits everywhere else.

/// A block's number in packets. Block 1 is a file's first, 0 acknowledges the options. After 65,535 comes 0 again,
/// which all clients in use expect though no RFC says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNo(pub u16);

impl BlockNo {
    /// The number of block `index` (1 for the first) on the wire.
    #[inline(always)]
    pub const fn of(index: u32) -> Self {
        Self(index as u16)
    }

    /// How many blocks this one is ahead of block `index`, including the wrap.
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
