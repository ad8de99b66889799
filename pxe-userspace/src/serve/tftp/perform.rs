//! Performs the server's Commands.

use std::net::SocketAddrV4;
use std::sync::Arc;

use pxe_common::map::{Session, SessionKey};
use pxe_common::tftp::packet;
use pxe_common::tftp::{BlockNo, Blocks, HEADER_LEN};

use super::Declined;
use super::job::Job;
use super::server::{Command, HandOver, Outgoing, Server, Tell, What};
use super::stats::{Stat, Stats};
use crate::provision::blob::Blob;

/// The server's environment. No function here blocks.
pub(super) trait World {
    /// The clock of sessions, CLOCK_MONOTONIC.
    fn now_ns(&self) -> u64;

    /// Sends from data port number `port`.
    fn send(&mut self, port: usize, to: SocketAddrV4, packet: &[u8]);

    /// Begins to open a file. The server gets the result later.
    fn open(&mut self, job: Job);

    fn look(&mut self, key: &SessionKey) -> Option<Session>;

    fn take_back(&mut self, key: &SessionKey) -> Option<Session>;

    fn hand_over(&mut self, over: &HandOver) -> Result<(), Declined>;

    /// Begins to close a grant. That it is closed goes to the server later.
    fn close(&mut self, key: SessionKey);

    fn tell(&mut self, tell: Tell);
}

/// Performs commands, with a packet's buffer that all share.
pub(super) struct Performer {
    packet: Vec<u8>,
    stats: Arc<Stats>,
}

impl Performer {
    pub(super) fn new(stats: Arc<Stats>) -> Self {
        Self { packet: Vec::new(), stats }
    }

    /// Performs all Commands of an input, and those that result from their answers.
    pub(super) fn perform(&mut self, server: &mut Server, world: &mut impl World) {
        while let Some(command) = server.next_command() {
            match command {
                Command::Send(Outgoing { port, to, what: What::Packet(bytes) }) => {
                    world.send(port, to, &bytes);
                }
                Command::Send(Outgoing { port, to, what: What::Blocks { blob, session, blocks } }) => {
                    if let Err(Unreadable(index)) = self.send_blocks(port, to, &blob, &session, blocks, world)
                    {
                        server.on_unreadable(port, to, index);
                    }
                }
                Command::Open(job) => world.open(*job),
                Command::Look(look) => {
                    let session = world.look(&look.key);
                    server.on_looked(look, session.as_ref(), world.now_ns());
                }
                // The one map write between a packet and its answer, once a transfer at most: the kernel has to
                // stop before the daemon goes on. It is a system call, not a lock that others hold.
                Command::TakeBack { key, ack } => {
                    let last = world.take_back(&key);
                    server.on_taken_back(&key, ack, last.as_ref(), world.now_ns());
                }
                // Likewise: the kernel has to be ready before the client can answer.
                Command::HandOver(over) => {
                    let taken = world.hand_over(&over);
                    server.on_handed_over(&over.key, over.blocks, &taken, world.now_ns());
                }
                Command::Close(key) => world.close(key),
                Command::Tell(tell) => world.tell(tell),
            }
        }
    }

    fn send_blocks(
        &mut self,
        port: usize,
        to: SocketAddrV4,
        blob: &Blob,
        session: &pxe_common::tftp::Session,
        blocks: Blocks,
        world: &mut impl World,
    ) -> Result<(), Unreadable> {
        let packet = &mut self.packet;
        for index in blocks.first..=blocks.last {
            let len = usize::from(session.len_of(index));
            packet.clear();
            packet.extend_from_slice(&packet::data_header(BlockNo::of(index)));
            packet.resize(HEADER_LEN + len, 0);
            // Usually from the page cache. A slow disk delays all transfers; the fast path avoids that, and
            // clients wait.
            match blob.read_at(session.offset_of(index), &mut packet[HEADER_LEN..]) {
                Ok(read) if read == len => {}
                Ok(_) | Err(_) => return Err(Unreadable(index)),
            }
            world.send(port, to, packet);
            self.stats.add(Stat::Bytes, len as u64);
        }
        Ok(())
    }
}

/// The block that could not be read.
struct Unreadable(u32);
