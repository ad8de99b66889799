//! How transfers end, and what is recorded of it.

use std::time::Duration;

use pxe_common::map::SessionKey;
use pxe_common::tftp::packet::ErrorCode;

use super::{Command, Entry, Live, Note, Server, Stat, Tell, text};
use crate::machines::timeline::{Happened, Who};

/// The longest message that is kept of a client's ERROR.
const WORDS_MAX: usize = 200;

impl Server {
    pub(super) fn finished(&mut self, key: &SessionKey, now_ns: u64) {
        let Some(live) = self.close(key) else { return };
        let duration = Duration::from_nanos(now_ns.saturating_sub(live.started_ns));
        self.stats.add(Stat::Finished, 1);
        tracing::debug!(client = %live.client, path = live.path, ?duration, by = ?live.answered_by(), "sent");
        self.sent(*live, now_ns, Some(duration));
    }

    /// The client has the file.
    fn sent(&mut self, live: Live, now_ns: u64, duration: Option<Duration>) {
        self.note(live.client, Note::Sent { path: live.path.clone(), repeated: live.repeated });
        let Some(stage) = live.stage else { return };
        let happened = Happened {
            answered_by: live.answered_by(),
            bytes: Some(live.blob.len()),
            duration,
            began_ago: Some(Duration::from_nanos(now_ns.saturating_sub(live.started_ns))),
            ..Happened::new(Who::Address(*live.client.ip()), stage).detail(live.path)
        };
        self.commands.push_back(Command::Tell(Tell::Record(happened)));
    }

    /// The client ended the transfer. Usually that is no failure: EDK2 asks for a size and stops at
    /// the OACK with error 8, GRUB reads a file's beginning and closes it.
    pub(super) fn aborted(&mut self, key: &SessionKey, code: ErrorCode, message: &[u8], now_ns: u64) {
        let Some(live) = self.close(key) else { return };
        self.stats.add(Stat::Aborted, 1);
        let after = Duration::from_nanos(now_ns.saturating_sub(live.started_ns));
        tracing::debug!(
            client = %live.client,
            path = live.path,
            code = code.0,
            message = %text(message),
            acked = live.transfer.session().acked(),
            ?after,
            "the client ended the transfer"
        );
        let session = live.transfer.session();
        let (acked, blocks) = (session.acked(), session.blocks());
        let message = text(message).chars().take(WORDS_MAX).collect();
        let note = Note::Aborted { path: live.path, code: code.0, message, acked, blocks };
        self.note(live.client, note);
    }

    /// The client is gone. A boot failed if it was in the middle of one of its files, and has asked
    /// for nothing since.
    pub(super) fn expired(&mut self, key: &SessionKey, now_ns: u64) {
        // Before its last transfer is closed, which also removes the client.
        let asked_ns = self.clients.get(&key.client).map(|client| client.asked_ns);
        let Some(live) = self.close(key) else { return };
        self.stats.add(Stat::Expired, 1);
        let session = live.transfer.session();
        let (acked, blocks) = (session.acked(), session.blocks());
        tracing::debug!(client = %live.client, path = live.path, acked, blocks, "the client is gone");
        // Only the last ACK is missing. The client has the file, may be running it already, and will
        // not say so again (RFC 1350 section 6).
        if live.stage.is_some() && acked + 1 == blocks {
            return self.sent(*live, now_ns, None);
        }
        self.stalled(&live);
        let asked_since = asked_ns.is_some_and(|at| at > live.started_ns);
        if live.stage.is_some() && acked > 0 && !asked_since {
            let cause =
                format!("stopped answering after block {acked} of {blocks} of {} over TFTP", live.path);
            let failed = Happened::failed(Who::Address(*live.client.ip()), cause);
            self.commands.push_back(Command::Tell(Tell::Record(failed)));
        }
    }

    /// Ends a transfer to make room for a new one.
    pub(super) fn gave_way(&mut self, key: &SessionKey) {
        if let Some(live) = self.close(key) {
            self.stalled(&live);
        }
    }

    /// The same, for a new one between the same ports. Returns whether there is a grant, which the caller must end.
    pub(super) fn replaced(&mut self, key: &SessionKey) -> bool {
        let Some(live) = self.take(key) else { return false };
        self.stalled(&live);
        live.granted
    }

    /// The daemon ends, and with it the kernel's transfers.
    pub(super) fn end_now(&mut self, key: &SessionKey, now_ns: u64) {
        let Some(Entry::Live(live)) = self.transfers.get(key) else { return };
        match live.transfer.session().finished() {
            true => self.finished(key, now_ns),
            false => self.commands.push_back(Command::Close(*key)),
        }
    }

    /// Records the end of a transfer whose client is gone.
    fn stalled(&mut self, live: &Live) {
        let session = live.transfer.session();
        let note = Note::Stalled {
            path: live.path.clone(),
            acked: session.acked(),
            blocks: session.blocks(),
            blksize: session.blksize(),
            repeated: live.repeated,
        };
        self.note(live.client, note);
    }

    /// Removes a transfer, and closes its grant.
    fn close(&mut self, key: &SessionKey) -> Option<Box<Live>> {
        let live = self.take(key)?;
        if live.granted {
            self.insert(*key, Entry::Closing, 0, live.standing);
            self.commands.push_back(Command::Close(*key));
        }
        Some(live)
    }

    fn take(&mut self, key: &SessionKey) -> Option<Box<Live>> {
        if !matches!(self.transfers.get(key), Some(Entry::Live(_))) {
            return None;
        }
        let Some(Entry::Live(live)) = self.remove(key) else { return None };
        if live.stage.is_some() {
            self.commands.push_back(Command::Tell(Tell::Fetching(*live.client.ip(), None)));
        }
        Some(live)
    }
}
