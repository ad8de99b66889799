use proptest::prelude::*;
use pxe_common::dhcp::Firmware;

use super::*;

fn mac(n: usize) -> Mac {
    let [_, _, _, _, a, b, c, d] = (n as u64).to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn at(ms: u64) -> Timestamp {
    after(Timestamp::from_second(1_800_000_000).unwrap(), Duration::from_millis(ms))
}

/// Links on which this many machines may boot at a time.
fn room_for(most: u64) -> Option<u64> {
    Some(most * IN_FLIGHT * 10)
}

/// A machine of the model: it asks as its firmware does, takes an offer at once, and boots for a while.
#[derive(Clone, Debug)]
struct Machine {
    powered_on_ms: u64,
    ipxe: bool,
    boots_for_ms: u64,
    /// Which of its DISCOVERs are lost.
    lost: [bool; 4],
}

fn machines() -> impl Strategy<Value = Vec<Machine>> {
    let machine = (0..3000u64, any::<bool>(), 100..15_000u64, any::<[bool; 4]>(), 0..10u8).prop_map(
        |(powered_on_ms, ipxe, boots_for_ms, lost, luck)| Machine {
            powered_on_ms,
            ipxe,
            boots_for_ms,
            // Most lose none.
            lost: if luck < 8 { [false; 4] } else { lost },
        },
    );
    proptest::collection::vec(machine, 1..80)
}

impl Machine {
    fn patience(&self) -> Patience {
        Patience::of(if self.ipxe { Firmware::IpxeBios } else { Firmware::UefiX64 })
    }

    /// When its DISCOVERs arrive.
    fn asks_ms(&self) -> Vec<u64> {
        let asks: [u64; 4] = if self.ipxe { [0, 1, 3, 7] } else { [0, 4, 12, 28] };
        let arrives = asks.iter().zip(self.lost).filter(|(_, lost)| !lost);
        arrives.map(|(second, _)| self.powered_on_ms + second * 1000).collect()
    }

    /// When it stops listening.
    fn gives_up_ms(&self) -> u64 {
        self.powered_on_ms + self.patience().end().as_millis() as u64
    }
}

proptest! {
    #[test]
    fn nobody_is_left_behind_nobody_is_let_in_too_early(machines in machines(), most in 4..40u64) {
        let mut pacing = Pacing::new(room_for(most));
        prop_assert_eq!(pacing.most(), Some(most as usize));
        let mut offered: Vec<Option<u64>> = vec![None; machines.len()];
        let mut arrived: Vec<usize> = Vec::new();
        for ms in (0..70_000).step_by(100) {
            // A boot that ended makes room.
            for (n, machine) in machines.iter().enumerate() {
                let ends = offered[n].map(|from| from + machine.boots_for_ms);
                if ends.is_some_and(|end| end <= ms && ms < end + 100) {
                    pacing.reached(mac(n), Stage::Initrd, at(ms));
                }
            }
            let mut now_offered: Vec<usize> = Vec::new();
            for (n, machine) in machines.iter().enumerate() {
                let asks = machine.asks_ms().iter().any(|ask| *ask >= ms && *ask < ms + 100);
                if !asks || offered[n].is_some() {
                    continue;
                }
                let last = machine.asks_ms().last().is_some_and(|last| *last < ms + 100);
                let only = machine.asks_ms().len() == 1;
                if !arrived.contains(&n) {
                    arrived.push(n);
                }
                let before = pacing.under_way();
                match pacing.asked(mac(n), ANYWHERE, machine.patience(), at(ms)) {
                    Verdict::Offer => {
                        now_offered.push(n);
                        let queued = arrived.iter().filter(|m| offered[**m].is_none() && !now_offered.contains(m)).count();
                        let forced = pacing.under_way() as u64 > most;
                        prop_assert!(forced || before < most as usize);
                        prop_assert!(!forced || ms + 100 > machine.powered_on_ms + 4000, "too early: {ms}");
                        // Without loss, machines overtake only at the last DISCOVER.
                        let lossless = machines.iter().all(|m| m.lost == [false; 4]);
                        prop_assert!(!lossless || before + queued < most as usize || last, "{n} overtook {queued} at {ms}");
                    }
                    Verdict::Wait { before, .. } => {
                        prop_assert!((pacing.under_way() + before) as u64 >= most, "it could have been served");
                        prop_assert!(!last || only || machine.lost != [false; 4], "sent away at its last DISCOVER");
                    }
                }
            }
            let fetches = |mac| {
                machines.iter().enumerate().any(|(n, machine)| {
                    self::mac(n) == mac && offered[n].is_some_and(|from| from + machine.boots_for_ms > ms)
                })
            };
            pacing.forget_quiet(at(ms), fetches);
            let admitted = pacing.admit(at(ms));
            for mac in admitted {
                let n = (0..machines.len()).find(|n| self::mac(*n) == mac).unwrap();
                now_offered.push(n);
            }
            prop_assert!(pacing.waiting() == 0 || pacing.under_way() as u64 >= most, "a place is empty");
            prop_assert!(pacing.waiting() == pacing.waiting.len());
            for n in now_offered {
                prop_assert!(offered[n].is_none());
                prop_assert!(ms < machines[n].gives_up_ms(), "machine {n} gave up before {ms}");
                offered[n] = Some(ms);
            }
        }
        for (n, machine) in machines.iter().enumerate() {
            prop_assert_eq!(offered[n].is_some(), !machine.asks_ms().is_empty(), "machine {}", n);
        }
        pacing.forget_quiet(at(500_000), |_| false);
        prop_assert!(pacing.admit(at(500_000)).is_empty() && pacing.under_way() == 0, "all is forgotten");
    }

    #[test]
    fn a_block_waits_for_less_than_a_retry(bytes_per_second in 300_000..100_000_000_000u64) {
        let most = Pacing::new(Some(bytes_per_second)).most().unwrap() as u64;
        let wait = (most * IN_FLIGHT) as f64 / bytes_per_second as f64;
        // Four boots go on over any link.
        prop_assert!(wait <= 0.1001, "{} boots: {} s", most, wait);
        prop_assert!((most + 1) * IN_FLIGHT * 10 > bytes_per_second, "one more would fit");
    }
}

#[test]
fn without_a_known_speed_everybody_is_served_and_nobody_remembered() {
    let mut pacing = Pacing::new(None);
    for n in 0..100_000 {
        assert_eq!(pacing.asked(mac(n), ANYWHERE, Patience::of(Firmware::Bios), at(0)), Verdict::Offer);
        pacing.reached(mac(n), Stage::Ack, at(0));
    }
    assert_eq!((pacing.under_way(), pacing.waiting()), (0, 0));
    assert_eq!(pacing.admit(at(1)), []);
}

#[test]
fn who_waits_is_told_how_many_are_before_it_and_comes_in_in_that_order() {
    let mut pacing = Pacing::new(room_for(4));
    let patience = Patience::of(Firmware::Bios);
    for n in 0..4 {
        assert_eq!(pacing.asked(mac(n), ANYWHERE, patience, at(n as u64)), Verdict::Offer);
    }
    assert_eq!(pacing.asked(mac(4), ANYWHERE, patience, at(10)), Verdict::Wait { before: 0 });
    assert_eq!(pacing.asked(mac(5), ANYWHERE, patience, at(10)), Verdict::Wait { before: 1 });
    assert_eq!(pacing.asked(mac(5), ANYWHERE, patience, at(4010)), Verdict::Wait { before: 1 });
    assert_eq!(pacing.asked(mac(3), ANYWHERE, patience, at(4010)), Verdict::Offer, "it was let in already");
    pacing.reached(mac(0), Stage::Initrd, at(3900));
    assert_eq!(pacing.forget_quiet(at(4800), |_| false), [], "there may be another initrd");
    assert_eq!(pacing.forget_quiet(at(4950), |m| m == mac(0)), [], "there is");
    pacing.reached(mac(0), Stage::Initrd, at(4960));
    pacing.reached(mac(1), Stage::Failed, at(4960));
    assert_eq!(pacing.asked(mac(6), ANYWHERE, patience, at(5000)), Verdict::Wait { before: 2 });
    assert_eq!(pacing.admit(at(5000)), [mac(4)]);
    assert_eq!(pacing.forget_quiet(at(5960), |_| false), [mac(0)]);
    assert_eq!(pacing.admit(at(5960)), [mac(5)]);
    assert_eq!(pacing.turns().collect::<Vec<_>>(), [(mac(6), 0)]);
}

#[test]
fn a_boot_in_which_nothing_happens_loses_its_place_and_takes_it_again() {
    let mut pacing = Pacing::new(room_for(4));
    for n in 0..4 {
        pacing.asked(mac(n), ANYWHERE, Patience::of(Firmware::Bios), at(0));
    }
    // One fetches a large file slowly, one was switched off.
    pacing.reached(mac(2), Stage::Kernel, at(15_000));
    pacing.reached(mac(3), Stage::Kernel, at(15_000));
    assert_eq!(pacing.forget_quiet(at(21_000), |m| m == mac(0)), [mac(1)]);
    assert_eq!(pacing.under_way(), 3);
    pacing.reached(mac(1), Stage::Loader, at(22_000));
    assert!(pacing.is_under_way(mac(1)));
}

#[test]
fn made_up_machines_fill_no_memory_and_delay_nobody() {
    let mut pacing = Pacing::new(room_for(4));
    let patience = Patience::of(Firmware::Bios);
    for n in 0..3 * REMEMBERED {
        pacing.asked(mac(n), ANYWHERE, patience, at(0));
    }
    assert!(pacing.waiting() <= REMEMBERED && pacing.under_way() <= REMEMBERED);
    assert_eq!(pacing.asked(mac(usize::MAX >> 8), ANYWHERE, patience, at(1)), Verdict::Offer);
}

#[test]
fn declared_machines_wait_for_each_other_and_for_nobody_else() {
    let (mut pacing, patience) = (Pacing::new(room_for(4)), Patience::of(Firmware::UefiX64));
    let declared: Vec<Mac> = (0..6).map(mac).collect();
    pacing.set_declared(declared.iter().copied().collect());
    for n in 100..5100 {
        pacing.asked(mac(n), ANYWHERE, patience, at(0));
    }
    assert_eq!((pacing.under_way(), pacing.waiting()), (4, 4996));
    let asked: Vec<Verdict> =
        declared.iter().map(|mac| pacing.asked(*mac, ANYWHERE, patience, at(10))).collect();
    let [wait0, wait1] = [0, 1].map(|before| Verdict::Wait { before });
    assert_eq!(asked, [Verdict::Offer, Verdict::Offer, Verdict::Offer, Verdict::Offer, wait0, wait1]);
    assert_eq!(pacing.turns().next(), Some((mac(4), 0)), "before every stranger");
    pacing.reached(mac(0), Stage::Workload, at(20));
    assert_eq!(pacing.admit(at(20)), [mac(4)]);
    pacing.reached(mac(100), Stage::Failed, at(30));
    assert_eq!(pacing.admit(at(30)), [], "a stranger's place is none of theirs, and no other stranger's yet");
    // Their declaration may change while they boot.
    pacing.set_declared([mac(1)].into());
    pacing.reached(mac(1), Stage::Workload, at(40));
    pacing.set_declared(declared.into_iter().collect());
    assert_eq!(pacing.admit(at(40)), [mac(5)]);
}

#[test]
fn a_flood_behind_one_port_holds_up_nobody_behind_another() {
    let patience = Patience::of(Firmware::UefiX64);
    let mut pacing = Pacing::new(room_for(4));
    pacing.set_declared([mac(9_000)].into());
    let asked = |pacing: &mut Pacing, n, port, ms| pacing.asked(mac(n), port, patience, at(ms));
    for n in 0..5_000 {
        let verdict = asked(&mut pacing, n, 3, 0);
        assert_eq!(verdict == Verdict::Offer, n < 4, "{n}: {verdict:?}");
    }
    // Four at each other port, and then they wait for their own.
    for n in 6_000..6_004 {
        assert_eq!(asked(&mut pacing, n, 2, 1), Verdict::Offer);
        assert_eq!(asked(&mut pacing, n + 100, 4, 1), Verdict::Offer);
    }
    assert_eq!(asked(&mut pacing, 6_004, 2, 2), Verdict::Wait { before: 0 });
    assert_eq!(asked(&mut pacing, 6_104, 4, 2), Verdict::Wait { before: 0 });
    assert_eq!(asked(&mut pacing, 6_005, 2, 2), Verdict::Wait { before: 1 });
    assert_eq!(asked(&mut pacing, 9_000, 3, 2), Verdict::Offer, "a declared one behind the flood");
    // What is seen later has the port that it asked by.
    pacing.reached(mac(6_000), Stage::Kernel, at(3));
    assert_eq!(pacing.admit(at(3)), []);
    pacing.reached(mac(6_000), Stage::Workload, at(4));
    assert_eq!(pacing.admit(at(4)), [mac(6_004)]);
    pacing.reached(mac(6_100), Stage::Workload, at(4));
    pacing.reached(mac(0), Stage::Workload, at(4));
    // The declared one has the flood's place.
    assert_eq!(pacing.admit(at(4)), [mac(6_104)]);
    assert!(pacing.turns().any(|turn| turn == (mac(6_005), 0)));
    assert_eq!(pacing.turns().last(), Some((mac(4_999), 4_995)));
    // One of whom nobody knows where it is counts everywhere.
    pacing.reached(mac(6_001), Stage::Workload, at(5));
    pacing.offered(mac(7_000), at(5));
    assert_eq!(pacing.admit(at(5)), []);
    assert_eq!(pacing.forget_quiet(at(60_000), |_| false).len(), 12);
    assert!(pacing.taken.values().all(|taken| taken.all == 0 && taken.declared == 0));
}
