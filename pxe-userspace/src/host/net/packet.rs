//! Whole Ethernet frames on one interface (packet(7)): for peers that have no address yet, and
//! for protocols that the host itself may have switched off.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use pxe_common::Mac;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Frames of every EtherType, including sent ones (ETH_P_ALL).
pub const ALL: u16 = libc::ETH_P_ALL as u16;

/// A packet socket on one interface, or on all of them. Receives what its filter lets through.
#[derive(Debug)]
pub struct PacketSocket(AsyncFd<Socket>);

impl PacketSocket {
    /// Opens a socket on the interface with this index, 0 for all, for frames of one EtherType.
    pub fn open(interface: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Self> {
        Self::register(Self::bound(interface, ethertype, filter)?)
    }

    /// The same without a reactor: frames queue up until it is [registered](Self::register).
    pub fn bound(interface: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Socket> {
        // With protocol 0 nothing is received, so no frame is queued before filter and interface are set.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(filter)?;
        socket.bind(&link_address(interface, ethertype))?;
        Ok(socket)
    }

    /// Gives a [bound](Self::bound) socket to the reactor of the caller's runtime.
    pub fn register(socket: Socket) -> io::Result<Self> {
        // SAFETY: the socket owns its descriptor, which stays the same and open until the AsyncFd
        // that now owns the socket is dropped.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self(socket))
    }

    /// Waits until [`try_receive`](Self::try_receive) may find a frame.
    pub async fn readable(&self) -> io::Result<()> {
        // Readiness is kept: try_receive clears it when the queue is empty.
        self.0.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Takes one frame, cut to the buffer; `WouldBlock` when there is none.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_io(tokio::io::Interest::READABLE, |mut socket| match socket.read(buffer) {
            // Reported once when the interface goes down. It may come up again, so this is not the socket's end.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => socket.read(buffer),
            result => result,
        })
    }

    /// Makes the kernel note each frame's time, and queue this many bytes of frames.
    pub fn note_times(&self, queue: usize) -> io::Result<()> {
        let socket = self.0.get_ref();
        setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(socket, sockopt::RxqOvfl, &1)?;
        // Beyond net.core.rmem_max, which limits unprivileged programs.
        Ok(setsockopt(socket, sockopt::RcvBufForce, &queue)?)
    }

    /// Takes one frame as [`PacketSocket::try_receive`] does, and returns where and when it was seen.
    pub fn try_receive_from(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.0.try_io(tokio::io::Interest::READABLE, |socket| {
            let mut parts = [IoSliceMut::new(buffer)];
            let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec, u32);
            let message =
                recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC)?;
            let address = message.address.ok_or(io::ErrorKind::InvalidData)?;
            let mut received = Received {
                len: message.bytes,
                interface: address.ifindex() as u32,
                outgoing: address.pkttype() == libc::PACKET_OUTGOING,
                nanoseconds: 0,
                dropped: 0,
            };
            for message in message.cmsgs()? {
                match message {
                    ControlMessageOwned::ScmTimestampns(time) => {
                        received.nanoseconds = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
                    }
                    ControlMessageOwned::RxqOvfl(dropped) => received.dropped = dropped,
                    _ => {}
                }
            }
            Ok(received)
        })
    }

    /// Sends one frame, or fails with `WouldBlock` when the interface's queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.0.get_ref().write(frame)?;
        if sent != frame.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

/// A frame and its circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length on the wire: the buffer may hold less.
    pub len: usize,
    pub interface: u32,
    /// It was sent, not received.
    pub outgoing: bool,
    /// Since 1970.
    pub nanoseconds: u64,
    /// Frames dropped because the queue was full, since the socket was opened.
    pub dropped: u32,
}

/// Lets through frames from and to a machine, and DHCP messages about it (its MAC in `chaddr`) that
/// are broadcast or relayed.
pub fn of_machine(mac: Mac) -> [SockFilter; 21] {
    let [a, b, c, d, e, f] = mac.0;
    let (first, rest) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f]));
    [
        load_word(6),
        unless_equal(first, 2),
        load_half(10),
        if_equal(rest, 16),
        load_word(0),
        unless_equal(first, 2),
        load_half(4),
        if_equal(rest, 12),
        load_half(12),
        unless_equal(0x0800, 9),
        load_byte(23),
        unless_equal(17, 7),
        load_half(36),
        if_equal(67, 1),
        unless_equal(68, 4),
        load_word(70),
        unless_equal(first, 2),
        load_half(74),
        if_equal(rest, 1),
        DROP,
        PASS,
    ]
}

/// Lets everything through.
pub fn everything() -> [SockFilter; 1] {
    [PASS]
}

/// Lets through unfragmented IPv4 UDP to one port.
pub fn udp_to(port: u16) -> [SockFilter; 11] {
    [
        load_half(12),
        unless_equal(0x0800, 8),
        load_byte(23),
        unless_equal(17, 6),
        load_half(20),
        // Any bit of the fragment offset.
        SockFilter::new(0x45, 4, 0, 0x1fff),
        // X = the IPv4 header's length; then the half-word X + 14 + 2.
        SockFilter::new(0xb1, 0, 0, 14),
        SockFilter::new(0x48, 0, 0, 16),
        unless_equal(u32::from(port), 1),
        PASS,
        DROP,
    ]
}

/// Lets through unfragmented IPv4 UDP to `address`, at one of these ports. A jump skips 255 instructions at most.
pub fn udp_to_any(address: Ipv4Addr, ports: &[u16]) -> Vec<SockFilter> {
    let mut filter = vec![
        load_half(12),
        if_equal(0x0800, 1),
        DROP,
        load_byte(23),
        if_equal(17, 1),
        DROP,
        load_word(30),
        if_equal(address.to_bits(), 1),
        DROP,
        load_half(20),
        // Any bit of the fragment offset.
        SockFilter::new(0x45, 0, 1, 0x1fff),
        DROP,
        SockFilter::new(0xb1, 0, 0, 14),
        SockFilter::new(0x48, 0, 0, 16),
    ];
    let count = ports.len() as u8;
    filter.extend(ports.iter().zip(0..).map(|(port, n)| if_equal(u32::from(*port), count - n)));
    filter.extend([DROP, PASS]);
    filter
}

/// Reserves a UDP port on an interface, and sends from it. Nothing is received by this socket: frames are read from the
/// link, because only they have the sender's MAC.
pub fn keep_port(interface: &str, address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.attach_filter(&[DROP])?;
    socket.bind(&SocketAddr::from(address).into())?;
    Ok(socket.into())
}

/// The MAC that the kernel has for `address` on the interface (arp(7)); `None` while it has none. `socket` may be any.
pub fn neighbour(socket: &impl AsRawFd, interface: &str, address: Ipv4Addr) -> io::Result<Option<Mac>> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut asked: libc::arpreq = unsafe { std::mem::zeroed() };
    asked.arp_pa.sa_family = libc::AF_INET as libc::sa_family_t;
    // A sockaddr_in: the port, then the address.
    for (to, byte) in asked.arp_pa.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = byte as libc::c_char;
    }
    // Its last byte stays zero.
    let name = asked.arp_dev.len() - 1;
    for (to, byte) in asked.arp_dev[..name].iter_mut().zip(interface.bytes()) {
        *to = byte as libc::c_char;
    }
    // SAFETY: SIOCGARP reads and writes one arpreq, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGARP as _, &raw mut asked) };
    if done < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) };
    }
    if asked.arp_flags & libc::ATF_COM == 0 {
        return Ok(None);
    }
    let mut mac = [0; 6];
    for (to, byte) in mac.iter_mut().zip(asked.arp_ha.sa_data) {
        *to = byte as u8;
    }
    Ok(Some(Mac(mac)))
}

/// Lets through one type of ICMPv6 message (without extension headers before it).
pub fn icmpv6(message_type: u8) -> [SockFilter; 8] {
    [
        load_half(12),
        unless_equal(0x86dd, 5),
        load_byte(20),
        unless_equal(58, 3),
        load_byte(54),
        unless_equal(u32::from(message_type), 1),
        PASS,
        DROP,
    ]
}

pub(crate) const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

pub(crate) const fn load_word(at: u32) -> SockFilter {
    SockFilter::new(0x20, 0, 0, at)
}

pub(crate) const fn load_half(at: u32) -> SockFilter {
    SockFilter::new(0x28, 0, 0, at)
}

const fn load_byte(at: u32) -> SockFilter {
    SockFilter::new(0x30, 0, 0, at)
}

/// Skips `distance` instructions unless the accumulator equals `value`.
pub(crate) const fn unless_equal(value: u32, distance: u8) -> SockFilter {
    SockFilter::new(0x15, 0, distance, value)
}

/// Skips `distance` instructions if the accumulator equals `value`.
pub(crate) const fn if_equal(value: u32, distance: u8) -> SockFilter {
    SockFilter::new(0x15, distance, 0, value)
}

/// The socket address of an interface, and of one EtherType there.
pub(crate) fn link_address(interface: u32, ethertype: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a zeroed storage is large and aligned enough for any address, and sockaddr_ll is
    // plain numbers, for which zero is valid.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = ethertype.to_be();
    link.sll_ifindex = interface as i32;
    // SAFETY: the storage holds a sockaddr_ll with its family set, of the length given.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
