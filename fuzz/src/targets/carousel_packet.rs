//! A multicast packet: a parsed packet encodes to the same bytes, and its symbol is inside the image or is refused.
use pxe_contract::symbols::{Content, Geometry, Header, SYMBOL_END};

pub(crate) fn run(bytes: &[u8]) {
    let Some((header, payload)) = Header::parse(bytes) else { return };
    assert_eq!([&header.bytes()[..], payload].concat(), bytes);
    let Content::Symbol { block, symbol } = header.content else {
        assert!(payload.is_empty());
        return;
    };
    assert!(symbol < SYMBOL_END && !payload.is_empty());
    let Ok(size) = u16::try_from(payload.len()) else { return };
    let Some(geometry) = Geometry::new(header.len, size, 1024) else { return };
    if block < geometry.blocks() && symbol < geometry.symbols(block) {
        let range = geometry.symbol(block, symbol);
        assert!(range.start < range.end && range.end <= header.len);
        assert!(geometry.block(block).start <= range.start && range.end <= geometry.block(block).end);
    }
}
