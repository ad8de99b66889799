//! A machine that is on: how far it is, and whether it is healthy. Pure.

use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::stage::Stage;

use super::super::model::{Judged, Member, Reach, State, Step};
use super::{CHECK_EVERY, Command, Engine, Heard, RUNS_FOR, SILENT_FOR, after};
use crate::base::text::word;

/// What a node's report of its health begins with (pxe-init's `boot.rs`).
const HEALTHY: &str = "healthy";

/// A machine whose health is asked.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// When it is asked next; `None` while it is being asked.
    next: Option<Timestamp>,
    /// What was wrong the last time.
    last: Option<String>,
}

impl Engine {
    /// An event of the timeline.
    pub(super) fn heard(&mut self, heard: &Heard) {
        let Heard { mac, time, stage, .. } = *heard;
        let member = &self.members[&mac];
        let listens = match (member.state, member.step) {
            (State::Booting, _) | (State::Powering, Some(Step::On)) => true,
            // One that nobody can switch off goes on by itself.
            (State::Failed, _) => member.reach != Reach::Full && stage == Stage::Discover,
            (State::Waiting | State::Powering | State::Healthy | State::SetAside, _) => false,
        };
        // What is heard of a machine before its loader may be of the boot before. A kernel's DHCP events may be told late.
        let is_first = match member.reach {
            Reach::Full => stage <= Stage::Initrd,
            Reach::Wake | Reach::None => matches!(stage, Stage::Discover | Stage::Loader | Stage::Config),
        };
        // An operating system asks for its address, too.
        if stage == Stage::Discover && !heard.by_firmware && (member.stage.is_none() || member.up.is_some()) {
            return;
        }
        if !listens || heard.late || stage == Stage::Warning || (member.stage.is_none() && !is_first) {
            return;
        }
        if member.state == State::Failed {
            self.change(mac, time, |member| {
                (member.state, member.tries) = (State::Booting, member.tries + 1);
                (member.heard, member.up) = (None, None);
            });
        }
        match stage {
            Stage::Failed => {
                let cause = heard.cause.clone().unwrap_or_else(|| "its boot failed".to_owned());
                self.failed(mac, cause, time);
            }
            Stage::Discover if self.members[&mac].up.is_some() => {
                let up = self.members[&mac].up.unwrap_or(time);
                let ran = time.duration_since(up).as_secs().max(0);
                self.failed(mac, format!("it began anew {ran} s after its workload came up"), time);
            }
            // The rest: a step of its boot.
            _ => self.reached(heard),
        }
    }

    fn reached(&mut self, heard: &Heard) {
        let Heard { mac, time, stage, .. } = *heard;
        let member = &self.members[&mac];
        let is_up = stage == Stage::Workload
            || member.judged == Judged::UrlFromKernel && matches!(stage, Stage::Kernel | Stage::Initrd);
        let first = is_up && member.up.is_none();
        self.change(mac, time, |member| {
            (member.stage, member.heard) = (Some(stage), Some(time));
            member.up = member.up.or(is_up.then_some(time));
        });
        if first {
            self.judge_again(mac, time);
        }
        if stage == Stage::Workload && self.members[&mac].judged == Judged::HealthCheck {
            let says = heard.detail.as_deref().unwrap_or_default();
            match heard.cause.clone() {
                // One that is unhealthy may recover.
                Some(cause) => self.checks.entry(mac).or_default().last = Some(cause),
                None if says.split(',').next() == Some(HEALTHY) => self.is_healthy(mac, time),
                None => {}
            }
        }
    }

    /// Begins to ask for the machine's health, where it is on and its workload is up.
    pub(super) fn judge_again(&mut self, mac: Mac, now: Timestamp) {
        let member = &self.members[&mac];
        if member.state == State::Booting && member.up.is_some() && self.judged_by_url(mac) {
            self.checks.insert(mac, Check { next: Some(now), last: None });
        }
    }

    /// When a machine that is on is to be looked at.
    pub(super) fn judged_at(&self, member: &Member) -> Option<Timestamp> {
        let patience = Duration::from_secs(self.launch.terms.patience);
        let Some(up) = member.up else {
            return match member.stage {
                // Nobody knows when somebody comes to switch it on.
                None if member.reach == Reach::None => None,
                None => Some(after(member.since, patience)),
                Some(_) => Some(after(member.heard.unwrap_or(member.since), SILENT_FOR)),
            };
        };
        match member.judged {
            Judged::Workload => Some(after(up, RUNS_FOR)),
            // It said what it had to say before the launch.
            Judged::HealthCheck if self.ran_before(member) => Some(after(up, RUNS_FOR)),
            Judged::HealthCheck => Some(after(up, patience)),
            Judged::Url | Judged::UrlFromKernel => {
                let asked = self.checks.get(&member.mac).and_then(|check| check.next);
                Some(after(up, patience)).into_iter().chain(asked).min()
            }
        }
    }

    fn ran_before(&self, member: &Member) -> bool {
        member.runs && member.tries == 1
    }

    /// It is time to look at a machine that is on.
    pub(super) fn judge(&mut self, mac: Mac, now: Timestamp) {
        let member = &self.members[&mac];
        let (tries, patience) = (member.tries, Duration::from_secs(self.launch.terms.patience));
        let Some(up) = member.up else {
            let cause = self.not_there(member, now);
            return self.failed(mac, cause, now);
        };
        let said = self.checks.get(&mac).and_then(|check| check.last.clone());
        let late = after(up, patience) <= now;
        match member.judged {
            Judged::Workload => self.is_healthy(mac, now),
            Judged::HealthCheck => match (self.ran_before(member), said) {
                (true, None) => self.is_healthy(mac, now),
                (_, Some(said)) => self.failed(mac, format!("its workload is unhealthy: {said}"), now),
                (false, None) => {
                    let seconds = patience.as_secs();
                    let words =
                        format!("its image's health check has not succeeded within {seconds} s of its start");
                    self.failed(mac, words, now);
                }
            },
            Judged::Url | Judged::UrlFromKernel if late => {
                let said = said.unwrap_or_else(|| "it was not asked yet".to_owned());
                let words =
                    format!("its workload is not healthy {} s after it came up: {said}", patience.as_secs());
                self.failed(mac, words, now);
            }
            Judged::Url | Judged::UrlFromKernel => {
                self.checks.entry(mac).or_default().next = None;
                self.command(Command::Check { mac, tries });
            }
        }
    }

    fn not_there(&self, member: &Member, now: Timestamp) -> String {
        let seconds = now.duration_since(member.since).as_secs().max(0);
        match (member.stage, member.reach) {
            (Some(stage), _) => {
                let heard = now.duration_since(member.heard.unwrap_or(member.since)).as_secs();
                format!("nothing was heard of it for {heard} s after {}", word(stage))
            }
            (None, Reach::Wake) => format!(
                "it was woken, and no DISCOVER arrived within {seconds} s: it is on already, and has to be restarted, or it has \
                 no link, or does not boot from the network"
            ),
            (None, _) => format!(
                "it was powered on, and no DISCOVER arrived within {seconds} s: look at its network cable and card, and \
                 whether it boots from the network first"
            ),
        }
    }

    /// The machine's URL has answered.
    pub(super) fn checked(&mut self, mac: Mac, said: Result<(), String>, now: Timestamp) {
        let member = &self.members[&mac];
        if member.state != State::Booting || member.up.is_none() {
            return;
        }
        match said {
            Ok(()) => self.is_healthy(mac, now),
            Err(said) => {
                let next = Some(after(now, CHECK_EVERY));
                self.checks.insert(mac, Check { next, last: Some(said) });
            }
        }
    }

    fn is_healthy(&mut self, mac: Mac, now: Timestamp) {
        self.checks.remove(&mac);
        self.change(mac, now, |member| (member.state, member.cause) = (State::Healthy, None));
    }
}
