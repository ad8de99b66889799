//! Who sent a packet.

use std::net::SocketAddrV4;

use pxe_common::map::Stations;

use crate::machines::segment::Standing;

/// The source of a packet: its address, and the MACs of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) address: SocketAddrV4,
    pub(super) stations: Stations,
}

/// Who asks for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) sender: Sender,
    pub(super) standing: Standing,
}

/// Where no frames are seen.
impl From<SocketAddrV4> for Sender {
    fn from(address: SocketAddrV4) -> Self {
        Self { address, stations: Stations::ANY }
    }
}

/// A machine, where no frames are seen.
impl From<SocketAddrV4> for Asker {
    fn from(address: SocketAddrV4) -> Self {
        Self { sender: address.into(), standing: Standing::Machine }
    }
}
