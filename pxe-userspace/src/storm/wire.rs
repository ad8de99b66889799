//! Whole frames in batches, on the simulator's own cable to the appliance's bridge, or on an existing
//! interface.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, getsockopt, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::link::Frames;
use crate::host::net::packet::link_address;

/// Frames per system call.
const BATCH: usize = 64;

/// A server on this host sends TCP in pieces of up to this (GSO): a veth pair cuts nothing.
const FRAME_MAX: usize = 65_536 + 14;

/// For frames that arrive while the simulator computes. A loss here would be the simulator's own fault.
const RECEIVE_BUFFER: usize = 256 << 20;

/// Linux's ETH_P_ALL.
const EVERYTHING: u16 = 3;

/// packet(7): frames that this host sends are not received.
#[derive(Clone, Copy, Debug)]
struct IgnoreOutgoing;
nix::setsockopt_impl!(IgnoreOutgoing, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, bool, sockopt::SetBool);

/// packet(7): here, all frames that the card sees.
#[derive(Clone, Copy, Debug)]
struct AddMembership;
nix::setsockopt_impl!(
    AddMembership,
    libc::SOL_PACKET,
    libc::PACKET_ADD_MEMBERSHIP,
    libc::packet_mreq,
    sockopt::SetStruct<'_, libc::packet_mreq>
);

/// packet(7): frames received and dropped since it was last read.
#[derive(Clone, Copy, Debug)]
struct Statistics;
nix::getsockopt_impl!(
    Statistics,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats,
    sockopt::GetStruct<libc::tpacket_stats>
);

/// Where frames leave and arrive.
pub(super) struct Wire {
    socket: Socket,
    buffers: Vec<Vec<u8>>,
    receive_headers: MultiHeaders<()>,
    send_headers: MultiHeaders<()>,
    /// Frames that were lost between the interface and us.
    dropped: u64,
}

/// Opens a socket on an interface of the network namespace that the calling thread is in.
pub(super) fn open(interface: u32) -> io::Result<Socket> {
    // With protocol 0 nothing is received until everything is set.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, IgnoreOutgoing, &true)?;
    // Root may exceed rmem_max.
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let promiscuous = libc::packet_mreq {
        mr_ifindex: interface.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // Without it, a card passes on only frames for its own address.
    setsockopt(&socket, AddMembership, &promiscuous)?;
    socket.bind(&link_address(interface, EVERYTHING))?;
    Ok(socket)
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            buffers: vec![vec![0; FRAME_MAX]; BATCH],
            receive_headers: MultiHeaders::preallocate(BATCH, None),
            send_headers: MultiHeaders::preallocate(BATCH, None),
            dropped: 0,
        }
    }

    /// Hands over the frames that have arrived, at most a batch. Returns their number.
    pub(super) fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let fd = self.fd();
        let mut slices: Vec<_> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let received =
            recvmmsg(fd, &mut self.receive_headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        let lens: Vec<usize> = match received {
            Ok(messages) => messages.map(|m| m.bytes).collect(),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        for (buffer, len) in self.buffers.iter().zip(&lens) {
            each(&buffer[..*len]);
        }
        Ok(lens.len())
    }

    /// Sends all frames. Those for which the interface has no room are lost, as on any network, and counted.
    pub(super) fn send(&mut self, frames: &Frames) -> io::Result<()> {
        let fd = self.fd();
        let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut rest = &slices[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(BATCH)];
            let nowhere = vec![None; batch.len()];
            let nothing: [ControlMessage<'_>; 0] = [];
            let flags = MsgFlags::empty();
            let sent = sendmmsg(fd, &mut self.send_headers, batch, nowhere, nothing, flags);
            rest = match sent {
                Ok(sent) => &rest[sent.count()..],
                Err(Errno::EINTR) => rest,
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENETDOWN) => {
                    self.dropped += 1;
                    &rest[1..]
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    /// Waits for a frame, at most this long.
    pub(super) fn wait(&self, at_most: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Frames that were lost on this side of the wire so far.
    pub(super) fn dropped(&mut self) -> io::Result<u64> {
        // Reading resets the counters.
        self.dropped += u64::from(getsockopt(&self.socket, Statistics)?.tp_drops);
        Ok(self.dropped)
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
