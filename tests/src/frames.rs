//! Ethernet frames made and read byte by byte, on a host's cable: frames that no socket of the host would send.
//!
//! Nothing here is shared with the appliance, which is tested with it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind, setsockopt, sockopt};
use nix::unistd::{read, write};
use socket2::{Domain, Protocol, Socket, Type};

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
/// IEEE 802.1Q, and 802.1ad around it.
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Bytes before a UDP datagram's payload.
const UDP_HEADERS: usize = 42;

/// A packet socket (packet(7)) on `eth0`, for one EtherType of what arrives.
pub struct Cable(Socket);

impl Cable {
    /// Opens the cable of the host that the calling thread is on.
    pub fn open(ethertype: u16) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("a packet socket")?;
        socket.set_nonblocking(true)?;
        // Without a protocol in the address the socket keeps its own.
        bind(socket.as_raw_fd(), &eth0()?).context("binding to eth0")?;
        // Root may exceed rmem_max. A loss here would be this side's fault.
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
        Ok(Self(socket))
    }

    /// Sends a frame; false when the queue is full.
    pub fn send(&self, frame: &[u8]) -> Result<bool> {
        match write(&self.0, frame) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("sending a frame of {} bytes", frame.len())),
        }
    }

    /// A frame that arrived, if one did.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match read(&self.0, buffer) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(e) => Err(e).context("receiving a frame"),
        }
    }

    pub fn socket(&self) -> &Socket {
        &self.0
    }
}

/// The host's own MAC address.
pub fn own_mac() -> Result<Mac> {
    eth0()?.addr().context("eth0 has no MAC address")
}

/// Resolves `target` by ARP (RFC 826), as the host with the address `own`.
pub fn resolve(own: Ipv4Addr, target: Ipv4Addr) -> Result<Mac> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const RETRY: Duration = Duration::from_millis(200);
    let (cable, mac) = (Cable::open(ARP)?, own_mac()?);
    let asking = [&mac[..], &own.octets(), &[0; 6], &target.octets()].concat();
    let request = ethernet(BROADCAST, mac, ARP, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &asking].concat());
    cable.socket().set_nonblocking(false)?;
    cable.socket().set_read_timeout(Some(RETRY))?;
    let begun = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        ensure!(begun.elapsed() < PATIENCE, "nobody says to have {target}");
        cable.send(&request)?;
        while let Some(len) = cable.receive(&mut buffer)? {
            let reply = buffer[..len].get(20..32).filter(|r| r[..2] == [0, 2] && r[8..] == target.octets());
            if let Some(reply) = reply {
                return Ok(*reply[2..].first_chunk().expect("twelve bytes"));
            }
        }
    }
}

fn eth0() -> Result<LinkAddr> {
    let eth0 = getifaddrs()?.filter(|a| a.interface_name == "eth0").find_map(|a| a.address);
    eth0.as_ref().and_then(|a| a.as_link_addr()).copied().context("the host has no eth0")
}

/// `payload` in an Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// The same frame with a VLAN tag in front of its EtherType.
pub fn tagged(frame: &[u8], tag: u16, vlan: u16) -> Vec<u8> {
    [&frame[..12], &tag.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// `payload` in an IPv4 packet. `fragment` is the field of flags and offset.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x77, 0x77, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = !folded(sum(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// `payload` in a UDP datagram, with its checksum (RFC 768).
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, UDP], &len.to_be_bytes()].concat();
    let sum = sum(&pseudo) + sum(&ports) + u64::from(len) + sum(payload);
    let checksum = match !folded(sum) {
        0 => 0xffff,
        sum => sum,
    };
    [&ports, &len.to_be_bytes()[..], &checksum.to_be_bytes(), payload].concat()
}

/// A UDP datagram in a whole frame.
pub fn udp_frame(stations: (Mac, Mac), from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let packet = ipv4(*from.ip(), *to.ip(), UDP, 0, &udp(from, to, payload));
    ethernet(stations.1, stations.0, IPV4, &packet)
}

/// The payload of a frame with a UDP datagram from port `source`, if it is one.
pub fn udp_from(frame: &[u8], source: u16) -> Option<&[u8]> {
    let headers = frame.get(..UDP_HEADERS)?;
    let is_it =
        headers[12..15] == [8, 0, 0x45] && headers[23] == UDP && headers[34..36] == source.to_be_bytes();
    let len = usize::from(u16::from_be_bytes([headers[38], headers[39]]));
    frame.get(UDP_HEADERS..34 + len).filter(|_| is_it)
}

/// Replaces four bytes of a [`udp_frame`]'s payload, from `at` on, and keeps the checksum right (RFC 1624).
pub fn replace(frame: &mut [u8], at: usize, value: [u8; 4]) {
    const CHECKSUM: usize = 40;
    let place = &mut frame[UDP_HEADERS + at..][..4];
    let old = [!place[0], !place[1], !place[2], !place[3]];
    place.copy_from_slice(&value);
    let mut change = folded(sum(&old) + sum(&value));
    if at % 2 == 1 {
        // RFC 1071 section 2: the sum of bytes that straddle the words is the same, swapped.
        change = change.swap_bytes();
    }
    let checksum = &mut frame[CHECKSUM..][..2];
    let was = !u16::from_be_bytes([checksum[0], checksum[1]]);
    let now = match !folded(u64::from(was) + u64::from(change)) {
        0 => 0xffff,
        sum => sum,
    };
    checksum.copy_from_slice(&now.to_be_bytes());
}

/// RFC 1071: the sum of all 16-bit words.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2).map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u64>();
    words + bytes.chunks_exact(2).remainder().first().map_or(0, |b| u64::from(*b) << 8)
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Numbers;

    #[test]
    fn a_frame_with_replaced_bytes_is_the_frame_made_of_them() {
        let mut numbers = Numbers::new(3);
        let end = |port| SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), port);
        let made = |payload: &[u8]| udp_frame((BROADCAST, BROADCAST), end(67), end(68), payload);
        let mut payload = numbers.bytes(31);
        let mut frame = made(&payload);
        for _ in 0..10_000 {
            let at = numbers.below(28) as usize;
            // Also extremes, because one's complement sums have two zeros.
            let value = match numbers.below(4) {
                0 => [0; 4],
                1 => [0xff; 4],
                _ => numbers.below(u32::MAX).to_be_bytes(),
            };
            payload[at..at + 4].copy_from_slice(&value);
            replace(&mut frame, at, value);
            assert_eq!(frame, made(&payload), "{value:?} at {at}");
        }
    }
}
