//! DHCP's sockets on the bridge.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use pxe_common::Mac;
use pxe_common::wire::{Checksum, Datagram, EtherType, HEADERS_LEN, port};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::filter::{self, FORGED_LEN};
use super::server::{Meta, Reply, To};
use crate::host::net::BridgeInfo;
use crate::host::net::packet::{self, PacketSocket};
use crate::host::net::room::make_room;
use crate::machines::pacing::ANYWHERE;

/// The most packets that share one commit.
pub(super) const BATCH: usize = 512;

/// The largest datagram that is read: a DHCP message never fills more than one frame, and longer ones
/// are counted as too long in any case.
const MAX_DATAGRAM: usize = 2048;

/// A received packet.
pub(super) enum Heard {
    Request(Meta, Vec<u8>),
    /// A message in a machine's name from another station, as [`filter`] found.
    Forged(Mac),
    /// A packet to clients' port 68 from somebody else.
    Overheard(Ipv4Addr, Vec<u8>),
}

/// DHCP could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("UDP port {port} on {bridge}: {source}{}", hint(source))]
    Bind { port: u16, bridge: String, source: io::Error },
    #[error("a packet socket on {bridge}: {source}; it needs CAP_NET_RAW")]
    Packet { bridge: String, source: io::Error },
    #[error("receiving on {bridge}: {source}")]
    Receive { bridge: String, source: io::Error },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another DHCP server runs on this host: stop it or bind it to other interfaces"
        }
        io::ErrorKind::PermissionDenied => "; it needs CAP_NET_BIND_SERVICE and CAP_NET_RAW",
        _ => "",
    }
}

/// The bridge's sockets: two ports, and one on the link for clients without an address.
pub(super) struct Sockets {
    pub(super) bridge: BridgeInfo,
    server: UdpSocket,
    pxe: UdpSocket,
    link: PacketSocket,
}

impl Sockets {
    pub(super) fn open(bridge: &BridgeInfo) -> Result<Self, ServeError> {
        let open = |port| {
            udp(bridge, port).map_err(|source| ServeError::Bind { port, bridge: bridge.name.clone(), source })
        };
        Ok(Self {
            server: open(port::DHCP_SERVER)?,
            pxe: open(port::PXE)?,
            link: PacketSocket::open(bridge.index, EtherType::IPV4, &packet::udp_to(port::DHCP_CLIENT))
                .map_err(|source| ServeError::Packet { bridge: bridge.name.clone(), source })?,
            bridge: bridge.clone(),
        })
    }

    /// Waits for a packet and takes everything that is queued with it.
    pub(super) async fn receive(&self) -> io::Result<Vec<Heard>> {
        tokio::select! {
            ready = self.server.readable() => ready?,
            ready = self.pxe.readable() => ready?,
            ready = self.link.readable() => ready?,
        }
        let mut batch = Vec::new();
        let mut buffer = [0; MAX_DATAGRAM];
        for (socket, port) in [(&self.server, port::DHCP_SERVER), (&self.pxe, port::PXE)] {
            while batch.len() < BATCH {
                let (len, source) = match socket.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error for a sent packet: the socket still works.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(error) => return Err(error),
                };
                match (&buffer[..len], source) {
                    ([.., a, b, c, d, e, f], _) if len == FORGED_LEN => {
                        batch.push(Heard::Forged(Mac([*a, *b, *c, *d, *e, *f])));
                    }
                    (message, SocketAddr::V4(source)) => {
                        batch.push(Heard::Request(Meta { source, port, behind: ANYWHERE }, message.to_vec()));
                    }
                    (_, SocketAddr::V6(_)) => {}
                }
            }
        }
        while batch.len() < BATCH {
            match self.link.try_receive(&mut buffer) {
                Ok(len) => batch.extend(overheard(&buffer[..len])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    pub(super) fn send(&self, reply: &Reply) -> io::Result<()> {
        match reply.to {
            To::Ip(to) => self.send_ip(reply, to),
            To::Link { mac, address } => self.link.send(&frame(&self.bridge, mac, address, &reply.bytes)),
        }
    }

    /// Sends with the appliance's address as the source: an adopted bridge may have others.
    fn send_ip(&self, reply: &Reply, to: SocketAddrV4) -> io::Result<()> {
        let socket = if reply.from_port == port::PXE { &self.pxe } else { &self.server };
        let info = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr {
                s_addr: u32::from_ne_bytes(self.bridge.address.addr().octets()),
            },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&reply.bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(to)),
        )?;
        Ok(())
    }
}

/// A frame to a client without an address, the same bytes as the kernel path's.
fn frame(bridge: &BridgeInfo, mac: Mac, address: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let datagram = Datagram {
        source_mac: bridge.mac,
        destination_mac: mac,
        source: bridge.address.addr(),
        destination: address,
        source_port: port::DHCP_SERVER,
        destination_port: port::DHCP_CLIENT,
        payload_len: message.len() as u16,
    };
    let mut frame = datagram.headers(Checksum::ZERO.bytes(message)).to_vec();
    frame.extend_from_slice(message);
    frame
}

fn overheard(frame: &[u8]) -> Option<Heard> {
    let datagram = Datagram::parse(frame.first_chunk()?, frame.len()).ok()?;
    let message = frame.get(HEADERS_LEN..HEADERS_LEN + usize::from(datagram.payload_len))?;
    Some(Heard::Overheard(datagram.source, message.to_vec()))
}

/// Without SO_REUSEADDR on purpose: a second server on this host must be an error, and not take packets.
fn udp(bridge: &BridgeInfo, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    make_room(&socket);
    socket.bind_device(Some(bridge.name.as_bytes()))?;
    socket.attach_filter(&filter::own_words(bridge.address))?;
    socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_the_whole_message_and_no_padding() {
        let bridge = BridgeInfo {
            name: "pxe0".into(),
            index: 1,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: "10.77.0.1/24".parse().unwrap(),
            mtu: 1500,
        };
        let mut frame = frame(&bridge, Mac::BROADCAST, Ipv4Addr::BROADCAST, b"message");
        frame.resize(60, 0);
        let Some(Heard::Overheard(source, message)) = overheard(&frame) else { panic!("{frame:?}") };
        assert_eq!((source, &message[..]), (bridge.address.addr(), &b"message"[..]));
        assert!(overheard(&frame[..48]).is_none(), "cut short");
    }
}
