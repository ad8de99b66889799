//! Which machines are meant: names, `n[1-40]`, MAC addresses, `label=L`, `profile=P`, `fact=KEY:VALUE`, `all`; several of
//! them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use pxe_common::Mac;

use crate::config::facts::{Hardware, Key, Wanted, WantedError};
use crate::config::nodes::quoted;

/// Bytes of a selector.
pub const TEXT_MAX: usize = 8192;
/// Names that its brackets stand for, at most.
pub const NAMES_MAX: usize = 32_768;
/// Digits of a number in brackets.
const DIGITS_MAX: usize = 9;
/// What was not found is named up to so many.
const NAMED: usize = 5;

/// What a selector goes by.
pub trait Selectable {
    fn name(&self) -> Option<&str>;
    fn mac(&self) -> Mac;
    fn profile(&self) -> Option<&str>;
    fn has_label(&self, label: &str) -> bool;
    /// What it told of itself.
    fn hardware(&self) -> Option<&Hardware>;
}

/// Machines, as somebody names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    text: String,
    all: bool,
    /// In small letters.
    names: BTreeSet<String>,
    macs: BTreeSet<Mac>,
    labels: BTreeSet<String>,
    profiles: BTreeSet<String>,
    facts: Vec<Wanted>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("no machine is named")]
    Empty,
    #[error("that is longer than {TEXT_MAX} bytes")]
    Long,
    #[error("{} names more than {NAMES_MAX} machines", quoted(.0))]
    Many(String),
    #[error("{}: {why}", quoted(.term))]
    Malformed { term: String, why: &'static str },
}

/// A part of a selector that no machine fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|term| format!("no machine is meant by {}", quoted(term))).collect::<Vec<_>>().join(", "))]
pub struct Nothing(pub Vec<String>);

/// What to write, for errors.
pub const HINT: &str = "write names, n[1-40], MAC addresses, label=L, profile=P, fact=KEY:VALUE or all, several with commas; \
                        `bridgehead nodes` lists machines";

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > TEXT_MAX {
            return Err(SelectorError::Long);
        }
        let mut selector = Self {
            text: text.trim().to_owned(),
            all: false,
            names: BTreeSet::new(),
            macs: BTreeSet::new(),
            labels: BTreeSet::new(),
            profiles: BTreeSet::new(),
            facts: Vec::new(),
        };
        for term in terms(text) {
            selector.add(term)?;
        }
        match selector.text.is_empty() {
            true => Err(SelectorError::Empty),
            false => Ok(selector),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// At commas and white space, but not in brackets.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    let ends = move |c: char| {
        inside = (inside || c == '[') && c != ']';
        !inside && (c == ',' || c.is_whitespace())
    };
    text.split(ends).filter(|term| !term.is_empty())
}

impl Selector {
    fn add(&mut self, term: &str) -> Result<(), SelectorError> {
        let malformed = |why| Err(SelectorError::Malformed { term: term.to_owned(), why });
        if term == "all" {
            self.all = true;
        } else if let Some(fact) = term.strip_prefix("fact=") {
            let Some((key, value)) = fact.split_once(':') else {
                return malformed("a fact is KEY:VALUE, such as vendor:Dell* or memory:>=64G");
            };
            let Some(key) = Key::ALL.into_iter().find(|known| known.name() == key) else {
                return malformed(
                    "a fact's key is vendor, product, serial, cpu, memory, cores, disks, switch or switch-port",
                );
            };
            match Wanted::parse(key, value) {
                Ok(wanted) => self.facts.push(wanted),
                Err(WantedError::Text) => return malformed("behind `:` stands a text, in which * is any"),
                Err(WantedError::Number) => return malformed("behind `:` stands a number: 2, >=2 or <2"),
                Err(WantedError::Size) => return malformed("behind `:` stands a size: 64G, >=64G or <64G"),
            }
        } else if let Some((key, value)) = term.split_once('=') {
            let chosen = match key {
                "label" => &mut self.labels,
                "profile" => &mut self.profiles,
                _ => return malformed("before `=` stands label, profile or fact"),
            };
            if value.is_empty() {
                return malformed("behind `=` stands a name");
            }
            chosen.insert(value.to_owned());
        } else if let Ok(mac) = term.parse() {
            self.macs.insert(mac);
        } else {
            let room = NAMES_MAX - self.names.len();
            match expand(term, room) {
                Ok(names) => self.names.extend(names),
                Err(Unexpanded::Many) => return Err(SelectorError::Many(term.to_owned())),
                Err(Unexpanded::Malformed(why)) => return malformed(why),
            }
        }
        Ok(())
    }

    /// The same with MAC addresses in place of facts, for those who do not know them. Whatever is asked for has to be there.
    pub fn without_facts<T: Selectable>(mut self, all: impl IntoIterator<Item = T>) -> Result<Self, Nothing> {
        let mut wanted: Vec<(Wanted, bool)> = self.facts.drain(..).map(|wanted| (wanted, false)).collect();
        for machine in all {
            let Some(hardware) = machine.hardware() else { continue };
            for (_, found) in wanted.iter_mut().filter(|(wanted, _)| wanted.fits(hardware) == Some(true)) {
                *found = true;
                self.macs.insert(machine.mac());
            }
        }
        let missing = wanted.iter().filter(|(_, found)| !found).map(|(wanted, _)| format!("fact={wanted}"));
        let missing: Vec<String> = missing.take(NAMED).collect();
        if missing.is_empty() { Ok(self) } else { Err(Nothing(missing)) }
    }

    /// Whether it goes by facts.
    pub fn goes_by_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Those of `all` that are meant, each once and in their order. Whatever is named has to be there.
    pub fn choose<T: Selectable>(&self, all: impl IntoIterator<Item = T>) -> Result<Vec<T>, Nothing> {
        let mut names: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let mut macs = self.macs.clone();
        let mut labels: BTreeMap<&str, bool> = self.labels.iter().map(|l| (l.as_str(), false)).collect();
        let mut profiles: BTreeMap<&str, bool> = self.profiles.iter().map(|p| (p.as_str(), false)).collect();
        let mut facts: Vec<(&Wanted, bool)> = self.facts.iter().map(|wanted| (wanted, false)).collect();
        let mut chosen = Vec::new();
        for machine in all {
            let mut is_meant = self.all;
            if let Some(name) = machine.name().map(str::to_ascii_lowercase) {
                is_meant |= self.names.contains(&name);
                names.remove(name.as_str());
            }
            is_meant |= self.macs.contains(&machine.mac());
            macs.remove(&machine.mac());
            for (label, found) in labels.iter_mut().filter(|(label, _)| machine.has_label(label)) {
                debug_assert!(self.labels.contains(*label));
                (is_meant, *found) = (true, true);
            }
            if let Some(found) = machine.profile().and_then(|profile| profiles.get_mut(profile)) {
                (is_meant, *found) = (true, true);
            }
            if let Some(hardware) = machine.hardware() {
                for (_, found) in facts.iter_mut().filter(|(wanted, _)| wanted.fits(hardware) == Some(true)) {
                    (is_meant, *found) = (true, true);
                }
            }
            if is_meant {
                chosen.push(machine);
            }
        }
        let missing_names = names.into_iter().map(str::to_owned);
        let missing_macs = macs.iter().map(Mac::to_string);
        let unfound = |of: &BTreeMap<&str, bool>, key: &str| -> Vec<String> {
            of.iter().filter(|(_, found)| !**found).map(|(value, _)| format!("{key}={value}")).collect()
        };
        let missing = missing_names.chain(missing_macs);
        let facts = facts.iter().filter(|(_, found)| !found).map(|(wanted, _)| format!("fact={wanted}"));
        let missing =
            missing.chain(unfound(&labels, "label")).chain(unfound(&profiles, "profile")).chain(facts);
        let missing: Vec<String> = missing.take(NAMED).collect();
        match (missing.is_empty(), chosen.is_empty()) {
            (false, _) => Err(Nothing(missing)),
            (true, true) => Err(Nothing(vec![self.text.clone()])),
            (true, false) => Ok(chosen),
        }
    }
}

enum Unexpanded {
    Many,
    Malformed(&'static str),
}

/// The names that a term with brackets stands for, in small letters.
fn expand(term: &str, room: usize) -> Result<Vec<String>, Unexpanded> {
    use Unexpanded::{Malformed, Many};
    let mut names = vec![String::new()];
    let mut rest = term;
    while !rest.is_empty() {
        let (plain, bracket) = rest.split_once('[').map_or((rest, None), |(plain, rest)| (plain, Some(rest)));
        if !plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Malformed("a name has letters, digits and hyphens"));
        }
        let plain = plain.to_ascii_lowercase();
        names.iter_mut().for_each(|name| name.push_str(&plain));
        let Some(bracket) = bracket else { break };
        let (inside, behind) = bracket.split_once(']').ok_or(Malformed("a bracket is not closed"))?;
        let mut numbers = Vec::new();
        for part in inside.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let digits =
                    (1..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
                digits.then(|| text.parse::<u32>().ok()).flatten()
            };
            let (Some(from), Some(to)) = (number(first), number(last)) else {
                return Err(Malformed("in brackets stand numbers, such as [1-40] or [01-08,11]"));
            };
            if from > to {
                return Err(Malformed("a range goes from the smaller number to the larger"));
            }
            let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
            if padded && first.len() != last.len() {
                return Err(Malformed("with a leading zero, both numbers have as many digits"));
            }
            let width = if padded { first.len() } else { 0 };
            if (to - from) as usize >= room {
                return Err(Many);
            }
            numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
        }
        if names.len().saturating_mul(numbers.len()) > room {
            return Err(Many);
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{number}")))
            .collect();
        rest = behind;
    }
    if names.len() > room {
        return Err(Many);
    }
    Ok(names)
}

#[cfg(test)]
#[path = "selector_tests.rs"]
mod tests;
