//! How transfers end, and what is told of it.

use std::net::Ipv4Addr;
use std::time::Duration;

use pxe_common::map::SessionKey;
use pxe_common::tftp::packet::ErrorCode;

use super::{Entry, Live, Note, Server, Stat, text};
use crate::text::one_line;
use crate::timeline::{AnsweredBy, Happened, Who};

/// What a client says of its error is cut there.
const WORDS_MAX: usize = 200;

impl Server {
    pub(super) fn finished(&mut self, key: &SessionKey, now_ns: u64) {
        let Some((live, by)) = self.close(key) else { return };
        let duration = Duration::from_nanos(now_ns.saturating_sub(live.started_ns));
        self.stats.add(Stat::Finished, 1);
        tracing::debug!(client = %live.client, path = live.path, ?duration, ?by, "sent");
        self.sent(*live, by, now_ns, Some(duration));
    }

    /// The client has the file.
    fn sent(&self, live: Live, by: AnsweredBy, now_ns: u64, duration: Option<Duration>) {
        let who = Who::Address(*live.client.ip());
        self.timeline.note(who, Note::Sent { path: live.path.clone(), repeated: live.repeated });
        let Some(stage) = live.stage else { return };
        self.timeline.record(Happened {
            answered_by: by,
            bytes: Some(live.blob.len()),
            duration,
            began_ago: Some(Duration::from_nanos(now_ns.saturating_sub(live.started_ns))),
            ..Happened::new(who, stage).detail(live.path)
        });
    }

    /// The client ended the transfer. Mostly that is no failure: EDK2 asks for a size and stops at
    /// the OACK with error 8, GRUB reads a file's beginning and closes it.
    pub(super) fn aborted(&mut self, key: &SessionKey, code: ErrorCode, message: &[u8], now_ns: u64) {
        let Some((live, _)) = self.close(key) else { return };
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
        let message = one_line(&text(message)).chars().take(WORDS_MAX).collect();
        let note = Note::Aborted { path: live.path, code: code.0, message, acked, blocks };
        self.timeline.note(Who::Address(*live.client.ip()), note);
    }

    /// The client is gone. A boot failed if it was in the middle of one of its files, and has asked
    /// for nothing since.
    pub(super) fn expired(&mut self, key: &SessionKey, now_ns: u64) {
        // Before the last transfer is closed, and with it all requests are forgotten.
        let asked_ns = self.asked.get(&Ipv4Addr::from(key.client)).copied();
        let Some((live, by)) = self.close(key) else { return };
        self.stats.add(Stat::Expired, 1);
        let session = live.transfer.session();
        let (acked, blocks) = (session.acked(), session.blocks());
        tracing::debug!(client = %live.client, path = live.path, acked, blocks, "the client is gone");
        // Only the last ACK is missing. The client has the file, may be running it already, and will
        // not say so again (RFC 1350 section 6).
        if live.stage.is_some() && acked + 1 == blocks {
            return self.sent(*live, by, now_ns, None);
        }
        self.stalled(&live);
        let asked_since = asked_ns.is_some_and(|at| at > live.started_ns);
        if live.stage.is_some() && acked > 0 && !asked_since {
            let cause =
                format!("stopped answering after block {acked} of {blocks} of {} over TFTP", live.path);
            self.timeline.record(Happened::failed(Who::Address(*live.client.ip()), cause));
        }
    }

    /// Keeps how a transfer ended that its client left.
    pub(super) fn stalled(&self, live: &Live) {
        let session = live.transfer.session();
        let note = Note::Stalled {
            path: live.path.clone(),
            acked: session.acked(),
            blocks: session.blocks(),
            blksize: session.blksize(),
            repeated: live.repeated,
        };
        self.timeline.note(Who::Address(*live.client.ip()), note);
    }

    /// Removes a transfer; says who sent most of it.
    pub(super) fn close(&mut self, key: &SessionKey) -> Option<(Box<Live>, AnsweredBy)> {
        let Some(Entry::Live(live)) = self.remove(key) else { return None };
        if live.stage.is_some() {
            self.timeline.fetching(Who::Address(*live.client.ip()), None);
        }
        let last = match &self.fast_path {
            Some(fast_path) if live.in_kernel => fast_path.close(key),
            _ => None,
        };
        let (xdp, tc) = last.map_or((0, 0), |s| (s.sent_by_xdp, s.sent_by_tc));
        let by = if live.sent_by_daemon > xdp.max(tc) || xdp.max(tc) == 0 {
            AnsweredBy::Daemon
        } else if xdp > tc {
            AnsweredBy::Xdp
        } else {
            AnsweredBy::Tc
        };
        Some((live, by))
    }
}
