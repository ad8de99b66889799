use super::super::model::Limit;
use super::super::model::Terms;
use super::*;

pub(super) const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::constant(1_800_000_000 + seconds, 0)
}

pub(super) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

pub(super) fn terms() -> Terms {
    Terms {
        at_a_time: None,
        canary: 0,
        max_failed: None,
        tries: 2,
        deadline: None,
        patience: 300,
        healthy: None,
    }
}

pub(super) fn launch(terms: Terms) -> Launch {
    Launch {
        id: 1,
        asked: START,
        by: "root".into(),
        select: "all".into(),
        what: "image a".into(),
        undoes: None,
        terms,
        phase: Phase::Running,
        verdict: None,
        seen: 0,
    }
}

pub(super) fn member(n: u8) -> Member {
    Member {
        name: format!("n{n}"),
        mac: mac(n),
        canary: false,
        reach: Reach::Full,
        judged: Judged::Workload,
        target: Some(Launched { profile: Some("web".into()), image: None, launch: 1, since: START }),
        before: None,
        assigned: false,
        runs: false,
        state: State::Waiting,
        stage: None,
        step: None,
        tries: 0,
        since: START,
        heard: None,
        up: None,
        cause: None,
    }
}

/// An engine whose outputs are looked at one after the other.
struct Room {
    engine: Engine,
    now: i64,
    events: u64,
    places: Places,
    told: Vec<Changed>,
    pins: Vec<Mac>,
}

impl Room {
    fn new(terms: Terms, members: impl IntoIterator<Item = Member>) -> Self {
        let engine = Engine::new(launch(terms), members.into_iter().collect());
        let (told, pins) = (Vec::new(), Vec::new());
        Self { engine, now: 0, events: 0, places: Places::default(), told, pins }
    }

    fn poll(&mut self) -> Vec<Command> {
        let out = self.engine.poll(self.places, at(self.now));
        self.told.extend(out.events);
        self.pins.extend(out.pins.iter().map(|(mac, _)| *mac));
        out.commands
    }

    fn after(&mut self, seconds: i64) -> Vec<Command> {
        self.now += seconds;
        self.poll()
    }

    fn answer(&mut self, n: u8, answer: Answer) -> Vec<Command> {
        let tries = self.tries(n);
        self.engine.take(Input::Power { mac: mac(n), tries, answer }, at(self.now));
        self.poll()
    }

    fn tries(&self, n: u8) -> u32 {
        self.engine.member(mac(n)).unwrap().tries
    }

    fn hear(&mut self, n: u8, stage: Stage) -> Vec<Command> {
        self.heard(n, stage, None, None)
    }

    fn heard(&mut self, n: u8, stage: Stage, detail: Option<&str>, cause: Option<&str>) -> Vec<Command> {
        self.events += 1;
        let heard = Heard {
            id: self.events,
            mac: mac(n),
            time: at(self.now),
            stage,
            by_firmware: true,
            late: false,
            detail: detail.map(str::to_owned),
            cause: cause.map(str::to_owned),
        };
        self.engine.take(Input::Event(heard), at(self.now));
        self.poll()
    }

    fn checked(&mut self, n: u8, said: Result<(), &str>) -> Vec<Command> {
        let (tries, said) = (self.tries(n), said.map_err(str::to_owned));
        self.engine.take(Input::Checked { mac: mac(n), tries, said }, at(self.now));
        self.poll()
    }

    fn state(&self, n: u8) -> State {
        self.engine.member(mac(n)).unwrap().state
    }

    fn cause(&self, n: u8) -> String {
        self.engine.member(mac(n)).unwrap().cause.clone().unwrap_or_default()
    }

    fn verdict(&self) -> (Outcome, &str) {
        assert!(self.engine.is_over(), "{:#?}", self.engine);
        let verdict = self.engine.launch().verdict.as_ref().unwrap();
        (verdict.outcome, &verdict.words)
    }

    /// From off to its workload.
    fn boots(&mut self, n: u8) {
        self.answer(n, Answer::IsOff);
        self.answer(n, Answer::Done);
        self.hear(n, Stage::Discover);
        self.hear(n, Stage::Stage1);
        self.hear(n, Stage::Workload);
    }
}

fn ask(n: u8, tries: u32) -> Command {
    Command::Ask { mac: mac(n), tries }
}

fn switch(n: u8, tries: u32, on: bool) -> Command {
    Command::Switch { mac: mac(n), tries, on }
}

#[test]
fn a_machine_that_is_off_is_switched_on_once_and_watched_until_it_is_healthy() {
    let mut room = Room::new(terms(), [member(1)]);
    assert_eq!(room.poll(), [ask(1, 1)]);
    assert_eq!(room.pins, [mac(1)]);
    assert_eq!(room.answer(1, Answer::IsOff), [switch(1, 1, true)]);
    // Its firmware is faster than its BMC.
    assert_eq!(room.hear(1, Stage::Discover), []);
    assert_eq!(room.answer(1, Answer::Done), []);
    assert_eq!(
        (room.state(1), room.engine.member(mac(1)).unwrap().stage),
        (State::Booting, Some(Stage::Discover))
    );
    for stage in [Stage::Offer, Stage::Loader, Stage::Kernel, Stage::Initrd, Stage::Stage1, Stage::Image] {
        assert_eq!(room.hear(1, stage), []);
    }
    room.hear(1, Stage::Workload);
    assert_eq!(room.engine.next_timeout(), Some(at(30)));
    room.after(29);
    assert_eq!(room.state(1), State::Booting);
    room.after(1);
    assert_eq!(room.state(1), State::Healthy);
    assert_eq!(room.verdict(), (Outcome::Healthy, "all 1 machines are healthy"));
    assert!(matches!(room.told.last(), Some(Changed::Phase { phase: Phase::Ended, verdict: Some(_) })));
}

#[test]
fn what_runs_something_else_is_switched_off_and_on_and_what_runs_the_target_goes_on() {
    let mut room = Room::new(terms(), [member(1), Member { runs: true, ..member(2) }]);
    assert_eq!(room.poll(), [ask(1, 1), ask(2, 1)]);
    assert_eq!(room.answer(1, Answer::IsOn), [switch(1, 1, false)]);
    // The system that is ended says farewell.
    room.heard(1, Stage::Failed, None, Some("its workload ended"));
    assert_eq!(room.answer(1, Answer::Done), [switch(1, 1, true)]);
    room.heard(1, Stage::Failed, None, Some("nothing was heard"));
    assert_eq!(room.answer(1, Answer::Done), []);
    room.hear(1, Stage::Workload);
    assert_eq!(room.state(1), State::Booting, "that was the system before");
    assert_eq!(room.engine.member(mac(1)).unwrap().up, None);
    assert_eq!(room.answer(2, Answer::IsOn), []);
    room.after(30);
    assert_eq!((room.state(1), room.state(2)), (State::Booting, State::Healthy));
}

#[test]
fn what_is_stuck_is_tried_again_and_then_set_aside_with_its_cause() {
    let mut room = Room::new(terms(), [member(1), member(2)]);
    room.poll();
    room.boots(1);
    room.answer(2, Answer::IsOff);
    room.answer(2, Answer::Done);
    room.after(30);
    assert_eq!(room.state(1), State::Healthy);
    room.after(269);
    assert_eq!(room.state(2), State::Booting);
    room.after(1);
    assert_eq!(room.state(2), State::Failed);
    assert!(room.cause(2).contains("no DISCOVER arrived within 300 s"), "{}", room.cause(2));
    assert_eq!(room.after(5), [ask(2, 2)]);
    assert_eq!(room.answer(2, Answer::IsOn), [switch(2, 2, false)]);
    assert_eq!(room.answer(2, Answer::Done), [switch(2, 2, true)]);
    room.answer(2, Answer::Done);
    room.hear(2, Stage::Discover);
    room.heard(2, Stage::Failed, None, Some("GRUB hung"));
    assert_eq!((room.state(2), room.cause(2)), (State::SetAside, "GRUB hung".into()));
    assert_eq!(room.verdict(), (Outcome::Failed, "1 of 2 machines are healthy, 1 set aside"));
}

#[test]
fn answers_and_events_of_an_earlier_try_change_nothing() {
    let mut room = Room::new(terms(), [member(1)]);
    room.poll();
    room.answer(1, Answer::Failed("the BMC does not answer".into()));
    assert_eq!(room.state(1), State::Failed);
    assert_eq!(room.after(5), [ask(1, 2)]);
    room.engine.take(Input::Power { mac: mac(1), tries: 1, answer: Answer::IsOff }, at(room.now));
    assert_eq!(room.poll(), []);
    room.answer(1, Answer::IsOff);
    room.answer(1, Answer::Done);
    room.hear(1, Stage::Discover);
    let id = room.events;
    room.events = id - 1;
    room.heard(1, Stage::Failed, None, Some("told twice"));
    assert_eq!(room.state(1), State::Booting);
}

#[test]
fn so_many_at_a_time_as_asked_for_and_as_the_links_carry() {
    let mut room = Room::new(Terms { at_a_time: Some(3), ..terms() }, (1..=6).map(member));
    room.places = Places { most: Some(4), under_way: 2 };
    assert_eq!(room.poll(), [ask(1, 1), ask(2, 1)], "two places are others'");
    room.places = Places { most: Some(4), under_way: 0 };
    assert_eq!(room.poll(), [ask(3, 1)], "three at a time");
    room.places = Places::default();
    room.boots(1);
    assert_eq!(room.poll(), [], "it is not through");
    assert_eq!(room.after(30), [ask(4, 1)]);
    assert_eq!(room.pins, [1, 2, 3, 4].map(mac), "others keep what they boot");
}

#[test]
fn canaries_go_first_and_one_that_fails_stops_the_launch() {
    let canary = |n| Member { canary: true, ..member(n) };
    let mut room = Room::new(Terms { canary: 2, tries: 1, ..terms() }, [canary(1), canary(2), member(3)]);
    assert_eq!(room.poll(), [ask(1, 1), ask(2, 1)]);
    room.boots(1);
    room.after(30);
    assert_eq!(room.state(3), State::Waiting);
    room.answer(2, Answer::Failed("401".into()));
    assert_eq!(room.state(3), State::Waiting);
    let (outcome, words) = room.verdict();
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(
        words,
        "n2, of those that go first, was set aside: 1 of 3 machines are healthy, 1 set aside, 1 never begun"
    );
    let mut room = Room::new(Terms { canary: 1, ..terms() }, [canary(1), member(2), member(3)]);
    room.poll();
    room.boots(1);
    assert_eq!(room.after(30), [ask(2, 1), ask(3, 1)]);
}

#[test]
fn too_many_that_fail_stop_the_launch_and_those_that_boot_are_watched_to_their_end() {
    let limited = Terms { max_failed: Some(Limit::Percent(25)), at_a_time: Some(3), tries: 1, ..terms() };
    let mut room = Room::new(limited, (1..=4).map(member));
    assert_eq!(room.poll().len(), 3);
    room.answer(1, Answer::Failed("x".into()));
    assert_eq!(room.engine.launch().phase, Phase::Running, "one of four is allowed");
    room.boots(3);
    room.answer(2, Answer::Failed("x".into()));
    assert_eq!(room.engine.launch().phase, Phase::Stopping);
    room.after(30);
    assert_eq!(room.state(3), State::Healthy);
    // The fourth had begun when the first was set aside.
    room.answer(4, Answer::IsOff);
    room.answer(4, Answer::Done);
    room.after(300);
    let (outcome, words) = room.verdict();
    assert!(
        outcome == Outcome::Stopped
            && words.starts_with("2 machines were set aside, and --max-failed is 25%")
    );
}

#[test]
fn a_deadline_ends_it_and_says_how_far_each_was() {
    let mut room =
        Room::new(Terms { deadline: Some(at(100)), at_a_time: Some(2), ..terms() }, (1..=3).map(member));
    room.poll();
    room.answer(1, Answer::IsOff);
    room.answer(1, Answer::Done);
    room.hear(1, Stage::Kernel);
    room.answer(2, Answer::IsOn);
    room.after(100);
    assert_eq!(room.cause(1), "the deadline passed, at kernel");
    assert_eq!(room.state(2), State::Powering, "its power is being switched off");
    assert!(!room.engine.is_over());
    assert_eq!(room.answer(2, Answer::Done), [switch(2, 1, true)], "it is not left off");
    room.answer(2, Answer::Done);
    assert_eq!(room.state(2), State::SetAside);
    assert_eq!(
        room.verdict(),
        (Outcome::Deadline, "the deadline passed: 0 of 3 machines are healthy, 2 set aside, 1 never begun")
    );
}

#[test]
fn who_cancels_is_named() {
    let mut room = Room::new(terms(), [member(1)]);
    room.poll();
    room.engine.take(Input::Cancel { by: "anna".into() }, at(1));
    room.poll();
    assert_eq!(room.cause(1), "cancelled by anna, while its power was asked");
    assert_eq!(room.verdict().0, Outcome::Cancelled);
}

#[test]
fn a_machine_without_power_is_waited_for_and_takes_no_place() {
    let by_hand = |n| Member { reach: Reach::None, ..member(n) };
    let mut room = Room::new(Terms { at_a_time: Some(1), ..terms() }, [by_hand(1), by_hand(2), member(3)]);
    assert_eq!(room.poll(), [ask(3, 1)]);
    assert_eq!(room.pins, [1, 2, 3].map(mac));
    room.after(100_000);
    room.hear(1, Stage::Image);
    assert_eq!(room.engine.member(mac(1)).unwrap().stage, None, "that is what it ran before");
    room.hear(1, Stage::Discover);
    room.heard(1, Stage::Failed, None, Some("no kernel"));
    assert_eq!(room.state(1), State::Failed);
    assert_eq!(room.after(5), [Command::BootAgain { mac: mac(1) }]);
    room.hear(1, Stage::Discover);
    room.heard(1, Stage::Failed, None, Some("no kernel"));
    assert_eq!((room.state(1), room.cause(1)), (State::SetAside, "no kernel".into()));
    // One that reboots by itself needs nobody to tell it.
    room.hear(2, Stage::Discover);
    room.heard(2, Stage::Failed, None, Some("no kernel"));
    room.hear(2, Stage::Discover);
    assert_eq!((room.state(2), room.tries(2)), (State::Booting, 2));
}

#[test]
fn a_machine_that_can_only_be_woken_is_woken() {
    let mut room = Room::new(terms(), [Member { reach: Reach::Wake, ..member(1) }]);
    assert_eq!(room.poll(), [switch(1, 1, true)]);
    room.answer(1, Answer::Done);
    room.after(300);
    assert!(
        room.cause(1).contains("it was woken") && room.cause(1).contains("restarted"),
        "{}",
        room.cause(1)
    );
    assert_eq!(room.after(5), [switch(1, 2, true), Command::BootAgain { mac: mac(1) }]);
}

#[test]
fn an_image_with_a_health_check_says_itself_when_it_is_healthy() {
    let checked = |n| Member { judged: Judged::HealthCheck, ..member(n) };
    let mut room = Room::new(Terms { tries: 1, ..terms() }, [checked(1), checked(2)]);
    room.poll();
    room.boots(1);
    room.boots(2);
    room.after(60);
    assert_eq!(room.state(1), State::Booting);
    room.heard(1, Stage::Workload, Some("healthy, 61.0 s after its kernel"), None);
    assert_eq!(room.state(1), State::Healthy);
    room.heard(2, Stage::Workload, Some("unhealthy"), Some("exit code 1"));
    assert_eq!(room.state(2), State::Booting, "it may recover");
    room.after(240);
    assert_eq!(room.cause(2), "its workload is unhealthy: exit code 1");
}

#[test]
fn a_url_is_asked_until_it_answers_or_patience_ends() {
    let asked = |n| Member { judged: Judged::Url, ..member(n) };
    let mut room = Room::new(Terms { tries: 1, patience: 10, ..terms() }, [asked(1), asked(2)]);
    room.poll();
    room.answer(1, Answer::IsOff);
    room.answer(1, Answer::Done);
    room.hear(1, Stage::Discover);
    let check = |n| Command::Check { mac: mac(n), tries: 1 };
    assert_eq!(room.hear(1, Stage::Workload), [check(1)]);
    assert_eq!(room.checked(1, Err("connection refused")), []);
    assert_eq!(room.after(1), []);
    assert_eq!(room.after(1), [check(1)]);
    room.checked(1, Ok(()));
    assert_eq!(room.state(1), State::Healthy);
    room.boots(2);
    room.checked(2, Err("connection refused"));
    room.after(2);
    room.after(8);
    assert_eq!(room.cause(2), "its workload is not healthy 10 s after it came up: connection refused");
}

#[test]
fn a_workload_that_ends_or_a_machine_that_begins_anew_is_not_healthy() {
    let mut room = Room::new(Terms { tries: 1, ..terms() }, [member(1), member(2), member(3)]);
    room.poll();
    (1..=3).for_each(|n| room.boots(n));
    room.now += 10;
    room.heard(1, Stage::Failed, None, Some("its workload ended with exit code 1"));
    room.hear(2, Stage::Discover);
    // Its system asks for an address, too.
    room.events += 1;
    let system = Heard {
        id: room.events,
        mac: mac(3),
        time: at(10),
        stage: Stage::Discover,
        by_firmware: false,
        late: false,
        detail: None,
        cause: None,
    };
    room.engine.take(Input::Event(system), at(10));
    assert_eq!(room.cause(1), "its workload ended with exit code 1");
    assert_eq!(room.cause(2), "it began anew 10 s after its workload came up");
    room.after(20);
    assert_eq!(room.state(3), State::Healthy);
}

#[test]
fn after_a_crash_power_is_asked_before_anything_is_done_about_it() {
    let stored =
        |room: &Room| (room.engine.launch().clone(), room.engine.members().cloned().collect::<Vec<_>>());
    let resumed = |room: &Room, now| {
        let (launch, members) = stored(room);
        Engine::resume(launch, members, at(now))
    };
    let mut room = Room::new(terms(), [member(1)]);
    room.poll();
    room.answer(1, Answer::IsOn);
    room.engine = resumed(&room, 1);
    assert_eq!(room.poll(), [ask(1, 1)], "it was to be switched off, and perhaps was");
    assert_eq!(room.answer(1, Answer::IsOff), [switch(1, 1, true)]);
    room.engine = resumed(&room, 2);
    assert_eq!(room.poll(), [ask(1, 1)], "it was to be switched on, and perhaps was");
    assert_eq!(room.answer(1, Answer::IsOn), [], "it was");
    assert_eq!(room.state(1), State::Booting);
    room.engine = resumed(&room, 3);
    assert_eq!(room.poll(), [], "nothing is in flight");
    assert_eq!(room.engine.next_timeout(), Some(at(300)));
}
