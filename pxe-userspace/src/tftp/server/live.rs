//! A transfer with its ends: what it does is decided by [`Transfer`], here it is done.

use std::net::SocketAddrV4;

use pxe_common::map::{self, SessionKey};
use pxe_common::tftp::packet::{self, ErrorCode};
use pxe_common::tftp::{BlockNo, Blocks, HEADER_LEN};

use super::FastPath;
use super::server::Outbox;
use super::stats::{Stat, Stats};
use super::transfer::{Action, Transfer};
use crate::blob::Blob;
use crate::timeline::Stage;

/// A transfer under way.
pub(super) struct Live {
    pub(super) port: usize,
    pub(super) client: SocketAddrV4,
    pub(super) request: Vec<u8>,
    pub(super) path: String,
    pub(super) blob: Blob,
    pub(super) stage: Option<Stage>,
    pub(super) transfer: Transfer,
    pub(super) in_kernel: bool,
    pub(super) started_ns: u64,
    pub(super) sent_by_daemon: u32,
    /// How often what was in flight was sent again.
    pub(super) repeated: u32,
    /// Its marks of which people were told.
    pub(super) marks: u16,
}

impl Live {
    /// Takes an ACK that reached the daemon.
    pub(super) fn on_ack(
        &mut self,
        key: &SessionKey,
        block: BlockNo,
        fast_path: Option<&dyn FastPath>,
        stats: &Stats,
        now_ns: u64,
    ) -> Action {
        self.observe(key, fast_path);
        if self.in_kernel {
            if self.transfer.session().finished() {
                return Action::Finished;
            }
            // The programs passed an ACK of a transfer of theirs: they can't answer it (no room in
            // the driver's buffer and no tc, a grant that ended). The daemon goes on by itself.
            if let Some(last) = fast_path.and_then(|f| f.close(key)) {
                self.transfer.observed(last.transfer);
            }
            self.in_kernel = false;
            stats.add(Stat::HandedBack, 1);
        }
        self.transfer.on_ack(block, now_ns)
    }

    /// Catches up with what the kernel did, and returns it.
    pub(super) fn observe(
        &mut self,
        key: &SessionKey,
        fast_path: Option<&dyn FastPath>,
    ) -> Option<map::Session> {
        let session = fast_path.filter(|_| self.in_kernel)?.look(key)?;
        self.transfer.observed(session.transfer);
        Some(session)
    }

    /// How much of the file the client has, when a mark was passed since the last time.
    pub(super) fn passed_mark(&mut self) -> Option<u8> {
        let session = self.transfer.session();
        let before = std::mem::replace(&mut self.marks, session.marks());
        let percent = u64::from(session.acked()) * 100 / u64::from(session.blocks());
        (before != session.marks()).then_some(percent as u8)
    }

    pub(super) fn act(&mut self, action: Action, stats: &Stats, out: &mut impl Outbox) {
        match action {
            Action::SendOack => {
                if let Some(oack) = self.transfer.oack() {
                    out.send(self.port, self.client, oack);
                }
            }
            Action::Send(blocks) => self.send_blocks(blocks, stats, out),
            Action::Nothing | Action::Finished | Action::GiveUp => {}
        }
    }

    fn send_blocks(&mut self, blocks: Blocks, stats: &Stats, out: &mut impl Outbox) {
        let session = *self.transfer.session();
        let mut packet = Vec::with_capacity(HEADER_LEN + usize::from(session.blksize()));
        for index in blocks.first..=blocks.last {
            let len = usize::from(session.len_of(index));
            packet.clear();
            packet.extend_from_slice(&packet::data_header(BlockNo::of(index)));
            packet.resize(HEADER_LEN + len, 0);
            // From the page cache as a rule; a slow disk delays everyone, which the fast path and
            // the clients' patience bound.
            match self.blob.read_at(session.offset_of(index), &mut packet[HEADER_LEN..]) {
                Ok(read) if read == len => {}
                Ok(_) | Err(_) => {
                    tracing::error!(path = self.path, index, "the file became unreadable while it was sent");
                    send_error(out, self.port, self.client, ErrorCode::OTHER, "the file became unreadable");
                    return;
                }
            }
            out.send(self.port, self.client, &packet);
            self.sent_by_daemon = self.sent_by_daemon.saturating_add(1);
            stats.add(Stat::Bytes, len as u64);
        }
    }
}

pub(super) fn send_error(
    out: &mut impl Outbox,
    port: usize,
    to: SocketAddrV4,
    code: ErrorCode,
    message: &str,
) {
    let mut buf = [0; 512];
    if let Some(packet) = packet::error(&mut buf, code, message) {
        out.send(port, to, packet);
    }
}
