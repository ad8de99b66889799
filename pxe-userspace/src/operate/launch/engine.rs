//! How a launch goes: from what is heard of its machines to what is done about them. Pure.
//!
//! Whoever drives it hands it inputs and the time ([`Engine::take`]), then asks what follows ([`Engine::poll`]). An
//! [`Output`] is stored first, and its commands are performed after that: a command that was ever performed is in the
//! store as intended. A daemon that was killed does not know whether an intended power action was performed. So
//! [`Engine::resume`] asks whether the machine is on, and goes on from the answer. That is why a machine is never
//! "cycled": it is switched off, and then on, each of which shows.

mod judge;
mod power;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;

use super::model::{
    Changed, Judged, Launch, MachineChange, Member, Outcome, Phase, Reach, State, Step, Verdict,
};
use crate::base::text::word;
use crate::config::nodes::Launched;

/// How long a workload runs until its machine is taken for healthy, where nothing else tells.
pub const RUNS_FOR: Duration = Duration::from_secs(30);

/// Between a try that failed and the next one. Some BMCs need a moment.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Between an answer of a machine's URL and the next question.
pub const CHECK_EVERY: Duration = Duration::from_secs(2);

/// A boot of which nothing is heard for so long is stuck, also where the diagnosis has not said so.
pub const SILENT_FOR: Duration = Duration::from_secs(3600);

/// A launch that goes on.
#[derive(Debug)]
pub struct Engine {
    launch: Launch,
    members: BTreeMap<Mac, Member>,
    /// The machines in the order of their turns.
    order: Vec<Mac>,
    /// What was said of machines whose health is asked.
    checks: BTreeMap<Mac, judge::Check>,
    out: Output,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The answer to a command of this try.
    Power {
        mac: Mac,
        tries: u32,
        answer: Answer,
    },
    Event(Heard),
    /// What the machine's URL said: nothing when it is well.
    Checked {
        mac: Mac,
        tries: u32,
        said: Result<(), String>,
    },
    /// Somebody ends the launch.
    Cancel {
        by: String,
    },
    /// Something may be due.
    Look,
}

/// The answer to a power command.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    IsOn,
    IsOff,
    /// Nobody says whether it is on.
    Unknown,
    /// It was switched.
    Done,
    /// It is not known what it did, and why.
    Failed(String),
}

/// An event of the timeline, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    pub id: u64,
    pub mac: Mac,
    pub time: Timestamp,
    pub stage: Stage,
    /// Of a DISCOVER: firmware or a loader sent it.
    pub by_firmware: bool,
    /// It was told after later ones.
    pub late: bool,
    pub detail: Option<String>,
    pub cause: Option<String>,
}

/// What is to be done. Each is answered by an [`Input`], but for `BootAgain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ask whether the machine is on.
    Ask { mac: Mac, tries: u32 },
    /// Switch it on, or off at once.
    Switch { mac: Mac, tries: u32, on: bool },
    /// Tell a machine that waits after its boot failed to boot again, if it does.
    BootAgain { mac: Mac },
    /// Ask the launch's URL of it.
    Check { mac: Mac, tries: u32 },
}

/// What follows: first stored, then performed.
#[derive(Debug, Default)]
pub struct Output {
    /// The launch itself has changed.
    pub launch: bool,
    /// Machines that have changed.
    pub members: BTreeSet<Mac>,
    /// What machines boot from now on.
    pub pins: Vec<(Mac, Option<Launched>)>,
    /// For people who watch.
    pub events: Vec<Changed>,
    pub commands: Vec<Command>,
}

impl Output {
    pub fn is_empty(&self) -> bool {
        let Self { launch, members, pins, events, commands } = self;
        !launch && members.is_empty() && pins.is_empty() && events.is_empty() && commands.is_empty()
    }
}

/// How many boots the links carry ([`crate::machines::pacing`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    /// `None` when it is not limited.
    pub most: Option<usize>,
    /// Boots that have a place, from their DISCOVER on.
    pub under_way: usize,
}

impl Engine {
    /// A launch that is stored, and of which nothing was done yet. The order of `members` is that of their turns.
    pub fn new(launch: Launch, members: Vec<Member>) -> Self {
        let order = members.iter().map(|member| member.mac).collect();
        let members = members.into_iter().map(|member| (member.mac, member)).collect();
        Self { launch, members, order, checks: BTreeMap::new(), out: Output::default() }
    }

    /// A launch as an earlier daemon left it.
    pub fn resume(launch: Launch, members: Vec<Member>, now: Timestamp) -> Self {
        let mut engine = Self::new(launch, members);
        for mac in engine.order.clone() {
            engine.settle(mac);
            engine.judge_again(mac, now);
        }
        engine
    }

    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The machines in the order of their turns.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.order.iter().map(|mac| &self.members[mac])
    }

    pub fn member(&self, mac: Mac) -> Option<&Member> {
        self.members.get(&mac)
    }

    pub fn is_over(&self) -> bool {
        self.launch.phase == Phase::Ended
    }

    /// Takes what happened.
    pub fn take(&mut self, input: Input, now: Timestamp) {
        if self.is_over() {
            return;
        }
        match input {
            Input::Power { mac, tries, answer } => {
                if self.members.get(&mac).is_some_and(|member| member.tries == tries) {
                    self.answered(mac, answer, now);
                }
            }
            Input::Event(heard) => {
                if heard.id > self.launch.seen && self.members.contains_key(&heard.mac) {
                    self.launch.seen = heard.id;
                    self.out.launch = true;
                    self.heard(&heard);
                }
            }
            Input::Checked { mac, tries, said } => {
                if self.members.get(&mac).is_some_and(|member| member.tries == tries) {
                    self.checked(mac, said, now);
                }
            }
            Input::Cancel { by } => {
                self.end(Outcome::Cancelled, &format!("cancelled by {by}"), now);
            }
            Input::Look => {}
        }
    }

    /// Does what is due now, and returns everything since the last call.
    pub fn poll(&mut self, places: Places, now: Timestamp) -> Output {
        if !self.is_over() {
            if self.launch.terms.deadline.is_some_and(|deadline| deadline <= now) {
                self.end(Outcome::Deadline, "the deadline passed", now);
            }
            for mac in self.order.clone() {
                self.due(mac, now);
            }
            self.begin(places, now);
            self.finish(now);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`poll`](Self::poll) has something to do at the latest.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        if self.is_over() {
            return None;
        }
        let deadline = self.launch.terms.deadline.filter(|_| self.launch.phase != Phase::Ending);
        self.members.keys().filter_map(|mac| self.due_at(*mac)).chain(deadline).min()
    }

    /// Whether a machine waits for a place, which may become free at any time.
    pub fn waits_for_place(&self) -> bool {
        self.launch.phase == Phase::Running && self.members.values().any(|m| m.state == State::Waiting)
    }

    fn due_at(&self, mac: Mac) -> Option<Timestamp> {
        let member = &self.members[&mac];
        match member.state {
            State::Failed => Some(after(member.since, RETRY_AFTER)),
            State::Booting => self.judged_at(member),
            State::Waiting | State::Powering | State::Healthy | State::SetAside => None,
        }
    }

    fn due(&mut self, mac: Mac, now: Timestamp) {
        if self.due_at(mac).is_none_or(|due| due > now) {
            return;
        }
        match self.members[&mac].state {
            State::Failed => self.try_again(mac, now),
            State::Booting => self.judge(mac, now),
            State::Waiting | State::Powering | State::Healthy | State::SetAside => {}
        }
    }

    /// Begins machines whose turn it is.
    fn begin(&mut self, places: Places, now: Timestamp) {
        if self.launch.phase != Phase::Running || !self.waits_for_place() {
            return;
        }
        let all = || self.members.values();
        let canaries_are_well = all().all(|member| !member.canary || member.state == State::Healthy);
        let begun = |member: &&Member| {
            // One that nobody has switched on yet takes no place.
            let is_there = member.reach != Reach::None || member.stage.is_some();
            matches!(member.state, State::Powering | State::Booting | State::Failed) && is_there
        };
        let coming = all().filter(begun).filter(|m| m.stage.is_none() && m.reach != Reach::None).count();
        let most = self.launch.terms.at_a_time.map_or(usize::MAX, |most| most as usize);
        let mut free = most.saturating_sub(all().filter(begun).count());
        let carried = places.most.map_or(usize::MAX, |most| most.saturating_sub(places.under_way + coming));
        free = free.min(carried);
        let turn = |member: &&Member| member.state == State::Waiting && (canaries_are_well || member.canary);
        let turns: Vec<Mac> = self.members().filter(turn).map(|member| member.mac).collect();
        for mac in turns {
            if self.members[&mac].reach == Reach::None {
                self.try_again(mac, now);
            } else if free > 0 {
                free -= 1;
                self.try_again(mac, now);
            }
        }
    }

    /// The machine is to be set aside, or tried again later.
    fn failed(&mut self, mac: Mac, cause: String, now: Timestamp) {
        let again = self.launch.phase == Phase::Running && self.members[&mac].tries < self.launch.terms.tries;
        self.checks.remove(&mac);
        self.change(mac, now, |member| {
            member.state = if again { State::Failed } else { State::SetAside };
            (member.step, member.cause) = (None, Some(cause));
        });
        if !again {
            self.is_too_much(mac, now);
        }
    }

    /// A machine was set aside: are there too many of them?
    fn is_too_much(&mut self, mac: Mac, now: Timestamp) {
        if self.launch.phase != Phase::Running {
            return;
        }
        let member = &self.members[&mac];
        let aside = self.members.values().filter(|member| member.state == State::SetAside).count();
        let limit = self.launch.terms.max_failed;
        let words = if member.canary {
            format!("{}, of those that go first, was set aside", member.name)
        } else if limit.is_some_and(|limit| aside > limit.of(self.members.len())) {
            let limit = limit.expect("it was passed");
            format!("{aside} machines were set aside, and --max-failed is {limit}")
        } else {
            return;
        };
        self.launch.verdict = Some(Verdict { outcome: Outcome::Stopped, words, time: now });
        self.enter(Phase::Stopping);
        let waiting_to_retry: Vec<Mac> =
            self.members.values().filter(|m| m.state == State::Failed).map(|m| m.mac).collect();
        for mac in waiting_to_retry {
            self.change(mac, now, |member| member.state = State::SetAside);
        }
    }

    /// Ends the launch whatever is missing, as soon as no power action is in flight.
    fn end(&mut self, outcome: Outcome, words: &str, now: Timestamp) {
        if !matches!(self.launch.phase, Phase::Running | Phase::Stopping) {
            return;
        }
        self.launch.verdict = Some(Verdict { outcome, words: words.to_owned(), time: now });
        self.enter(Phase::Ending);
        for mac in self.order.clone() {
            let member = &self.members[&mac];
            let switched = matches!(member.step, Some(Step::Off | Step::On));
            if matches!(member.state, State::Powering | State::Booting | State::Failed) && !switched {
                self.leave(mac, now);
            }
        }
    }

    /// Sets a machine aside because the launch ends.
    fn leave(&mut self, mac: Mac, now: Timestamp) {
        let why = self.launch.verdict.as_ref().map_or("the launch ended", |verdict| &verdict.words);
        let member = &self.members[&mac];
        let at = match (member.state, member.stage) {
            (State::Failed, _) => "between two tries".to_owned(),
            (State::Booting, Some(stage)) => format!("at {}", word(stage)),
            (State::Booting, None) if member.reach == Reach::None => {
                "before anybody switched it on".to_owned()
            }
            (State::Booting, None) => "before it asked for an address".to_owned(),
            _ => "while its power was asked".to_owned(),
        };
        let before = member.cause.as_ref().map_or_else(String::new, |cause| format!("; before, {cause}"));
        let cause = format!("{why}, {at}{before}");
        self.checks.remove(&mac);
        self.change(mac, now, |member| {
            (member.state, member.step, member.cause) = (State::SetAside, None, Some(cause));
        });
    }

    /// Ends the launch when nothing more can happen in it.
    fn finish(&mut self, now: Timestamp) {
        let is_open = |m: &Member| matches!(m.state, State::Powering | State::Booting | State::Failed);
        if self.members.values().any(is_open) || self.waits_for_place() {
            return;
        }
        let count = |state| self.members.values().filter(|member| member.state == state).count();
        let (all, healthy, aside) = (self.members.len(), count(State::Healthy), count(State::SetAside));
        let sums = match (all - healthy - aside, aside) {
            (0, 0) => format!("all {all} machines are healthy"),
            (0, aside) => format!("{healthy} of {all} machines are healthy, {aside} set aside"),
            (waiting, aside) => {
                format!("{healthy} of {all} machines are healthy, {aside} set aside, {waiting} never begun")
            }
        };
        let before = self.launch.verdict.take();
        let verdict = match before {
            Some(Verdict { outcome, words, time }) => {
                Verdict { outcome, words: format!("{words}: {sums}"), time }
            }
            None => {
                let outcome = if healthy == all { Outcome::Healthy } else { Outcome::Failed };
                Verdict { outcome, words: sums, time: now }
            }
        };
        self.launch.verdict = Some(verdict);
        self.enter(Phase::Ended);
    }

    fn enter(&mut self, phase: Phase) {
        self.launch.phase = phase;
        self.out.launch = true;
        self.out.events.push(Changed::Phase { phase, verdict: self.launch.verdict.clone() });
    }

    /// Changes a machine, and has the change stored and told.
    fn change(&mut self, mac: Mac, now: Timestamp, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.members.get_mut(&mac) else { return };
        let before = (member.state, MachineChange::from(&*member));
        change(member);
        if member.state != before.0 {
            member.since = now;
        }
        self.out.members.insert(mac);
        let change = MachineChange::from(&*member);
        if change != before.1 {
            self.out.events.push(Changed::Machine(change));
        }
    }

    fn command(&mut self, command: Command) {
        self.out.commands.push(command);
    }

    fn judged_by_url(&self, mac: Mac) -> bool {
        matches!(self.members[&mac].judged, Judged::Url | Judged::UrlFromKernel)
    }
}

fn after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
