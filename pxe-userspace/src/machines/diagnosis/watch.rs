//! The boots of all machines: which one gave up, and why.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::boot::{BEGAN_ANEW, NOT_LOADED, NOTHING_HEARD, since};
use super::{Boot, Cause, End, Kind, Note, Pace, diagnose};
use crate::base::schema;
use crate::base::text::{self, word};
use crate::machines::event::Event;

/// Machines whose boots are remembered.
const MACHINES_MAX: usize = 16_384;

/// A machine that asks again sooner has not rebooted: it is a ROM's second DISCOVER, or a load generator.
const REBOOTS_AFTER: Duration = Duration::from_secs(1);
/// Between DISCOVERs of one attempt: EDK2's longest wait is 32 s.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);

/// Every machine's last boot.
#[derive(Debug, Default)]
pub struct Watch {
    machines: HashMap<Mac, Seen>,
    pace: Pace,
    /// Boots that failed, by the first cause.
    failures: BTreeMap<Kind, u64>,
}

#[derive(Debug)]
struct Seen {
    boot: Boot,
    before: Option<Past>,
}

/// Why a loader could not load what it was told to.
pub struct NotLoaded {
    pub words: String,
    /// It was another cause before, or none.
    pub news: bool,
}

/// How a boot stands, and why: what `bridgehead why` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Why {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(with = "text::mac")]
    #[schemars(with = "schema::Mac")]
    pub mac: Mac,
    #[serde(serialize_with = "text::micros")]
    pub began: Timestamp,
    /// The last sign of life.
    #[serde(serialize_with = "text::micros")]
    pub last: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    pub failed: bool,
    /// It went as far as can be seen from here.
    pub done: bool,
    /// The most likely first; empty when nothing is wrong.
    pub causes: Vec<Cause>,
    /// The boot before, when it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<Past>,
}

/// A boot that failed before the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Past {
    #[serde(serialize_with = "text::micros")]
    pub began: Timestamp,
    #[serde(serialize_with = "text::micros")]
    pub ended: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Stage>")]
    pub stage: Option<Stage>,
    pub causes: Vec<Cause>,
}

impl Watch {
    /// The machine asks for an address. If that ends an unfinished boot, returns the cause, for the
    /// timeline.
    pub fn asks(&mut self, mac: Mac, firmware: Option<Firmware>, now: Timestamp) -> Option<String> {
        let seen = self.machines.get_mut(&mac)?;
        if seen.boot.end.is_some() || seen.boot.is_done() || !begins_anew(&seen.boot, firmware, now) {
            return None;
        }
        let stage = seen.boot.last_stage()?;
        let words = self.give_up(mac, now)?;
        Some(format!("{BEGAN_ANEW} {}: {words}", word(stage)))
    }

    /// Machines that have not been heard of for too long, and why.
    pub fn silent(&mut self, now: Timestamp, heeded: impl Fn(Mac, Stage) -> bool) -> Vec<(Mac, String)> {
        let silent = self.machines.iter().filter(|(_, seen)| seen.boot.is_silent(now));
        let silent: Vec<_> = silent
            .filter_map(|(mac, seen)| {
                let stage = seen.boot.last_stage().filter(|stage| heeded(*mac, *stage))?;
                Some((*mac, stage, since(seen.boot.last, now).as_secs()))
            })
            .collect();
        let say = |(mac, stage, seconds): (Mac, Stage, u64)| {
            let words = self.give_up(mac, now)?;
            Some((mac, format!("{NOTHING_HEARD} {seconds} s after {}: {words}", word(stage))))
        };
        silent.into_iter().filter_map(say).collect()
    }

    /// Takes an event of the timeline. Whether the machine's boot has failed, also after it.
    pub fn reached(&mut self, event: &Event) -> bool {
        if self.machines.len() >= MACHINES_MAX && !self.machines.contains_key(&event.mac) {
            self.forget_some();
        }
        let Self { machines, pace, failures } = self;
        let new = || Seen { boot: Boot::new(event.time), before: None };
        let seen = machines.entry(event.mac).or_insert_with(new);
        // Before it has an address, firmware that was refused one asks again.
        let over = seen.boot.end.is_some() && seen.boot.has(Stage::Ack) || seen.boot.is_done();
        if event.stage == Stage::Discover && (over || begins_anew(&seen.boot, event.firmware, event.time)) {
            let boot = std::mem::replace(&mut seen.boot, Boot::new(event.time));
            seen.before = past(boot, pace);
        }
        let boot = &mut seen.boot;
        let first = !boot.has(event.stage);
        let counted = boot.end.is_some();
        boot.reached(event);
        if event.stage == Stage::Failed {
            if let Some(cause) = diagnose(boot, pace, event.time).first().filter(|_| !counted) {
                *failures.entry(cause.kind).or_default() += 1;
            }
        } else if first {
            pace.reached(boot, event.stage);
        }
        if boot.is_done() {
            boot.forget_notes();
        }
        boot.end.is_some()
    }

    /// Whether the machine's boot has failed for this cause.
    pub fn has_said(&self, mac: Mac, cause: &str) -> bool {
        let end = self.machines.get(&mac).and_then(|seen| seen.boot.end.as_ref());
        end.is_some_and(|end| end.said.as_deref() == Some(cause))
    }

    /// The machine's loader says what it could not do. Its boot has failed with that, for the timeline, until it gets
    /// further. None of a machine that was never seen.
    pub fn not_loaded(&mut self, mac: Mac, note: Note, now: Timestamp) -> Option<NotLoaded> {
        let boot = &mut self.machines.get_mut(&mac)?.boot;
        let counted = boot.end.is_some();
        boot.noticed(now, note);
        boot.end = Some(End { time: now, said: None });
        let cause = diagnose(boot, &self.pace, now).into_iter().find(|cause| !cause.kind.is_harmless())?;
        if !counted {
            *self.failures.entry(cause.kind).or_default() += 1;
        }
        let words = format!("{NOT_LOADED}: {}", cause.words);
        let news = boot.not_loaded.as_ref() != Some(&words);
        boot.not_loaded = Some(words.clone());
        Some(NotLoaded { words, news })
    }

    /// Machines whose last boot has failed, and when.
    pub fn failed(&self) -> impl Iterator<Item = (Mac, Timestamp)> {
        self.machines.iter().filter_map(|(mac, seen)| Some((*mac, seen.boot.end.as_ref()?.time)))
    }

    /// Whether the machine's boot has not moved for longer than is usual.
    pub fn stands_still(&self, mac: Mac, now: Timestamp) -> bool {
        self.machines.get(&mac).is_some_and(|seen| !seen.boot.is_done() && seen.boot.is_stuck(now))
    }

    /// Adds an observation to a boot. It begins no new boot.
    pub fn noticed(&mut self, mac: Mac, note: Note, now: Timestamp) {
        if let Some(seen) = self.machines.get_mut(&mac) {
            seen.boot.noticed(now, note);
        }
    }

    /// The state of the machine's last boot; `None` if none was seen.
    pub fn why(&self, mac: Mac, now: Timestamp) -> Option<Why> {
        let Seen { boot, before } = self.machines.get(&mac)?;
        Some(Why {
            node: None,
            mac,
            began: boot.began,
            last: boot.last,
            stage: boot.last_stage(),
            failed: boot.end.is_some(),
            done: boot.end.is_none() && boot.is_done(),
            causes: diagnose(boot, &self.pace, now),
            before: before.clone(),
        })
    }

    /// The same, if the boot is in progress, failed, or had problems.
    pub fn notable(&self, mac: Mac, now: Timestamp) -> Option<Why> {
        self.why(mac, now).filter(|why| !why.done || !why.causes.is_empty())
    }

    /// All of these; the longest first.
    #[cfg(test)]
    pub(super) fn all(&self, now: Timestamp) -> Vec<Why> {
        let mut all: Vec<Why> = self.machines.keys().filter_map(|mac| self.notable(*mac, now)).collect();
        all.sort_by_key(|why| (why.began, why.mac));
        all
    }

    /// Every machine of which a boot was seen, in no order.
    pub fn machines(&self) -> Vec<Mac> {
        self.machines.keys().copied().collect()
    }

    /// File transfers in progress.
    pub fn transfers(&self) -> u64 {
        self.machines.values().map(|seen| u64::from(seen.boot.open)).sum()
    }

    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Boots that failed since the start, by cause.
    pub fn failures(&self) -> impl Iterator<Item = (Kind, u64)> {
        self.failures.iter().map(|(kind, count)| (*kind, *count))
    }

    /// Ends the machine's boot. The event that says so comes next, and does not count again.
    fn give_up(&mut self, mac: Mac, now: Timestamp) -> Option<String> {
        let boot = &mut self.machines.get_mut(&mac)?.boot;
        boot.end = Some(End { time: now, said: None });
        let causes = diagnose(boot, &self.pace, now);
        let cause = causes.iter().find(|c| !c.kind.is_harmless()).or(causes.first());
        let (kind, words) = match cause {
            Some(cause) => (cause.kind, cause.words.clone()),
            None => (Kind::Silent, "nothing that was seen says why".to_owned()),
        };
        *self.failures.entry(kind).or_default() += 1;
        Some(words)
    }

    /// Forgets the half that has been silent for longest.
    fn forget_some(&mut self) {
        let mut last: Vec<Timestamp> = self.machines.values().map(|seen| seen.boot.last).collect();
        let middle = last.len() / 2;
        let (_, middle, _) = last.select_nth_unstable(middle);
        let middle = *middle;
        self.machines.retain(|_, seen| seen.boot.last > middle);
    }
}

/// Whether a DISCOVER begins another boot, rather than continuing this one.
fn begins_anew(boot: &Boot, firmware: Option<Firmware>, now: Timestamp) -> bool {
    let quiet = since(boot.last, now);
    if !boot.has(Stage::Ack) {
        return quiet >= GIVES_UP_AFTER;
    }
    // iPXE was loaded by the first firmware, and now asks itself.
    let ipxe = |firmware: Option<Firmware>| firmware.is_some_and(Firmware::is_ipxe);
    let chained = boot.last_stage() == Some(Stage::Loader) && ipxe(firmware) && !ipxe(boot.firmware());
    quiet >= REBOOTS_AFTER && !chained
}

fn past(boot: Boot, pace: &Pace) -> Option<Past> {
    let ended = boot.end.as_ref()?.time;
    let causes = diagnose(&boot, pace, ended);
    Some(Past { began: boot.began, ended, stage: boot.last_stage(), causes })
}
