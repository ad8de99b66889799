//! From what somebody asks for to a launch, or to why not. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::healthy::{HealthUrl, UrlError};
use super::model::{Judged, Launch, Limit, Member, Phase, Reach, State, Terms};
use crate::base::schema;
use crate::config::nodes::{Launched, PinnedImage, quoted};
use crate::config::{Config, Node, Profile, Source};
use crate::machines::kept::Declared;
use crate::machines::kept::selector::{Nothing, Selector, SelectorError};

/// How often a machine is powered on, unless told otherwise.
pub const TRIES: u32 = 2;
pub const TRIES_MAX: u32 = 10;

/// Some servers test their memory for minutes before they ask for an address.
pub const PATIENCE: Duration = Duration::from_secs(300);
const PATIENCE_MAX: Duration = Duration::from_secs(24 * 3600);
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What somebody asks for: the body of `POST /api/launches`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Order {
    /// Which machines, as everywhere else.
    pub select: String,
    /// What they are to boot: a profile, ...
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<String>,
    /// ... or an image in place of their profiles'.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_a_time: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub canary: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<schema::Limit>")]
    pub max_failed: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub healthy: Option<String>,
    /// Seconds from now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline: Option<u64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patience: Option<u64>,
}

/// Why there is no launch. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error(transparent)]
    Nothing(#[from] Nothing),
    #[error("a launch is of a profile or of an image, and of one of them")]
    What,
    #[error("no profile is called {}; {right}", quoted(.profile))]
    NoProfile { profile: String, right: String },
    #[error("{what} is {given}; write {right}")]
    Number { what: &'static str, given: u64, right: String },
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("{}", .0.join("\n"))]
    Machines(Vec<String>),
}

/// An order whose machines are found, before there is its image.
#[derive(Clone, Debug)]
pub struct Understood {
    select: String,
    profile: Option<String>,
    healthy: Option<HealthUrl>,
    terms: Terms,
    machines: Vec<Arc<Node>>,
    /// The image that they boot; `None` for a kernel by hand.
    pub image: Option<String>,
}

/// The image of a launch, as it is here.
#[derive(Clone, Debug)]
pub struct Ready {
    pub pinned: PinnedImage,
    /// It says itself whether its workload is healthy.
    pub has_health_check: bool,
}

/// What is known of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub reach: Reach,
    /// When the boot began that has brought up its workload and goes on.
    pub up_since: Option<Timestamp>,
    pub held: bool,
}

/// A launch that only needs an id.
#[derive(Clone, Debug)]
pub struct Planned {
    launch: Launch,
    pub(super) members: Vec<Member>,
    /// What people should know beforehand.
    pub notes: Vec<String>,
}

impl Order {
    /// Finds the machines, and checks everything that can be checked without the image.
    pub fn understand(&self, config: &Config, now: Timestamp) -> Result<Understood, OrderError> {
        let selector: Selector = self.select.parse()?;
        let declared = config.nodes.iter().map(|node| Declared::of(config, node));
        let machines: Vec<Arc<Node>> =
            selector.choose(declared)?.into_iter().map(|declared| declared.node.clone()).collect();
        let healthy = self.healthy.as_deref().map(str::parse::<HealthUrl>).transpose()?;
        let terms = self.terms(machines.len(), now)?;
        let image = match (&self.profile, &self.image) {
            (Some(profile), None) => match &find(config, profile)?.source {
                Source::Image(reference) => Some(reference.clone()),
                Source::Kernel { .. } => None,
            },
            (None, Some(image)) => Some(image.clone()),
            (Some(_), Some(_)) | (None, None) => return Err(OrderError::What),
        };
        let understood = Understood {
            select: selector.to_string(),
            profile: self.profile.clone(),
            healthy,
            terms,
            machines,
            image,
        };
        let faults = understood.faults(config);
        if faults.is_empty() { Ok(understood) } else { Err(OrderError::Machines(faults)) }
    }

    fn terms(&self, machines: usize, now: Timestamp) -> Result<Terms, OrderError> {
        let number = |what, given: Option<u64>, default: u64, least: u64, most: u64| match given {
            None => Ok(default),
            Some(given) if (least..=most).contains(&given) => Ok(given),
            Some(given) => Err(OrderError::Number { what, given, right: format!("{least} to {most}") }),
        };
        let all = machines as u64;
        let wide = |given: Option<u32>| given.map(u64::from);
        let canary = number("canary", wide(self.canary), 0, 0, all)?;
        let tries = number("tries", wide(self.tries), TRIES.into(), 1, TRIES_MAX.into())?;
        number("at-a-time", wide(self.at_a_time), 1, 1, u32::MAX.into())?;
        let patience = number("patience", self.patience, PATIENCE.as_secs(), 1, PATIENCE_MAX.as_secs())?;
        let deadline = number("deadline", self.deadline, 0, 1, DEADLINE_MAX.as_secs())?;
        let deadline = self.deadline.and_then(|_| now.checked_add(Duration::from_secs(deadline)).ok());
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Terms {
            at_a_time: self.at_a_time,
            canary: narrow(canary),
            max_failed: self.max_failed,
            tries: narrow(tries),
            deadline,
            patience,
            healthy: self.healthy.clone(),
        })
    }
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a Profile, OrderError> {
    config.profile(name).ok_or_else(|| {
        let names: Vec<&str> = config.profiles.iter().map(|profile| profile.name.as_str()).collect();
        let right = if names.is_empty() {
            "add a [[profile]]".into()
        } else {
            format!("there is {}", names.join(", "))
        };
        OrderError::NoProfile { profile: name.to_owned(), right }
    })
}

impl Understood {
    /// Which machines are meant.
    pub fn machines(&self) -> impl Iterator<Item = (&str, Mac)> {
        self.machines.iter().map(|node| (node.name.as_str(), node.mac))
    }

    /// In words.
    pub fn what(&self) -> String {
        match (&self.profile, &self.image) {
            (Some(profile), _) => format!("profile {profile}"),
            (None, image) => format!("image {}", image.as_deref().unwrap_or("-")),
        }
    }

    /// What keeps a machine from booting this, machine by machine.
    fn faults(&self, config: &Config) -> Vec<String> {
        let fault = |node: &Arc<Node>| {
            let name = &node.name;
            match (&self.profile, config.profile_for(Some(node))) {
                (None, None) => {
                    Some(format!("{name} has no profile, which says how an image is booted: launch one"))
                }
                (None, Some(Profile { source: Source::Kernel { .. }, name: profile, .. })) => Some(format!(
                    "{name} boots a kernel by hand (profile {profile}), which no image takes the place of: launch a profile \
                     with an image"
                )),
                (Some(profile), _) if self.image.is_none() && self.healthy.is_none() => Some(format!(
                    "{name}: of a kernel by hand (profile {profile}) nothing is heard once it runs: --healthy URL tells"
                )),
                (None, Some(_)) | (Some(_), _) => None,
            }
        };
        self.machines.iter().filter_map(fault).collect()
    }

    /// The launch. `ready` is its image; `seen` is the timeline's newest event.
    pub fn plan(
        self,
        ready: Option<&Ready>,
        known: impl Fn(Mac) -> Known,
        by: &str,
        seen: u64,
        now: Timestamp,
    ) -> Planned {
        let judged = match (&self.healthy, ready) {
            (Some(_), None) if self.image.is_none() => Judged::UrlFromKernel,
            (Some(_), _) => Judged::Url,
            (None, Some(Ready { has_health_check: true, .. })) => Judged::HealthCheck,
            (None, _) => Judged::Workload,
        };
        let target = Launched {
            profile: self.profile.clone(),
            image: ready.map(|ready| ready.pinned.clone()),
            launch: 0,
            since: now,
        };
        let mut held = Vec::new();
        let (what, canary) = (self.what(), self.terms.canary as usize);
        let members = self.machines.iter().enumerate().map(|(turn, node)| {
            let Known { reach, up_since, held: is_held } = known(node.mac);
            if is_held {
                held.push(node.name.clone());
            }
            // An image alone leaves the profile as an earlier launch had it.
            let profile = target.profile.clone().or_else(|| node.launched.as_ref()?.profile.clone());
            let target = Launched { profile, ..target.clone() };
            let runs = node.launched.as_ref().is_some_and(|pin| {
                pin.is_same(&target) && up_since.is_some_and(|up_since| up_since > pin.since)
            });
            let (who, before) = ((node.name.clone(), node.mac), node.launched.clone());
            Member { canary: turn < canary, runs, ..waiting(who, reach, judged, Some(target), before, now) }
        });
        let members: Vec<Member> = members.collect();
        let mut notes = notes(&members);
        if !held.is_empty() {
            let names = few(held.iter().map(String::as_str));
            notes.push(format!("held, and stopped in stage 1 until released: {names}"));
        }
        let launch = Launch {
            id: 0,
            asked: now,
            by: by.to_owned(),
            select: self.select,
            what,
            undoes: None,
            terms: self.terms,
            phase: Phase::Running,
            verdict: None,
            seen,
        };
        Planned { launch, members, notes }
    }
}

/// A machine of which nothing is done yet.
fn waiting(
    (name, mac): (String, Mac),
    reach: Reach,
    judged: Judged,
    target: Option<Launched>,
    before: Option<Launched>,
    now: Timestamp,
) -> Member {
    Member {
        name,
        mac,
        canary: false,
        reach,
        judged,
        target,
        before,
        assigned: false,
        runs: false,
        state: State::Waiting,
        stage: None,
        step: None,
        tries: 0,
        since: now,
        heard: None,
        up: None,
        cause: None,
    }
}

/// What a launch would be that brings back what another changed. `members` have what they booted before as their target.
pub fn undo(
    of: &Launch,
    members: Vec<Member>,
    judged: impl Fn(&Member) -> Judged,
    reach: impl Fn(Mac) -> Reach,
    by: &str,
    seen: u64,
    now: Timestamp,
) -> Planned {
    let members = members.into_iter().map(|was| {
        let (reach, judged) = (reach(was.mac), judged(&was));
        let Member { name, mac, target, before, .. } = was;
        waiting((name, mac), reach, judged, target, before, now)
    });
    let members: Vec<Member> = members.collect();
    let notes = notes(&members);
    let launch = Launch {
        id: 0,
        asked: now,
        by: by.to_owned(),
        select: of.select.clone(),
        what: format!("what was before launch {}", of.id),
        undoes: Some(of.id),
        terms: Terms { canary: 0, deadline: None, ..of.terms.clone() },
        phase: Phase::Running,
        verdict: None,
        seen,
    };
    Planned { launch, members, notes }
}

/// What people should know before: of machines whose power is nobody's but theirs.
fn notes(members: &[Member]) -> Vec<String> {
    let those = |wanted: &dyn Fn(&Member) -> bool| -> Option<String> {
        let found: BTreeSet<&str> = members.iter().filter(|m| wanted(m)).map(|m| m.name.as_str()).collect();
        (!found.is_empty()).then(|| few(found.into_iter()))
    };
    let without = those(&|m| m.reach == Reach::None && !m.runs);
    let woken = those(&|m| m.reach == Reach::Wake && !m.runs);
    let well = those(&|m| m.runs);
    let without = without.map(|names| {
        format!("no power is configured: switch on, or restart, by hand: {names}; the launch waits for their DISCOVER")
    });
    let woken = woken.map(|names| {
        format!("can only be woken, and have to be off for that: {names}; one that is on has to be restarted by hand")
    });
    let well = well.map(|names| format!("run it already, and go on: {names}"));
    [without, woken, well].into_iter().flatten().collect()
}

fn few<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const NAMED: usize = 20;
    let names: Vec<&str> = names.collect();
    match names.len().saturating_sub(NAMED) {
        0 => names.join(" "),
        more => format!("{} and {more} more", names[..NAMED].join(" ")),
    }
}

impl Planned {
    /// With its id.
    pub(super) fn launch(mut self, id: u64, now: Timestamp) -> (Launch, Vec<Member>) {
        self.launch.id = id;
        for member in &mut self.members {
            // An undo's are of the launches that they were of.
            if let Some(pin) = member.target.as_mut().filter(|pin| pin.launch == 0) {
                (pin.launch, pin.since) = (id, now);
            }
        }
        (self.launch, self.members)
    }

    /// As it would be, for who only asks.
    pub fn dry(self) -> super::Whole {
        super::Whole { launch: self.launch, machines: self.members }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
