//! A try: what is asked of a machine's power, one step after the other. Pure.
//!
//! ```text
//!              is off
//!   Ask ------------------------> On --> booting
//!    | is on                      ^
//!    +--------------> Off --------+
//!    | is on, and runs the target already
//!    +---------------------------------> booting, at its workload
//! ```

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;

use super::super::model::{Phase, Reach, State, Step};
use super::{Answer, Command, Engine};

impl Engine {
    /// The next try, which may be the first.
    pub(super) fn try_again(&mut self, mac: Mac, now: Timestamp) {
        let member = &self.members[&mac];
        let (reach, again) = (member.reach, member.tries > 0);
        let settled = member.runs && !again && reach != Reach::Full;
        if !member.assigned {
            let target = member.target.clone();
            self.out.pins.push((mac, target));
        }
        self.change(mac, now, |member| {
            (member.assigned, member.tries) = (true, member.tries + 1);
            (member.stage, member.heard, member.up) = (None, None, None);
            (member.state, member.step) = match reach {
                Reach::Full => (State::Powering, Some(Step::Ask)),
                Reach::Wake if !settled => (State::Powering, Some(Step::On)),
                Reach::Wake | Reach::None => (State::Booting, None),
            };
        });
        let tries = self.members[&mac].tries;
        match reach {
            _ if settled => self.runs(mac, now),
            Reach::Full => self.command(Command::Ask { mac, tries }),
            Reach::Wake => self.command(Command::Switch { mac, tries, on: true }),
            Reach::None => {}
        }
        // One that waits in stage 1 since its boot failed needs no power.
        if again && reach != Reach::Full {
            self.command(Command::BootAgain { mac });
        }
    }

    /// An earlier daemon may have performed the step that was intended, or not.
    pub(super) fn settle(&mut self, mac: Mac) {
        let member = &self.members[&mac];
        let (tries, reach) = (member.tries, member.reach);
        if member.step.is_none() {
            return;
        }
        self.command(match reach {
            // Nothing says whether it is on. Waking a machine that is on does nothing.
            Reach::Wake => Command::Switch { mac, tries, on: true },
            Reach::Full | Reach::None => Command::Ask { mac, tries },
        });
    }

    pub(super) fn answered(&mut self, mac: Mac, answer: Answer, now: Timestamp) {
        let Some(step) = self.members[&mac].step else { return };
        match (step, answer) {
            (_, Answer::Failed(cause)) => self.not_powered(mac, cause, now),
            (Step::Ask, Answer::IsOn) if self.runs_the_target(mac) => self.runs(mac, now),
            // What is off can be switched off.
            (Step::Ask | Step::Off, Answer::IsOn | Answer::Unknown) => self.step(mac, Step::Off, now),
            (Step::Ask | Step::Off, Answer::IsOff) | (Step::Off, Answer::Done) => {
                self.step(mac, Step::On, now);
            }
            // Only after a restart is that asked.
            (Step::On, Answer::Unknown) => {
                let words = "whether it was switched on is not known: the daemon was ended meanwhile, and nothing says";
                self.not_powered(mac, words.to_owned(), now);
            }
            (Step::On, Answer::IsOff) => self.step(mac, Step::On, now),
            (Step::On, Answer::Done | Answer::IsOn) => self.is_on(mac, now),
            // Nothing was switched.
            (Step::Ask, Answer::Done) => {}
        }
    }

    fn runs_the_target(&self, mac: Mac) -> bool {
        let member = &self.members[&mac];
        member.runs && member.tries == 1
    }

    /// Has the step stored as intended, and then performed.
    fn step(&mut self, mac: Mac, step: Step, now: Timestamp) {
        self.change(mac, now, |member| member.step = Some(step));
        let tries = self.members[&mac].tries;
        self.command(Command::Switch { mac, tries, on: step == Step::On });
    }

    fn is_on(&mut self, mac: Mac, now: Timestamp) {
        if self.launch.phase == Phase::Ending {
            self.change(mac, now, |member| (member.state, member.step) = (State::Booting, None));
            return self.leave(mac, now);
        }
        self.change(mac, now, |member| (member.state, member.step) = (State::Booting, None));
        // Its DISCOVER may have come before its BMC's answer.
        self.judge_again(mac, now);
    }

    /// It has run the target since before the launch.
    fn runs(&mut self, mac: Mac, now: Timestamp) {
        self.change(mac, now, |member| {
            (member.state, member.step) = (State::Booting, None);
            (member.stage, member.heard, member.up) = (Some(Stage::Workload), Some(now), Some(now));
        });
        self.judge_again(mac, now);
    }

    fn not_powered(&mut self, mac: Mac, cause: String, now: Timestamp) {
        if self.launch.phase == Phase::Ending {
            self.change(mac, now, |member| member.cause = Some(cause));
            return self.leave(mac, now);
        }
        self.failed(mac, cause, now);
    }
}
