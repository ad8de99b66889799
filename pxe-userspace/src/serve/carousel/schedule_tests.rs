use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const SYMBOL: u16 = 100;

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a4d_0000 + n as u32)
}

fn schedule(blocks: u64, now: Instant) -> Schedule {
    let geometry = Geometry::new(blocks * 1000 - 50, SYMBOL, 10).unwrap();
    let mut schedule = Schedule::new(geometry, Pace::new(1e9, usize::from(SYMBOL), now), now);
    schedule.begins = now;
    schedule
}

/// Whether the round has sent its maximum.
fn is_over(schedule: &Schedule) -> bool {
    schedule.symbols >= PASSES_MAX * schedule.whole
}

/// A receiver that keeps the same state as a real one, and needs as many symbols of a block as the block has.
struct Model {
    at: Ipv4Addr,
    have: Vec<HashSet<u32>>,
    sequence: u32,
    came: u64,
    /// It has used up its repairs, and continues by HTTP.
    by_http: bool,
}

impl Model {
    fn new(n: usize, schedule: &Schedule) -> Self {
        let have = vec![HashSet::new(); schedule.geometry.blocks() as usize];
        Self { at: address(n), have, sequence: 0, came: 0, by_http: false }
    }

    fn take(&mut self, step: &Step, mut lost: impl FnMut() -> bool) {
        match step {
            Step::Symbols { block, symbols, sequence } => {
                for (symbol, n) in symbols.clone().zip(*sequence..) {
                    if !lost() {
                        self.have[*block as usize].insert(symbol);
                        self.sequence = n + 1;
                        self.came += 1;
                    }
                }
            }
            Step::Poll { sequence } if !lost() => {
                self.sequence = sequence + 1;
                self.came += 1;
            }
            _ => {}
        }
    }

    fn report(&self, geometry: &Geometry) -> Reception {
        let lacks: Vec<_> = (0..geometry.blocks())
            .filter_map(|block| {
                let symbols = geometry.symbols(block).saturating_sub(self.have[block as usize].len() as u32);
                (symbols > 0).then_some(Lack { first: block, last: block, symbols })
            })
            .collect();
        Reception { sequence: self.sequence, came: self.came, done: lacks.is_empty(), lacks }
    }
}

/// Sends until no receiver waits, with a report of each receiver every `every` steps. Returns the number of symbols
/// sent.
fn run(
    schedule: &mut Schedule,
    models: &mut [Model],
    joins: impl Fn(usize) -> usize,
    every: usize,
    mut lost: impl FnMut(usize) -> bool,
    start: Instant,
) -> Result<usize, TestCaseError> {
    let geometry = schedule.geometry;
    let mut done = vec![false; models.len()];
    let mut now = start;
    let mut sent = 0;
    for step in 0..200_000 {
        for (n, model) in models.iter_mut().enumerate() {
            if step >= joins(n) && !done[n] && (step - joins(n)).is_multiple_of(every) {
                let report = model.report(&geometry);
                schedule.report(model.at, &report, now);
                model.by_http |= schedule.has_spent(model.at);
                done[n] = report.done || model.by_http;
            }
        }
        let next = schedule.next(now);
        match &next {
            Step::Wait(time) => now += *time,
            Step::End if done.iter().all(|done| *done) => return Ok(sent),
            // The others continue by HTTP.
            Step::End if is_over(schedule) => return Ok(sent),
            Step::Symbols { symbols, .. } => {
                sent += symbols.len();
                now += schedule.pace.time(symbols.len() as u32);
            }
            Step::Poll { .. } | Step::End => {}
        }
        for (n, model) in models.iter_mut().enumerate().filter(|(n, _)| step >= joins(*n)) {
            model.take(&next, || lost(n));
        }
    }
    Err(TestCaseError::fail("somebody waits for ever"))
}

#[test]
fn without_loss_every_symbol_is_sent_once_and_in_order() {
    let now = Instant::now();
    let mut schedule = schedule(5, now);
    let mut models = [Model::new(0, &schedule), Model::new(1, &schedule)];
    let sent = run(&mut schedule, &mut models, |_| 0, 3, |_| false, now).unwrap();
    assert_eq!(sent, 50);
}

#[test]
fn a_round_waits_for_those_who_are_about_to_join() {
    let now = Instant::now();
    let geometry = Geometry::new(1000, SYMBOL, 10).unwrap();
    let mut schedule = Schedule::new(geometry, Pace::new(1e9, usize::from(SYMBOL), now), now);
    schedule.report(address(1), &Reception::default(), now);
    assert_eq!(schedule.next(now), Step::Poll { sequence: 0 });
    assert!(matches!(schedule.next(now + GATHER), Step::Symbols { block: 0, sequence: 1, .. }));
}

#[test]
fn a_loss_is_made_good_once_and_with_a_symbol_that_is_new() {
    let now = Instant::now();
    let mut schedule = schedule(3, now);
    let (a, b) = (address(1), address(2));
    let fresh = Reception::default();
    schedule.report(a, &fresh, now);
    schedule.report(b, &fresh, now);
    let steps: Vec<_> = (0..60).map(|_| schedule.next(now)).collect();
    assert!(steps.contains(&Step::Symbols { block: 2, symbols: 0..10, sequence: 20 }), "{steps:?}");
    let lacks = |symbols, sequence| Reception {
        sequence,
        came: 1,
        lacks: vec![Lack { first: 1, last: 1, symbols }],
        done: false,
    };
    schedule.report(a, &lacks(2, 31), now);
    schedule.report(b, &lacks(3, 31), now);
    let mut repairs = Vec::new();
    for _ in 0..20 {
        if let Step::Symbols { block, symbols, .. } = schedule.next(now) {
            assert_eq!(block, 1);
            repairs.extend(symbols);
        }
    }
    // The larger of both requests, and one to spare.
    assert_eq!(repairs, [10, 11, 12, 13]);
    // Reports from before the repairs were seen are ignored; later ones count.
    schedule.report(a, &lacks(2, 31), now);
    assert!(!matches!(schedule.next(now + POLL_EVERY), Step::Symbols { .. }));
    schedule.report(a, &lacks(1, 200), now);
    let next = schedule.next(now + POLL_EVERY);
    assert!(matches!(next, Step::Symbols { block: 1, ref symbols, .. } if symbols.start == 14), "{next:?}");
}

#[test]
fn a_round_ends_when_nobody_is_heard_any_more() {
    let now = Instant::now();
    let mut schedule = schedule(1, now);
    schedule.report(address(1), &Reception::default(), now);
    let last = now + GONE - Duration::from_millis(1);
    assert!(matches!(schedule.next(last), Step::Symbols { .. }));
    assert!(matches!(schedule.next(now + GONE), Step::Wait(_)));
    assert_eq!(schedule.next(now + GONE + LINGER), Step::End);
}

#[test]
fn reports_of_nonsense_change_little() {
    let now = Instant::now();
    let mut schedule = schedule(2, now);
    let lacks =
        vec![Lack { first: 0, last: u32::MAX, symbols: u32::MAX }, Lack { first: 9, last: 3, symbols: 0 }];
    let report = Reception { sequence: u32::MAX, came: u64::MAX, lacks, done: false };
    for _ in 0..100 {
        schedule.report(address(1), &report, now);
        schedule.next(now);
    }
    assert_eq!(schedule.receivers(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost, and whenever receivers join, each gets the image, or has lost so much that it uses HTTP.
    #[test]
    fn everybody_gets_the_image(
        blocks in 1u64..12,
        joins in proptest::collection::vec(0usize..150, 1..6),
        every in 1usize..40,
        loss in 0u32..30,
        seed: u64,
    ) {
        let now = Instant::now();
        let mut schedule = schedule(blocks, now);
        let mut models: Vec<_> = (0..joins.len()).map(|n| Model::new(n, &schedule)).collect();
        let mut state = seed | 1;
        let mut lost = |_| {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % 100 < u64::from(loss)
        };
        let first = *joins.iter().min().unwrap();
        let sent = run(&mut schedule, &mut models, |n| joins[n] - first, every, &mut lost, now)?;
        prop_assert!(is_over(&schedule) || models.iter().all(|m| m.by_http || m.report(&schedule.geometry).done));
        let image = blocks as usize * 10;
        prop_assert!(sent >= image - 1);
        if loss == 0 {
            // Once for each receiver that joins when the others are done, with the spare symbols of each block.
            prop_assert!(sent <= (image + 2 * blocks as usize) * joins.len(), "{sent} of {image}");
        }
    }

    #[test]
    fn sequence_numbers_count_every_packet(steps in 1usize..300) {
        let now = Instant::now();
        let mut schedule = schedule(4, now);
        schedule.report(address(1), &Reception::default(), now);
        let mut expected = 0;
        for n in 0..steps {
            match schedule.next(now + POLL_EVERY * n as u32 / 10) {
                Step::Symbols { symbols, sequence, .. } => {
                    prop_assert_eq!(sequence, expected);
                    expected += symbols.len() as u32;
                }
                Step::Poll { sequence } => {
                    prop_assert_eq!(sequence, expected);
                    expected += 1;
                }
                Step::Wait(_) | Step::End => {}
            }
        }
        prop_assert_eq!(schedule.packets(), expected);
    }
}

#[test]
fn one_that_lacks_everything_for_ever_is_sent_it_twice_more_and_the_round_ends_after_three_passes() {
    for liars in [1u8, 8] {
        let mut now = Instant::now();
        let mut schedule = schedule(10, now);
        let whole = schedule.whole;
        let lacks_all = |schedule: &Schedule| Reception {
            sequence: schedule.packets(),
            came: 1,
            lacks: vec![Lack { first: 0, last: u32::MAX, symbols: u32::MAX }],
            done: false,
        };
        let from = |n: u8| Ipv4Addr::new(10, 77, 0, n);
        let mut ended = false;
        for _ in 0..200_000 {
            for n in 1..=liars {
                let report = lacks_all(&schedule);
                schedule.report(from(n), &report, now);
            }
            now += Duration::from_millis(5);
            match schedule.next(now) {
                Step::End => {
                    ended = true;
                    break;
                }
                Step::Wait(time) => now += time,
                Step::Symbols { .. } | Step::Poll { .. } => {}
            }
            if schedule.has_spent(from(1)) && schedule.symbols < 3 * whole && liars == 1 {
                break;
            }
        }
        assert!(ended || schedule.has_spent(from(1)), "{} of {whole}", schedule.symbols);
        assert!(schedule.symbols <= 3 * whole + u64::from(schedule.pace.burst()), "{}", schedule.symbols);
    }
}
