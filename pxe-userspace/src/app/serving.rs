//! Whether the fast path completes the transfers that it gets. Pure.
//!
//! A tier says what is attached to a port, but not what a kernel or driver then does with the frames. That shows when
//! an ACK of a transfer that the programs should answer is passed to the daemon. It also shows when no frame arrives,
//! because a driver attaches an XDP program and runs it for none (virtio-net does, if its buffers are neither mergeable
//! nor a page each: `receive_big` in its source).

use std::collections::BTreeMap;

/// Running totals at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Transfers that were granted to the programs.
    pub(super) granted: u64,
    /// Those of them that were handed back.
    pub(super) handed_back: u64,
    /// Frames that the last hook passed, by reason.
    pub(super) passed: BTreeMap<&'static str, u64>,
    /// Frames that XDP processed, on all ports.
    pub(super) seen_by_xdp: u64,
    /// Frames that each port with XDP received, by its driver's counter.
    pub(super) received: BTreeMap<String, u64>,
}

/// More frames than a port receives by chance between two reads of the counters, while XDP saw none.
const UNSEEN: u64 = 50;

/// What was observed between two looks.
#[derive(Debug, Default)]
pub(super) struct Serving {
    before: Totals,
    complaint: Option<String>,
}

impl Serving {
    /// What is wrong, as text; `None` while the programs complete their transfers.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Compares with the totals of the last look. While no transfer begins or is handed back, the verdict stays.
    ///
    /// Returns the ports whose driver passes no frame to XDP.
    pub(super) fn look(&mut self, now: Totals) -> Vec<String> {
        let blind = self.blind(&now);
        let granted = now.granted.saturating_sub(self.before.granted);
        let handed_back = now.handed_back.saturating_sub(self.before.handed_back);
        // An occasional one expired, or its event found the ring full.
        if handed_back * 2 > granted {
            // The last hook may have changed, and then its totals are different counters.
            let since = |reason: &str, total: u64| {
                total.saturating_sub(self.before.passed.get(reason).copied().unwrap_or(0))
            };
            let told = now.passed.iter().filter(|(reason, _)| cause(reason).is_some());
            let most = told.map(|(reason, total)| (since(reason, *total), *reason)).max();
            let why = match most {
                Some((1.., reason)) => format!("{} (`{reason}`)", cause(reason).unwrap_or_default()),
                _ => {
                    "the programs did not see their ACKs: they came by a port without a fast path".to_owned()
                }
            };
            self.complaint = Some(format!(
                "the fast path does not serve: {handed_back} transfers that it had came back to the daemon, \
                 which sends them more slowly: {why}"
            ));
        } else if granted > 0 {
            self.complaint = None;
        }
        self.before = now;
        blind
    }

    /// XDP sees every frame that a port receives, once. The threshold is so high that a driver which counts a frame
    /// twice, or late, is not accused.
    fn blind(&self, now: &Totals) -> Vec<String> {
        let seen = now.seen_by_xdp.saturating_sub(self.before.seen_by_xdp);
        let received = now.received.iter().filter_map(|(port, now)| {
            // A port that was attached since the last look has no total to compare with.
            Some((port, now.saturating_sub(*self.before.received.get(port)?)))
        });
        received
            .filter(|(_, received)| *received >= 4 * seen + UNSEEN)
            .map(|(port, _)| port.clone())
            .collect()
    }
}

/// Why transfers are handed back, by the reason under which their ACKs are counted. Other reasons concern other frames.
fn cause(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "no-program" => "the kernel refused the program that answers TFTP",
        "no-room" => {
            "the port's buffers have no room for a block; fast-path = \"auto\" or \"tc\" does without"
        }
        "tftp-window" => "XDP can't send a window's second block; fast-path = \"auto\" has tc for that",
        "tftp-no-blob" => "the programs do not find the file's blocks in their maps",
        "tftp-expired" => "its clients paused for too long",
        "tftp-station" => "its clients' packets came from another station than their requests",
        "tftp-not-ack" => "its clients answer by something else than plain ACKs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(granted: u64, handed_back: u64, passed: &[(&'static str, u64)]) -> Totals {
        Totals { granted, handed_back, passed: passed.iter().copied().collect(), ..Totals::default() }
    }

    #[test]
    fn a_port_whose_frames_xdp_does_not_see_is_named() {
        let look = |serving: &mut Serving, seen_by_xdp, eth1, eth2| {
            let received = [("eth1".to_owned(), eth1), ("eth2".to_owned(), eth2)].into();
            serving.look(Totals { seen_by_xdp, received, ..Totals::default() })
        };
        let mut serving = Serving::default();
        assert_eq!(look(&mut serving, 0, 1000, 1000), [""; 0], "from before it was attached");
        assert_eq!(look(&mut serving, 0, 1040, 1000), [""; 0], "a few may be on their way");
        assert_eq!(look(&mut serving, 900, 1040, 1900), [""; 0]);
        assert_eq!(look(&mut serving, 900, 1140, 1900), ["eth1"]);
        assert_eq!(look(&mut serving, 1000, 1700, 2000), ["eth1"], "what XDP saw was eth2's");
    }

    #[test]
    fn transfers_that_come_back_are_told_with_their_cause_until_some_stay() {
        let mut serving = Serving::default();
        serving.look(totals(10, 1, &[("tftp-expired", 1), ("arp", 900)]));
        assert_eq!(serving.complaint(), None, "one of ten");
        serving.look(totals(
            12,
            3,
            &[("tftp-expired", 1), ("tftp-no-blob", 2), ("arp", 2000), ("other-udp", 99)],
        ));
        let complaint = serving.complaint().unwrap().to_owned();
        assert!(complaint.contains("2 transfers") && complaint.contains("`tftp-no-blob`"), "{complaint}");
        serving.look(totals(12, 3, &[("tftp-no-blob", 2)]));
        assert_eq!(serving.complaint(), Some(&*complaint), "nothing was transferred since");
        serving.look(totals(14, 3, &[("tftp-no-blob", 2)]));
        assert_eq!(serving.complaint(), None);
    }

    /// As when a trace begins: first XDP's totals, then tc's.
    #[test]
    fn another_hooks_totals_are_no_harm() {
        let mut serving = Serving::default();
        serving.look(totals(1, 0, &[("tftp-window", 900)]));
        serving.look(totals(1, 1, &[("tftp-window", 3), ("no-room", 2)]));
        assert!(serving.complaint().unwrap().contains("`no-room`"));
    }

    #[test]
    fn acks_that_no_program_saw_are_told_as_such() {
        let mut serving = Serving::default();
        serving.look(totals(1, 1, &[("other-udp", 5), ("tftp-no-blob", 0)]));
        assert!(serving.complaint().unwrap().contains("a port without a fast path"));
    }
}
