//! The boot segment, by which other addresses are checked.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The segment's network, and the appliance's own address on it.
pub(super) struct Segment {
    pub(super) net: Ipv4Net,
    pub(super) own: Ipv4Addr,
}

impl Segment {
    pub(super) fn new(address: Ipv4Net) -> Self {
        Self { net: address.trunc(), own: address.addr() }
    }

    /// Why `address` can't be a host's on the segment, and a correction.
    pub(super) fn fault(&self, address: Ipv4Addr) -> Option<(String, String)> {
        let Self { net, .. } = self;
        if !net.contains(&address) {
            Some((format!("{address} is outside {net}"), "use an address of [network] address".to_owned()))
        } else if address == net.network() || address == net.broadcast() {
            Some((
                format!("{address} is {net}'s network or broadcast address"),
                "use an address between the two".to_owned(),
            ))
        } else {
            None
        }
    }
}
