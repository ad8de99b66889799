//! Whole Ethernet frames on one interface (packet(7)): for peers that have no address yet, and
//! for protocols that the host itself may have switched off.

use std::io::{self, Read as _, Write as _};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

/// A packet socket bound to one interface. Receives what its filter lets through.
#[derive(Debug)]
pub struct PacketSocket(AsyncFd<Socket>);

impl PacketSocket {
    /// Opens a socket on the interface with this index, for frames of one EtherType.
    pub fn open(interface: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Self> {
        // Protocol 0 receives nothing: no frame slips in before filter and interface are set.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(filter)?;
        socket.bind(&link_address(interface, ethertype))?;
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
            // Told once when the interface goes down. It may come up again: not the socket's end.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => socket.read(buffer),
            result => result,
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

const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

const fn load_half(at: u32) -> SockFilter {
    SockFilter::new(0x28, 0, 0, at)
}

const fn load_byte(at: u32) -> SockFilter {
    SockFilter::new(0x30, 0, 0, at)
}

/// Skips `distance` instructions unless the accumulator equals `value`.
const fn unless_equal(value: u32, distance: u8) -> SockFilter {
    SockFilter::new(0x15, 0, distance, value)
}

/// The address of an interface, and of the frames wanted there.
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
