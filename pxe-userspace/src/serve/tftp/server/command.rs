//! The server's Commands. They are performed in order, and before the next packet.

use std::net::{Ipv4Addr, SocketAddrV4};

use pxe_common::map::{SessionKey, Stations};
use pxe_common::tftp::packet::{self, ErrorCode};
use pxe_common::tftp::{BlockNo, Blocks, Session};

use crate::machines::Fetching;
use crate::machines::diagnosis::Note;
use crate::machines::timeline::Happened;
use crate::provision::blob::Blob;
use crate::serve::tftp::Note as KernelNote;
use crate::serve::tftp::asker::Asker;
use crate::serve::tftp::job::Job;

#[derive(Debug)]
pub(in crate::serve::tftp) enum Command {
    Send(Outgoing),
    /// Open this file, and tell [`Server::on_opened`](super::Server::on_opened). It may take long.
    Open(Box<Job>),
    /// Read a transfer's progress in the kernel, and tell [`Server::on_looked`](super::Server::on_looked).
    Look(Look),
    /// Stop the kernel from answering this transfer's ACKs, and pass its progress to
    /// [`Server::on_taken_back`](super::Server::on_taken_back), with the ACK that the daemon answers next.
    TakeBack {
        key: SessionKey,
        ack: BlockNo,
    },
    /// Ask the kernel to go on with this transfer, whose file it may have by now, and tell
    /// [`Server::on_handed_over`](super::Server::on_handed_over). What its client is to be sent next waits for that,
    /// so that the answer to it finds the kernel ready.
    HandOver(Box<HandOver>),
    /// Close the transfer's grant, then tell [`Server::on_closed`](super::Server::on_closed): until then its
    /// ports are not used again. It may take long.
    Close(SessionKey),
    /// Record something in the timeline. It may take long, but the order for one machine is kept.
    Tell(Tell),
}

/// A packet or a window to be sent from data port number `port`. One that can't be sent at once is dropped, as on any
/// network.
#[derive(Debug)]
pub(in crate::serve::tftp) struct Outgoing {
    pub(in crate::serve::tftp) port: usize,
    pub(in crate::serve::tftp) to: SocketAddrV4,
    pub(in crate::serve::tftp) what: What,
}

#[derive(Debug)]
pub(in crate::serve::tftp) enum What {
    Packet(Vec<u8>),
    /// One DATA packet per block. The sender reads their bytes, because the server never waits for a disk.
    Blocks {
        blob: Blob,
        session: Session,
        blocks: Blocks,
    },
}

/// A transfer on its way to the kernel.
#[derive(Debug)]
pub(in crate::serve::tftp) struct HandOver {
    pub(in crate::serve::tftp) key: SessionKey,
    pub(in crate::serve::tftp) stations: Stations,
    pub(in crate::serve::tftp) blob: Blob,
    /// As it is once `blocks` are sent.
    pub(in crate::serve::tftp) session: Session,
    /// What the daemon sends now.
    pub(in crate::serve::tftp) blocks: Blocks,
    pub(in crate::serve::tftp) note: KernelNote,
}

/// A question to the kernel. It carries all that is needed to process the answer, so that the server keeps no state
/// for it.
#[derive(Debug)]
pub(in crate::serve::tftp) struct Look {
    pub(in crate::serve::tftp) key: SessionKey,
    pub(super) then: Then,
}

/// Why the kernel was asked.
#[derive(Debug)]
pub(super) enum Then {
    /// The client keeps us waiting, as far as the server knows.
    Due,
    /// A program reported an event of the transfer; with the code, if it was an ERROR.
    Told { error: Option<ErrorCode> },
    /// The client sent a request, and its transfers on the ports before this one were looked at.
    Asked { asker: Asker, request: Vec<u8>, next_port: usize },
    /// The daemon ends.
    End,
}

/// What is reported to people.
#[derive(Debug)]
pub(in crate::serve::tftp) enum Tell {
    Note(Ipv4Addr, Note),
    /// What the machine fetches at present; `None` when that has ended.
    Fetching(Ipv4Addr, Option<Fetching>),
    Record(Happened),
}

impl Outgoing {
    pub(super) fn error(port: usize, to: SocketAddrV4, code: ErrorCode, message: &str) -> Option<Command> {
        let mut buf = [0; 512];
        let packet = packet::error(&mut buf, code, message)?;
        Some(Command::Send(Self { port, to, what: What::Packet(packet.to_vec()) }))
    }
}
