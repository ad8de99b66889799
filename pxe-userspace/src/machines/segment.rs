//! The boot segment: which addresses are on it, and whether a station may speak for one.
//!
//! Anybody can write any source address into a packet. But the switch sends answers to the MAC address of the frame. If
//! both belong together, the answer reaches whoever asked, and nobody else.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use pxe_common::Mac;

use super::Machines;
use crate::host::net::BridgeInfo;
use crate::host::net::neighbours;

/// What is known about the sender of a request that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// A host of the segment: the kernel knows that the address is this station's.
    Neighbour,
    /// A machine, from the address of its lease.
    Machine,
}

/// The source of a request, which decides what happens with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Known(Standing),
    /// An address of the segment whose station is not known yet. The kernel finds out by ARP.
    Unknown,
    /// The address belongs to another station.
    Contradicted,
    /// No host of the segment can have the address.
    Beyond,
}

/// The segment behind one bridge. Cloning it is cheap.
#[derive(Clone)]
pub struct Segment {
    bridge: String,
    own: Ipv4Net,
    machines: Machines,
}

impl Segment {
    pub fn new(bridge: &BridgeInfo, machines: Machines) -> Self {
        Self { bridge: bridge.name.clone(), own: bridge.address, machines }
    }

    /// Whether a host of the segment may have this address.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.own.contains(&address)
            && address != self.own.addr()
            && (self.own.prefix_len() >= 31
                || (address != self.own.network() && address != self.own.broadcast()))
    }

    /// A request from `address`, in a frame of `station`.
    pub fn source(&self, address: Ipv4Addr, station: Mac) -> Origin {
        if !self.has(address) {
            return Origin::Beyond;
        }
        match self.machines.holder_of(address) {
            Some(machine) if machine == station => Origin::Known(Standing::Machine),
            Some(_) => Origin::Contradicted,
            None => match neighbours::known(&self.bridge, address) {
                Some(neighbour) if neighbour == station => Origin::Known(Standing::Neighbour),
                Some(_) => Origin::Contradicted,
                None => Origin::Unknown,
            },
        }
    }

    /// The station of the address, if known.
    pub fn station_of(&self, address: Ipv4Addr) -> Option<Mac> {
        self.has(address).then(|| neighbours::known(&self.bridge, address)).flatten()
    }

    /// The source of a TCP connection from `address`, whose handshake is complete. Its frames are not seen, but the
    /// kernel's neighbour table is.
    pub fn connected(&self, address: Ipv4Addr) -> Origin {
        if !self.has(address) {
            return Origin::Beyond;
        }
        let neighbour = neighbours::known(&self.bridge, address);
        match (self.machines.holder_of(address), neighbour) {
            (Some(machine), Some(neighbour)) if machine != neighbour => Origin::Contradicted,
            (Some(_), _) => Origin::Known(Standing::Machine),
            (None, Some(_)) => Origin::Known(Standing::Neighbour),
            (None, None) => Origin::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_segment_is_nobodys() {
        let bridge = BridgeInfo {
            name: "no-such-bridge".into(),
            index: 1,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: "10.77.0.1/16".parse().unwrap(),
            mtu: 1500,
        };
        let machines = Machines::default();
        let (mac, other) = (Mac([2, 0, 0, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 8]));
        machines.bound(mac, Ipv4Addr::new(10, 77, 0, 7));
        let segment = Segment::new(&bridge, machines);
        let source = |address: [u8; 4], station| segment.source(address.into(), station);
        for beyond in [
            [203, 0, 113, 1],
            [10, 78, 0, 7],
            [0, 0, 0, 0],
            [127, 0, 0, 1],
            [10, 77, 0, 1],
            [10, 77, 255, 255],
        ] {
            assert_eq!(source(beyond, mac), Origin::Beyond, "{beyond:?}");
            assert_eq!(segment.connected(beyond.into()), Origin::Beyond, "{beyond:?}");
        }
        assert_eq!(source([10, 77, 0, 7], mac), Origin::Known(Standing::Machine));
        assert_eq!(source([10, 77, 0, 7], other), Origin::Contradicted);
        assert_eq!(source([10, 77, 0, 9], other), Origin::Unknown);
        assert_eq!(segment.connected([10, 77, 0, 7].into()), Origin::Known(Standing::Machine));
    }
}
