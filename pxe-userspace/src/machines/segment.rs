//! The boot segment: which addresses are on it, and whether a station may speak for one.
//!
//! Anybody can write any source address into a packet. But the switch sends answers to the MAC address of the frame. If
//! both belong together, the answer reaches whoever asked, and nobody else.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ipnet::Ipv4Net;
use pxe_common::Mac;
use pxe_common::wire::EtherType;

use super::Machines;
use crate::base::lock::Unpoisoned as _;
use crate::host::net::BridgeInfo;
use crate::host::net::neighbours;
use crate::host::net::packet::{self, PacketSocket};

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
    contradictions: Arc<Mutex<Contradictions>>,
}

/// Who says by ARP that a machine's address is theirs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contradictions {
    pub count: u64,
    pub last: Option<Contradiction>,
}

#[derive(Clone, Copy, Debug)]
pub struct Contradiction {
    pub address: Ipv4Addr,
    pub machine: Mac,
    pub station: Mac,
    pub at: Instant,
}

impl Segment {
    pub fn new(bridge: &BridgeInfo, machines: Machines) -> Self {
        Self { bridge: bridge.name.clone(), own: bridge.address, machines, contradictions: Arc::default() }
    }

    /// Whether a host of the segment may have this address.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.own.contains(&address)
            && address != self.own.addr()
            && (self.own.prefix_len() >= 31
                || (address != self.own.network() && address != self.own.broadcast()))
    }

    /// What was heard against what leases say.
    pub fn contradictions(&self) -> Contradictions {
        *self.contradictions.lock().unpoisoned()
    }

    /// Listens to the segment's ARP, for ever. The kernel has its neighbours from leases and is not misled; people are
    /// told.
    pub async fn listen(&self, bridge: &BridgeInfo) -> io::Result<()> {
        let socket = PacketSocket::open(bridge.index, EtherType::ARP, &packet::everything())?;
        let mut frame = [0; 64];
        for heard in 1_u64.. {
            // A flood of it has its turn among others.
            if heard.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
            match socket.try_receive(&mut frame) {
                Ok(len) => self.heard(&frame[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// An ARP packet, in its frame (RFC 826): its sender says whose an address is.
    fn heard(&self, frame: &[u8]) {
        let Some(&[0, 1, 8, 0, 6, 4, _, _, a, b, c, d, e, f, w, x, y, z]) = frame.get(14..32) else { return };
        let (station, address) = (Mac([a, b, c, d, e, f]), Ipv4Addr::new(w, x, y, z));
        if let Some(machine) = self.machines.holder_of(address).filter(|machine| *machine != station) {
            let last = Contradiction { address, machine, station, at: Instant::now() };
            let mut contradictions = self.contradictions.lock().unpoisoned();
            *contradictions = Contradictions { count: contradictions.count + 1, last: Some(last) };
        }
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

    fn bridge() -> BridgeInfo {
        BridgeInfo {
            name: "no-such-bridge".into(),
            index: 1,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: "10.77.0.1/16".parse().unwrap(),
            mtu: 1500,
        }
    }

    #[test]
    fn arp_against_a_lease_is_counted() {
        let machines = Machines::default();
        machines.bound(Mac([2, 0, 0, 0, 0, 7]), Ipv4Addr::new(10, 77, 0, 7));
        let segment = Segment::new(&bridge(), machines);
        let arp = |station: u8, address: u8| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, station, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
            frame.extend([2, 0, 0, 0, 0, station, 10, 77, 0, address]);
            frame.resize(60, 0);
            frame
        };
        segment.heard(&arp(7, 7));
        segment.heard(&arp(8, 9));
        let (mut ipv6, thief) = (arp(8, 7), arp(8, 7));
        ipv6[16] = 0x86;
        segment.heard(&ipv6);
        (0..42).for_each(|len| segment.heard(&thief[..len.min(31)]));
        assert_eq!(segment.contradictions().count, 0);
        segment.heard(&thief);
        let Contradictions { count: 1, last: Some(last) } = segment.contradictions() else { panic!() };
        assert_eq!((last.machine.0[5], last.station.0[5]), (7, 8));
    }

    #[test]
    fn what_is_beyond_the_segment_is_nobodys() {
        let machines = Machines::default();
        let (mac, other) = (Mac([2, 0, 0, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 8]));
        machines.bound(mac, Ipv4Addr::new(10, 77, 0, 7));
        let segment = Segment::new(&bridge(), machines);
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
