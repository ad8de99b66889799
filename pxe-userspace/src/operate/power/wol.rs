//! Wake-on-LAN: AMD's magic packet, six bytes 0xff and sixteen times the machine's MAC address. It leaves by the bridge,
//! and by no other link of the appliance.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use pxe_common::Mac;
use socket2::{Domain, Socket, Type};

use crate::base::lock::Unpoisoned as _;
use crate::host::net::packet::{self, PacketSocket};
use crate::host::net::{BridgeInfo, Stations};

/// Of a magic packet by itself, without IP.
const ETHERTYPE: u16 = 0x0842;
/// Discard (RFC 863). Cards look for the pattern, whatever the port.
const PORT: u16 = 9;

/// The bridge, as magic packets leave by it. Cloning it is cheap.
#[derive(Clone)]
pub struct Link {
    bridge: BridgeInfo,
    stations: Arc<Mutex<Stations>>,
}

impl Link {
    pub fn of(bridge: &BridgeInfo) -> Self {
        Self { bridge: bridge.clone(), stations: Arc::new(Mutex::new(Stations::of(bridge))) }
    }

    /// Wakes the machine: to all ports, as a UDP broadcast that the bridge sends; and to the port that the machine was
    /// heard behind, if the bridge still knows, as a frame to its card.
    pub(super) fn wake(&self, mac: Mac) -> io::Result<()> {
        let payload = magic(mac);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind_device(Some(self.bridge.name.as_bytes()))?;
        socket.set_broadcast(true)?;
        socket.bind(&SocketAddr::from((self.bridge.address.addr(), 0)).into())?;
        UdpSocket::from(socket).send_to(&payload, (Ipv4Addr::BROADCAST, PORT))?;
        if let Some(port) = self.stations.lock().unpoisoned().port_of(mac) {
            let mut frame = Vec::with_capacity(14 + payload.len());
            frame.extend(mac.0);
            frame.extend(self.bridge.mac.0);
            frame.extend(ETHERTYPE.to_be_bytes());
            frame.extend(payload);
            send(port, &frame)?;
        }
        Ok(())
    }
}

/// Without a reactor: nothing is received.
fn send(interface: u32, frame: &[u8]) -> io::Result<()> {
    let socket = PacketSocket::bound(interface, 0, &packet::everything())?;
    let sent = socket.send(frame)?;
    if sent != frame.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

fn magic(mac: Mac) -> [u8; 102] {
    let mut payload = [0xff; 102];
    for place in payload[6..].as_chunks_mut::<6>().0 {
        *place = mac.0;
    }
    payload
}
