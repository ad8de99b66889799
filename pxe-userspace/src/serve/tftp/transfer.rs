//! One transfer: the session's step, and the timers around it. Pure: time is passed in.

use std::time::Duration;

use pxe_common::tftp::{BlockNo, Blocks, Session, Step};

/// The age from which an answer counts as lost, so that a duplicate ACK is answered again. Far above a segment's
/// round-trip time, below the timers of all firmware.
pub const RETRY: Duration = Duration::from_millis(100);

/// The retransmission timeout: when nothing is acknowledged for this long, the blocks in flight are retransmitted,
/// then after twice the time, and so on. GRUB relies on that: it does not retransmit its ACKs.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Once blocks were lost, the retransmission timeout is this many of the client's own round-trip times. That is what
/// TCP's four deviations come to where round-trip times vary by as much as they last. A block that was only late
/// costs one packet: its second ACK is a duplicate, which is not answered.
const ROUNDS: u32 = 8;
/// The timeout's lower bound: clients pause to unpack and to verify.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(20);

/// How often the kernel is polled for the ACK of a client that keeps us waiting; the second, once blocks were lost.
const LOOKS_EVERY: Duration = Duration::from_millis(100);
const LOOKS_QUICKLY_EVERY: Duration = Duration::from_millis(10);

/// A client that acknowledges nothing for this long is gone.
pub const IDLE: Duration = Duration::from_secs(30);

/// A transfer that the daemon drives, or watches while the kernel does.
#[derive(Clone, Debug)]
pub struct Transfer {
    session: Session,
    /// The OACK that begins it; `None` when the first DATA does.
    oack: Option<Vec<u8>>,
    timeout: Duration,
    /// The client named the timeout.
    agreed: bool,
    /// The round-trip time from sending a window to its ACK, smoothed.
    round: Duration,
    /// Something was retransmitted, and then acknowledged.
    lossy: bool,
    progress_ns: u64,
    next_timeout_ns: u64,
    wait: Duration,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    SendOack,
    Send(Blocks),
    Finished,
    /// The client is gone.
    GiveUp,
}

impl Transfer {
    /// A transfer that starts now; returns what to send first.
    pub fn start(
        mut session: Session,
        oack: Option<Vec<u8>>,
        timeout: Option<Duration>,
        now_ns: u64,
    ) -> (Self, Action) {
        let action = match oack {
            Some(_) => Action::SendOack,
            None => Action::Send(session.begin(now_ns)),
        };
        let transfer = Self::new(session, oack, timeout, now_ns, now_ns);
        (transfer, action)
    }

    /// A transfer that goes on in the kernel, and that an earlier daemon started.
    pub fn resume(session: Session, oack: Option<Vec<u8>>, started_ns: u64, now_ns: u64) -> Self {
        // Of a block, or of the OACK before the first one.
        let progress_ns = session.sent_ns().max(started_ns);
        Self::new(session, oack, None, progress_ns, now_ns)
    }

    fn new(
        session: Session,
        oack: Option<Vec<u8>>,
        agreed: Option<Duration>,
        progress_ns: u64,
        now_ns: u64,
    ) -> Self {
        let timeout = agreed.unwrap_or(FIRST_TIMEOUT);
        Self {
            session,
            oack,
            timeout,
            agreed: agreed.is_some(),
            round: FIRST_TIMEOUT / ROUNDS,
            lossy: false,
            progress_ns,
            next_timeout_ns: now_ns + nanos(timeout),
            wait: timeout,
        }
    }

    /// The client acknowledged a block.
    pub fn on_ack(&mut self, ack: BlockNo, now_ns: u64) -> Action {
        let before = self.session;
        let step = self.session.on_ack(ack, now_ns);
        if advanced(&before, &self.session) {
            self.progressed(&before, now_ns);
        }
        match step {
            Step::Send(blocks) => Action::Send(blocks),
            Step::Finished => Action::Finished,
            Step::Duplicate | Step::Stale => Action::Nothing,
        }
    }

    /// The kernel advanced the session to this state. An ACK that it passed may have been handled here after the kernel
    /// was asked, so an older state changes nothing.
    pub fn observed(&mut self, session: Session) {
        if place(&session) < place(&self.session) {
            return;
        }
        let before = std::mem::replace(&mut self.session, session);
        if advanced(&before, &session) {
            self.progressed(&before, session.sent_ns());
        }
    }

    /// When to act without a packet: the blocks in flight are retransmitted, or the client is gone.
    pub fn next_timeout_ns(&self) -> u64 {
        self.next_timeout_ns.min(self.progress_ns + nanos(IDLE))
    }

    /// How often to poll the kernel for an ACK of the client after a retransmission; `None` when there was none.
    pub fn looks_every(&self) -> Option<Duration> {
        let repeating = self.wait != self.timeout;
        repeating.then_some(if self.is_quick() { LOOKS_QUICKLY_EVERY } else { LOOKS_EVERY })
    }

    /// Time passed.
    pub fn on_tick(&mut self, now_ns: u64) -> Action {
        if self.session.finished() {
            return Action::Finished;
        }
        if now_ns.saturating_sub(self.progress_ns) >= nanos(IDLE) {
            return Action::GiveUp;
        }
        if now_ns < self.next_timeout_ns {
            return Action::Nothing;
        }
        self.wait = (self.wait * 2).min(LONGEST_TIMEOUT.max(self.timeout));
        self.next_timeout_ns = now_ns + nanos(self.wait);
        match self.session.send_again(now_ns) {
            Some(blocks) => Action::Send(blocks),
            None => Action::SendOack,
        }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn oack(&self) -> Option<&[u8]> {
        self.oack.as_deref()
    }

    /// When the client last acknowledged something new.
    pub fn progress_ns(&self) -> u64 {
        self.progress_ns
    }

    /// Whether its next timeout may be shorter than those of a transfer without loss, which that of a gone client may
    /// not.
    pub fn is_quick(&self) -> bool {
        self.follows_rounds() && self.wait <= FIRST_TIMEOUT
    }

    fn follows_rounds(&self) -> bool {
        self.lossy && !self.agreed
    }

    /// Whether the client has acknowledged nothing yet, not even the options.
    pub fn unanswered(&self) -> bool {
        self.session.acked() == 0 && (self.oack.is_none() || self.session.in_flight().is_none())
    }

    /// The client advanced from `before`. The round-trip time of retransmitted blocks counts from the first
    /// transmission, because the ACK may be of either (Karn's rule errs on the long side, too).
    fn progressed(&mut self, before: &Session, at_ns: u64) {
        self.lossy |= self.wait != self.timeout;
        let blocks = self.session.acked() - before.acked();
        let rounds = blocks.div_ceil(self.session.window().into()).max(1);
        let took = Duration::from_nanos(at_ns.saturating_sub(self.progress_ns)) / rounds;
        let weight = rounds.min(ROUNDS);
        self.round = (self.round * (ROUNDS - weight) + took * weight) / ROUNDS;

        if self.follows_rounds() {
            self.timeout = (self.round * ROUNDS).clamp(SHORTEST_TIMEOUT, FIRST_TIMEOUT);
        }
        self.progress_ns = at_ns.max(self.progress_ns);
        self.wait = self.timeout;
        self.next_timeout_ns = self.progress_ns + nanos(self.wait);
    }
}

/// Whether the client acknowledged something new. A retransmission alone changes nothing.
fn advanced(before: &Session, after: &Session) -> bool {
    place(before) < place(after)
}

/// A session's progress: its acknowledged blocks, and whether the first DATA, which answers the ACK of the OACK, was sent.
/// After the last block nothing is in flight, and no session goes on from there.
fn place(session: &Session) -> (u32, bool) {
    (session.acked(), session.in_flight().is_some() || session.finished())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    const MS: u64 = 1_000_000;

    fn session(len: u64) -> Session {
        Session::new(len, NonZeroU16::new(512).unwrap(), NonZeroU16::MIN, RETRY.as_millis() as u32).unwrap()
    }

    fn one(index: u32) -> Action {
        Action::Send(Blocks { first: index, last: index })
    }

    #[test]
    fn an_unanswered_oack_is_repeated_with_pauses_that_grow() {
        let (mut t, first) = Transfer::start(session(600), Some(vec![0, 6]), None, 0);
        assert_eq!(first, Action::SendOack);
        let sent: Vec<u64> =
            (0..29_900).step_by(100).filter(|ms| t.on_tick(ms * MS) == Action::SendOack).collect();
        assert_eq!(sent[..5], [300, 900, 2_100, 4_500, 9_300]);
        assert!(t.unanswered());
        assert_eq!(t.on_tick(30_000 * MS), Action::GiveUp);
    }

    #[test]
    fn a_lost_block_is_sent_again_and_progress_resets_the_pause() {
        let (mut t, _) = Transfer::start(session(2000), Some(vec![0, 6]), None, 0);
        assert_eq!(t.on_ack(BlockNo(0), MS), one(1));
        assert!(!t.unanswered());
        assert_eq!(t.on_tick(200 * MS), Action::Nothing);
        assert_eq!(t.on_tick(301 * MS), one(1));
        assert_eq!(t.on_tick(601 * MS), Action::Nothing);
        assert_eq!(t.on_ack(BlockNo(1), 700 * MS), one(2));
        assert_eq!(t.on_tick(1_000 * MS), one(2));
    }

    #[test]
    fn what_the_kernel_had_before_changes_nothing() {
        let (mut t, _) = Transfer::start(session(2000), Some(vec![0, 6]), None, 0);
        let mut kernel = vec![*t.session()];
        for block in 0..=3 {
            let _ = t.on_ack(BlockNo(block), u64::from(block + 1) * MS);
            for old in &kernel {
                let before = *t.session();
                t.observed(*old);
                assert_eq!(*t.session(), before, "at block {block}");
            }
            kernel.push(*t.session());
        }
        assert_eq!((t.session().acked(), t.progress_ns()), (3, 4 * MS));
    }

    #[test]
    fn where_blocks_are_lost_the_timeout_follows_the_clients_rounds() {
        let (mut t, _) = Transfer::start(session(200_000), None, None, 0);
        let mut now = 0;
        let mut rounds = |t: &mut Transfer, blocks: std::ops::RangeInclusive<u16>, ms: u64| {
            for block in blocks {
                now += ms * MS;
                assert_eq!(t.on_ack(BlockNo(block), now), one(u32::from(block) + 1));
            }
            now
        };
        // How long after `now` what is in flight is retransmitted, and it is acknowledged a little later.
        let lost = |t: &mut Transfer, now: u64| {
            let ms = (1..=400).find(|ms| t.on_tick(now + ms * MS) != Action::Nothing);
            ms.expect("it is sent again")
        };
        let at = rounds(&mut t, 1..=60, 2);
        assert!(!t.is_quick());
        assert_eq!(lost(&mut t, at), 300, "nothing was lost until now");
        let at = rounds(&mut t, 61..=61, 301);
        assert!(t.is_quick());
        assert_eq!(lost(&mut t, at), 300, "that round took long, whatever the reason");
        rounds(&mut t, 62..=62, 301);
        let at = rounds(&mut t, 63..=120, 2);
        assert_eq!(lost(&mut t, at), 20);
        assert!(t.is_quick());
        rounds(&mut t, 121..=121, 22);
        let at = rounds(&mut t, 122..=180, 20);
        assert_eq!(lost(&mut t, at), 160, "a slow client, or a full network");

        // The kernel's retransmissions are counted from the changes between two looks.
        let mut kernel = *t.session();
        let mut at = at + 200 * MS;
        for block in 181..190 {
            kernel.on_ack(BlockNo(block), at);
            at += 5 * MS;
        }
        t.observed(kernel);
        let mut kernel = *t.session();
        for block in 190..200 {
            kernel.on_ack(BlockNo(block), at);
            at += 5 * MS;
        }
        t.observed(kernel);
        assert_eq!(lost(&mut t, at - 5 * MS), 40);
        for ms in 0..1000 {
            let _ = t.on_tick(at + ms * MS);
        }
        assert!(!t.is_quick(), "it does not answer at all");
    }

    #[test]
    fn duplicates_keep_no_transfer_alive() {
        let (mut t, _) = Transfer::start(session(2000), None, None, 0);
        for ms in 0..30_000 {
            let _ = t.on_ack(BlockNo(0), ms * MS);
        }
        assert_eq!(t.on_tick(30_000 * MS), Action::GiveUp);
    }

    #[test]
    fn what_the_kernel_did_counts_as_progress() {
        let (mut t, _) = Transfer::start(session(2000), Some(vec![0, 6]), None, 0);
        let mut kernel = *t.session();
        kernel.on_ack(BlockNo(0), 5 * MS);
        kernel.on_ack(BlockNo(1), 250 * MS);
        t.observed(kernel);
        assert_eq!(t.on_tick(400 * MS), Action::Nothing);
        assert_eq!(t.on_tick(550 * MS), one(2), "stalled in the kernel");
        kernel.on_ack(BlockNo(2), 560 * MS);
        kernel.on_ack(BlockNo(3), 561 * MS);
        kernel.on_ack(BlockNo(4), 562 * MS);
        t.observed(kernel);
        assert_eq!(t.on_tick(600 * MS), Action::Finished);
    }

    #[test]
    fn an_oack_is_repeated_by_the_next_daemon() {
        let oack = Some(vec![0, 6]);
        let mut t = Transfer::resume(session(600), oack.clone(), 100_000 * MS, 101_000 * MS);
        assert_eq!(t.oack(), oack.as_deref());
        assert_eq!(t.on_tick(101_299 * MS), Action::Nothing);
        assert_eq!(t.on_tick(101_300 * MS), Action::SendOack);
        assert_eq!(t.on_ack(BlockNo(0), 101_301 * MS), one(1));
        let mut t = Transfer::resume(session(600), oack, 100_000 * MS, 140_000 * MS);
        assert_eq!(t.on_tick(140_000 * MS), Action::GiveUp, "its client is gone");
    }

    #[test]
    fn the_clients_own_timeout_is_kept() {
        let (mut t, _) = Transfer::start(session(600), Some(vec![0, 6]), Some(Duration::from_secs(8)), 0);
        assert_eq!(t.on_tick(7_999 * MS), Action::Nothing);
        assert_eq!(t.on_tick(8_000 * MS), Action::SendOack);
        assert_eq!(t.on_tick(15_999 * MS), Action::Nothing);
        assert_eq!(t.on_tick(16_000 * MS), Action::SendOack);
        assert_eq!(t.on_ack(BlockNo(0), 16_001 * MS), one(1));
        assert!(!t.is_quick());
        assert_eq!(t.on_tick(24_000 * MS), Action::Nothing);
    }
}
