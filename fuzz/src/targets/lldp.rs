//! An LLDP frame: whoever is on a node's link may have sent it.

use pxe_init::facts::lldp::parse;

pub(crate) fn run(bytes: &[u8]) {
    let Some(neighbour) = parse(bytes) else { return };
    assert!(!neighbour.chassis.is_empty() && !neighbour.port.is_empty(), "nobody sends nothing");
    let texts = [&neighbour.chassis, &neighbour.port];
    let optional = [&neighbour.port_description, &neighbour.system];
    for text in texts.into_iter().chain(optional.into_iter().flatten()) {
        // Each byte that is no UTF-8 becomes a character of three, and of a MAC address three characters.
        assert!(text.len() <= 3 * bytes.len(), "more than was sent");
    }
}
