//! Whatever happens in whatever order, with a daemon that is killed again and again: nothing is powered twice for one
//! try, and nothing is forgotten.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::model::{Limit, Terms};
use super::tests::{at, launch, mac, member, terms};
use super::*;

/// How a machine behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Nature {
    /// It boots.
    Sound,
    /// It never asks for an address.
    Unplugged,
    /// Its boot fails.
    Hangs,
    /// Its BMC fails every other action.
    Moody,
}

/// One machine, as it really is.
#[derive(Clone, Debug)]
struct Real {
    nature: Nature,
    on: bool,
    actions: u32,
    /// What it has still to say.
    says: Vec<Stage>,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Turn {
    /// The command that waits here is performed, and its answer is on its way.
    Perform(usize),
    /// An answer arrives.
    Answer(usize),
    /// A machine says something.
    Speak(usize),
    Time(u16),
    /// The daemon is killed. What is in flight is lost or performed, as the bits say.
    Kill(u64),
    Cancel,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => any::<usize>().prop_map(Turn::Perform),
        6 => any::<usize>().prop_map(Turn::Answer),
        6 => any::<usize>().prop_map(Turn::Speak),
        4 => (0u16..400).prop_map(Turn::Time),
        2 => any::<u64>().prop_map(Turn::Kill),
        1 => Just(Turn::Cancel),
    ]
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        4 => Just(Nature::Sound),
        1 => Just(Nature::Unplugged),
        1 => Just(Nature::Hangs),
        1 => Just(Nature::Moody),
    ]
}

/// The daemon, its store, and its machines.
struct World {
    engine: Engine,
    /// What the store has.
    stored: (Launch, Vec<Member>),
    pins: Vec<Mac>,
    commands: Vec<Command>,
    answers: Vec<Input>,
    timeline: Vec<Heard>,
    reals: HashMap<Mac, Real>,
    /// How often a machine that was off was switched on, for each try.
    switched_on: HashMap<(Mac, u32), u32>,
    now: i64,
}

impl World {
    fn new(terms: Terms, natures: &[(Nature, bool)], canaries: usize) -> Self {
        let members: Vec<Member> = (1..=natures.len() as u8)
            .map(|n| Member { canary: usize::from(n) <= canaries, ..member(n) })
            .collect();
        let reals = (1..).zip(natures);
        let reals = reals
            .map(|(n, (nature, on))| {
                (mac(n), Real { nature: *nature, on: *on, actions: 0, says: Vec::new() })
            })
            .collect();
        let stored = (launch(terms), members.clone());
        let engine = Engine::new(stored.0.clone(), members);
        let (pins, commands, answers, timeline) = Default::default();
        Self { engine, stored, pins, commands, answers, timeline, reals, switched_on: HashMap::new(), now: 0 }
    }

    /// Stores what the engine says, and only then has its commands.
    fn poll(&mut self) {
        let out = self.engine.poll(Places::default(), at(self.now));
        let by_mac: HashMap<Mac, &Member> =
            self.engine.members().map(|member| (member.mac, member)).collect();
        if out.launch {
            self.stored.0 = self.engine.launch().clone();
        }
        for member in &mut self.stored.1 {
            if out.members.contains(&member.mac) {
                *member = by_mac[&member.mac].clone();
            }
        }
        // What was not reported as changed has not changed.
        assert_eq!(&self.stored.0, self.engine.launch());
        assert!(self.stored.1.iter().eq(self.engine.members()));
        self.pins.extend(out.pins.iter().map(|(mac, _)| *mac));
        self.commands.extend(out.commands);
    }

    fn perform(&mut self, command: Command) -> Option<Input> {
        let power = |mac, tries, answer| Some(Input::Power { mac, tries, answer });
        match command {
            Command::Ask { mac, tries } => {
                let on = self.reals[&mac].on;
                power(mac, tries, if on { Answer::IsOn } else { Answer::IsOff })
            }
            Command::Switch { mac, tries, on } => {
                let real = self.reals.get_mut(&mac).unwrap();
                real.actions += 1;
                if real.nature == Nature::Moody && real.actions % 2 == 1 {
                    return power(mac, tries, Answer::Failed("500".into()));
                }
                if on && !real.on {
                    *self.switched_on.entry((mac, tries)).or_default() += 1;
                    real.says = match real.nature {
                        Nature::Sound | Nature::Moody => {
                            vec![Stage::Workload, Stage::Kernel, Stage::Discover]
                        }
                        Nature::Hangs => vec![Stage::Failed, Stage::Kernel, Stage::Discover],
                        Nature::Unplugged => Vec::new(),
                    };
                }
                if !on {
                    real.says.clear();
                }
                real.on = on;
                power(mac, tries, Answer::Done)
            }
            Command::Check { mac, tries } => Some(Input::Checked { mac, tries, said: Ok(()) }),
            Command::BootAgain { .. } => None,
        }
    }

    /// It is in the timeline, whether or not the daemon hears of it any more.
    fn speak(&mut self, mac: Mac) -> Option<Heard> {
        let stage = self.reals.get_mut(&mac)?.says.pop()?;
        let heard = Heard {
            id: self.timeline.len() as u64 + 1,
            mac,
            time: at(self.now),
            stage,
            by_firmware: true,
            late: false,
            detail: None,
            cause: (stage == Stage::Failed).then(|| "it hung".to_owned()),
        };
        self.timeline.push(heard.clone());
        Some(heard)
    }

    fn take(&mut self, input: Input) {
        self.engine.take(input, at(self.now));
        self.poll();
    }

    fn kill(&mut self, performed: u64) {
        let commands = std::mem::take(&mut self.commands);
        for (bit, command) in commands.into_iter().enumerate() {
            if performed >> (bit % 64) & 1 == 1 {
                drop(self.perform(command));
            }
        }
        self.answers.clear();
        let (launch, members) = self.stored.clone();
        self.engine = Engine::resume(launch, members, at(self.now));
        for heard in self.timeline.clone() {
            self.engine.take(Input::Event(heard.clone()), heard.time);
        }
        self.poll();
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Perform(which) if !self.commands.is_empty() => {
                let command = self.commands.remove(which % self.commands.len());
                let answer = self.perform(command);
                self.answers.extend(answer);
            }
            Turn::Answer(which) if !self.answers.is_empty() => {
                let answer = self.answers.remove(which % self.answers.len());
                self.take(answer);
            }
            Turn::Speak(which) => {
                let mac = mac((which % self.reals.len()) as u8 + 1);
                if let Some(heard) = self.speak(mac) {
                    self.take(Input::Event(heard));
                }
            }
            Turn::Time(seconds) => {
                self.now += i64::from(seconds);
                self.poll();
            }
            Turn::Kill(performed) => self.kill(performed),
            Turn::Cancel => self.take(Input::Cancel { by: "anna".into() }),
            Turn::Perform(_) | Turn::Answer(_) => {}
        }
    }

    /// Everything that is on its way arrives, and time passes, until nothing more can happen.
    fn run_out(&mut self) {
        for _ in 0..10_000 {
            if self.engine.is_over() && self.commands.is_empty() && self.answers.is_empty() {
                return;
            }
            while !self.commands.is_empty() {
                self.turn(Turn::Perform(0));
            }
            while !self.answers.is_empty() {
                self.turn(Turn::Answer(0));
            }
            (0..self.reals.len()).for_each(|which| self.turn(Turn::Speak(which)));
            if self.commands.is_empty() && self.answers.is_empty() {
                self.turn(Turn::Time(20));
            }
        }
        panic!("it does not end: {:#?}", self.engine);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn nothing_is_powered_twice_and_nothing_is_forgotten(
        natures in proptest::collection::vec((nature(), any::<bool>()), 1..8),
        (at_a_time, canaries, percent) in (proptest::option::of(1u32..4), 0usize..3, proptest::option::of(0u8..=100)),
        (deadline, tries) in (proptest::option::of(1i64..4000), 1u32..4),
        cancels in any::<bool>(),
        turns in proptest::collection::vec(turn(), 0..200),
    ) {
        let terms = Terms {
            at_a_time,
            canary: canaries as u32,
            max_failed: percent.map(Limit::Percent),
            deadline: deadline.map(at),
            tries,
            ..terms()
        };
        let mut world = World::new(terms, &natures, canaries);
        world.poll();
        // Where minutes pass before a machine may speak, patience ends.
        let calm = deadline.is_none() && !turns.iter().any(|turn| matches!(turn, Turn::Time(_) | Turn::Cancel));
        for turn in turns {
            if cancels || !matches!(turn, Turn::Cancel) {
                world.turn(turn);
            }
            let begun = |m: &&Member| matches!(m.state, State::Powering | State::Booting | State::Failed);
            let begun = world.engine.members().filter(begun).count();
            prop_assert!(at_a_time.is_none_or(|most| begun <= most as usize));
        }
        world.run_out();

        for ((mac, tries), times) in &world.switched_on {
            prop_assert!(*times <= 1, "{mac} was switched on {times} times for try {tries}");
        }
        let verdict = world.engine.launch().verdict.clone().unwrap();
        for member in world.engine.members() {
            let real = &world.reals[&member.mac];
            prop_assert!(member.tries <= tries);
            match member.state {
                State::Healthy => prop_assert!(real.on && matches!(real.nature, Nature::Sound | Nature::Moody)),
                State::SetAside => prop_assert!(member.cause.is_some(), "{member:?}"),
                State::Waiting => {
                    prop_assert!(!matches!(verdict.outcome, Outcome::Healthy | Outcome::Failed));
                    prop_assert!(!member.assigned && member.tries == 0, "{member:?}");
                }
                State::Powering | State::Booting | State::Failed => prop_assert!(false, "left over: {member:?}"),
            }
            // Whoever was begun boots the target, and was told so once.
            let pinned = world.pins.iter().filter(|mac| **mac == member.mac).count();
            prop_assert_eq!(pinned, usize::from(member.assigned));
            if calm && natures.iter().all(|(nature, _)| *nature == Nature::Sound) {
                prop_assert_eq!(member.state, State::Healthy, "{:?}", member);
            }
        }
    }
}
