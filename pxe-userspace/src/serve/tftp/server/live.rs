//! A transfer in progress, with its two ends.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Duration;

use pxe_common::map::{self, SessionKey, Stations};
use pxe_common::tftp::Blocks;

use super::command::{Command, HandOver, Outgoing, What};
use crate::machines::segment::Standing;
use crate::machines::timeline::{AnsweredBy, Stage};
use crate::provision::blob::Blob;
use crate::serve::tftp::Note as KernelNote;
use crate::serve::tftp::transfer::{Action, Transfer};

/// How often the kernel is asked whether it has a transfer's file by now.
const HAND_OVER_EVERY: Duration = Duration::from_millis(10);

/// How often a transfer that came back is handed over again. An ACK that was on its way twice when the kernel took it
/// brings it back, and so does a driver without room for its answers, every time.
const HAND_OVERS: u8 = 4;

/// Repeats for a client that has acknowledged nothing at all: the fifth comes after nine seconds, and before it gives
/// up it asks again by itself.
const UNANSWERED_REPEATS: u32 = 5;

/// A transfer in progress.
pub(super) struct Live {
    pub(super) port: usize,
    pub(super) client: SocketAddrV4,
    /// The stations whose packets belong to it.
    pub(super) stations: Stations,
    pub(super) standing: Standing,
    pub(super) request: Vec<u8>,
    pub(super) path: String,
    pub(super) blob: Blob,
    pub(super) stage: Option<Stage>,
    pub(super) transfer: Transfer,
    /// The kernel has a grant for it, which is closed at its end.
    pub(super) granted: bool,
    /// The kernel answers its ACKs.
    pub(super) in_kernel: bool,
    /// From when on the kernel is asked to take it; none where it has it, or never will.
    pub(super) hand_over_ns: Option<u64>,
    /// How often it took it.
    pub(super) handed_over: u8,
    /// Blocks that the programs had sent when they were looked at last: XDP's, tc's.
    pub(super) sent_by_kernel: (u32, u32),
    pub(super) sent_by_daemon: u32,
    pub(super) started_ns: u64,
    /// How often the blocks in flight were retransmitted.
    pub(super) repeated: u32,
    /// The marks that were reported.
    pub(super) marks: u16,
    /// The time of its entry in the deadlines; `None` while it has none.
    pub(super) armed_ns: Option<u64>,
}

impl Live {
    /// Updates it from the kernel's session.
    pub(super) fn observe(&mut self, session: &map::Session) {
        self.transfer.observed(session.transfer);
        self.sent_by_kernel = (session.sent_by_xdp, session.sent_by_tc);
    }

    /// The transfer for the kernel, when `blocks` are sent next, and it may be asked. An ACK for all that was `in_flight`
    /// says that no other is on its way, which the daemon would get after the kernel took over.
    pub(super) fn hand_over(
        &mut self,
        key: &SessionKey,
        in_flight: Option<Blocks>,
        blocks: Blocks,
        now_ns: u64,
    ) -> Option<HandOver> {
        let all = in_flight.is_none_or(|before| before.last == self.transfer.session().acked());
        if !all || self.hand_over_ns.is_none_or(|at_ns| now_ns < at_ns) {
            return None;
        }
        self.hand_over_ns = Some(now_ns + HAND_OVER_EVERY.as_nanos() as u64);
        // It is waited for in the block map from now on, which the transfer's end is told to.
        self.granted = true;
        let note = KernelNote {
            path: self.path.clone(),
            stage: self.stage,
            started_ns: self.started_ns,
            blob: self.blob.key(),
            len: self.blob.len(),
            oack: self.transfer.oack().map(<[u8]>::to_vec),
        };
        let (stations, blob, session) = (self.stations, self.blob.clone(), *self.transfer.session());
        Some(HandOver { key: *key, stations, blob, session, blocks, note })
    }

    /// The kernel answers its ACKs from now on.
    pub(super) fn taken_by_kernel(&mut self) {
        (self.in_kernel, self.hand_over_ns) = (true, None);
        self.handed_over = self.handed_over.saturating_add(1);
    }

    /// The kernel answers no more of its ACKs.
    pub(super) fn taken_back(&mut self, now_ns: u64) {
        self.in_kernel = false;
        let again = (1..HAND_OVERS).contains(&self.handed_over);
        self.hand_over_ns = again.then(|| now_ns + HAND_OVER_EVERY.as_nanos() as u64);
    }

    /// Time passed. Nobody may be there: a client that never answered is not asked for ever, and one that is no machine
    /// gets a block again and not a window.
    pub(super) fn on_tick(&mut self, now_ns: u64) -> Action {
        let unanswered = self.transfer.unanswered();
        match self.transfer.on_tick(now_ns) {
            Action::Send(_) | Action::SendOack if unanswered && self.repeated >= UNANSWERED_REPEATS => {
                Action::Nothing
            }
            Action::Send(blocks) if self.standing != Standing::Machine => {
                Action::Send(Blocks { last: blocks.first, ..blocks })
            }
            action @ (Action::Nothing
            | Action::SendOack
            | Action::Send(_)
            | Action::Finished
            | Action::GiveUp) => action,
        }
    }

    /// When to act without a packet. The kernel does not report each ACK, so a transfer with a retransmission is
    /// polled until its client is seen to answer.
    pub(super) fn deadline_ns(&self, now_ns: u64) -> u64 {
        let timeout_ns = self.transfer.next_timeout_ns();
        match self.transfer.looks_every().filter(|_| self.in_kernel) {
            Some(pause) => timeout_ns.min(now_ns + pause.as_nanos() as u64),
            None => timeout_ns,
        }
    }

    /// The client's share of the file, if a mark was passed since the last call.
    pub(super) fn passed_mark(&mut self) -> Option<u8> {
        let session = self.transfer.session();
        let before = std::mem::replace(&mut self.marks, session.marks());
        let percent = u64::from(session.acked()) * 100 / u64::from(session.blocks());
        (before != session.marks()).then_some(percent as u8)
    }

    /// The tier that sent most of it.
    pub(super) fn answered_by(&self) -> AnsweredBy {
        // A transfer that was taken back is sent by the daemon to its end.
        let (xdp, tc) = if self.in_kernel { self.sent_by_kernel } else { (0, 0) };
        if self.sent_by_daemon > xdp.max(tc) || xdp.max(tc) == 0 {
            AnsweredBy::Daemon
        } else if xdp > tc {
            AnsweredBy::Xdp
        } else {
            AnsweredBy::Tc
        }
    }

    /// Sends what `action` says.
    pub(super) fn act(&mut self, action: Action, commands: &mut VecDeque<Command>) {
        let what = match action {
            Action::SendOack => self.transfer.oack().map(|oack| What::Packet(oack.to_vec())),
            Action::Send(blocks) => {
                let sent = blocks.last - blocks.first + 1;
                self.sent_by_daemon = self.sent_by_daemon.saturating_add(sent);
                let (blob, session) = (self.blob.clone(), *self.transfer.session());
                Some(What::Blocks { blob, session, blocks })
            }
            Action::Nothing | Action::Finished | Action::GiveUp => None,
        };
        let (port, to) = (self.port, self.client);
        commands.extend(what.map(|what| Command::Send(Outgoing { port, to, what })));
    }
}
