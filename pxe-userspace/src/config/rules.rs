//! `[[rule]]`: what a machine becomes that nobody declared, by what is known of it.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use pxe_common::Mac;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::facts::{self, Hardware, Key, Wanted};
use super::file::{File, MatchTable, OneOrMany, RuleTable};
use super::findings::Findings;
use super::nodes::{is_label, quoted};
use super::power::PowerTable;
use super::values::is_host_label;
use super::{Place, Power, Profile, entries};

/// Digits that a number in a name is filled up to.
const WIDTHS: RangeInclusive<usize> = 1..=9;

/// What machines become that fit. The first rule that fits one takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub matches: Match,
    pub name: Template,
    pub profile: Option<String>,
    /// How the power of its machines is switched.
    pub power: Option<Power>,
    pub labels: Vec<String>,
    pub place: Place,
}

/// What a machine has to be like: one of each list that is not empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    macs: Vec<Prefix>,
    relays: Vec<Ipv4Addr>,
    ports: Vec<String>,
    uuids: Vec<String>,
    /// By their keys, of which each is there once; what each may be.
    hardware: Vec<(Key, Vec<Wanted>)>,
}

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    #[serde(with = "crate::base::text::mac")]
    pub mac: Mac,
    /// Its SMBIOS UUID, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uuid: Option<String>,
    /// The relay agent that passes its requests on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relay: Option<Ipv4Addr>,
    /// The bridge's port that it is behind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<String>,
    /// What it told of itself.
    #[serde(with = "facts::shared", skip_serializing_if = "Option::is_none", default)]
    pub hardware: Option<Arc<Hardware>>,
}

impl Facts {
    pub fn new(mac: Mac) -> Self {
        Self { mac, uuid: None, relay: None, port: None, hardware: None }
    }
}

/// The first bytes of MAC addresses, all six at most.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefix(Vec<u8>);

/// Whether something holds, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Unknown,
}

impl Match {
    /// Whether the machine fits. What is not known of it does not fit.
    pub fn fits(&self, facts: &Facts) -> bool {
        self.judged(facts).all(|holds| holds == Holds::Yes)
    }

    /// Whether it fits, or may fit once more is known.
    pub fn may_fit(&self, facts: &Facts) -> bool {
        self.judged(facts).all(|holds| holds != Holds::No)
    }

    /// Whether it asks for the bridge's ports.
    pub fn goes_by_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Each thing that it goes by. Another one is another line here.
    fn judged(&self, facts: &Facts) -> impl Iterator<Item = Holds> {
        let by_hardware = self.hardware.iter().map(|(_, wanted)| {
            let Some(hardware) = &facts.hardware else { return Holds::Unknown };
            // All are of one key: it is known, or it is not.
            let fit: Vec<Option<bool>> = wanted.iter().map(|wanted| wanted.fits(hardware)).collect();
            match fit.first() {
                Some(None) => Holds::Unknown,
                _ if fit.contains(&Some(true)) => Holds::Yes,
                _ => Holds::No,
            }
        });
        let asked = [
            holds(&self.macs, Some(&facts.mac), |prefix, mac| mac.0.starts_with(&prefix.0)),
            holds(&self.relays, facts.relay.as_ref(), |wanted, relay| wanted == relay),
            holds(&self.ports, facts.port.as_ref(), |wanted, port| wanted == port),
            holds(&self.uuids, facts.uuid.as_ref(), |wanted, uuid| wanted.eq_ignore_ascii_case(uuid)),
        ];
        asked.into_iter().chain(by_hardware).collect::<Vec<_>>().into_iter()
    }
}

fn holds<P, F>(wanted: &[P], fact: Option<&F>, fits: impl Fn(&P, &F) -> bool) -> Holds {
    match fact {
        _ if wanted.is_empty() => Holds::Yes,
        None => Holds::Unknown,
        Some(fact) if wanted.iter().any(|pattern| fits(pattern, fact)) => Holds::Yes,
        Some(_) => Holds::No,
    }
}

/// A name with a number, `c{n:03}`, or with the MAC address, `m{mac}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    before: String,
    place: Placeholder,
    behind: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    /// Filled up to so many digits.
    Number(usize),
    Mac,
}

impl Template {
    fn parse(text: &str) -> Option<Self> {
        let (before, rest) = text.split_once('{')?;
        let (inside, behind) = rest.split_once('}')?;
        let place = match inside.split_once(':') {
            None if inside == "n" => Placeholder::Number(1),
            None if inside == "mac" => Placeholder::Mac,
            Some(("n", width)) => {
                let width = width.strip_prefix('0')?.parse().ok()?;
                Placeholder::Number(Some(width).filter(|width| WIDTHS.contains(width))?)
            }
            _ => return None,
        };
        let template = Self { before: before.to_owned(), place, behind: behind.to_owned() };
        let longest = template.name(u32::MAX, Mac::default());
        [template.name(1, Mac::default()), longest].iter().all(|name| is_host_label(name)).then_some(template)
    }

    /// The name with this number. The second of several with a MAC address has the number behind it.
    pub fn name(&self, number: u32, mac: Mac) -> String {
        let Self { before, place, behind } = self;
        match place {
            Placeholder::Number(width) => format!("{before}{number:0width$}{behind}"),
            Placeholder::Mac => {
                let again = if number > 1 { format!("-{number}") } else { String::new() };
                format!("{before}{}{behind}{again}", crate::base::text::hex(&mac.0))
            }
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, place, behind } = self;
        match place {
            Placeholder::Number(1) => write!(f, "{before}{{n}}{behind}"),
            Placeholder::Number(width) => write!(f, "{before}{{n:0{width}}}{behind}"),
            Placeholder::Mac => write!(f, "{before}{{mac}}{behind}"),
        }
    }
}

pub(super) fn rules(raw: &File, profiles: &[Profile], findings: &mut Findings<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for rule in &raw.rules {
        let RuleTable { matches, name, profile, power, labels } = rule.get_ref();
        let template = Template::parse(name.get_ref());
        if template.is_none() {
            findings.add(
                name.span(),
                format!("{} is no pattern of names", quoted(name.get_ref())),
                "a host name with {n}, {n:03} or {mac} in it, once: \"c{n:03}\"",
            );
        }
        if let Some(profile) = profile {
            entries::known_profile(profile, profiles, findings);
        }
        for label in labels.iter().filter(|label| !is_label(label.get_ref())) {
            let right = "letters, digits and `.`, `_`, `/`, `-`, at most 63, the first a letter or digit";
            findings.add(label.span(), format!("{} can't be a label", quoted(label.get_ref())), right);
        }
        let matches = read(matches.get_ref(), findings);
        let power = power.as_ref().and_then(|table| of_many(table, findings));
        if let Some(all) = rules.iter().find(|earlier| earlier.matches == Match::default()) {
            findings.add(
                rule.span(),
                format!("this rule takes no machine: the one at {} takes all", all.place),
                "put that one last",
            );
        }
        let Some(name) = template else { continue };
        rules.push(Rule {
            matches,
            name,
            profile: profile.as_ref().map(|profile| profile.get_ref().clone()),
            power,
            labels: labels.iter().map(|label| label.get_ref().clone()).collect(),
            place: findings.place(rule.span()),
        });
    }
    rules
}

/// A rule's machines are many: a BMC's address that has no place for the name would be one for all of them.
fn of_many(table: &Spanned<PowerTable>, findings: &mut Findings<'_>) -> Option<Power> {
    let power = entries::power(table, findings)?;
    if power.bmc("a").is_some_and(|bmc| power.bmc("b") == Some(bmc)) {
        let right = "write {name} where their addresses differ: \"https://bmc-{name}.example\"";
        findings.add(table.span(), "all machines of this rule would have one BMC", right);
    }
    Some(power)
}

fn read(table: &MatchTable, findings: &mut Findings<'_>) -> Match {
    let texts = |list: &Option<Spanned<OneOrMany<String>>>| -> Vec<(std::ops::Range<usize>, String)> {
        let list =
            list.iter().flat_map(|list| list.get_ref().to_vec().into_iter().map(|text| (list.span(), text)));
        list.collect()
    };
    let mut matches = Match::default();
    for (span, text) in texts(&table.mac) {
        match prefix(&text) {
            Some(prefix) => matches.macs.push(prefix),
            None => findings.add(
                span,
                format!("{} is no beginning of a MAC address", quoted(&text)),
                "one to six bytes: \"52:54:00\"",
            ),
        }
    }
    for (span, text) in texts(&table.relay) {
        match text.parse() {
            Ok(relay) => matches.relays.push(relay),
            Err(_) => findings.add(
                span,
                format!("{} is no address", quoted(&text)),
                "the relay agent's own: \"10.77.0.2\"",
            ),
        }
    }
    for (span, text) in texts(&table.uuid) {
        match uuid::Uuid::try_parse(&text) {
            Ok(uuid) => matches.uuids.push(uuid.to_string()),
            Err(_) => findings.add(
                span,
                format!("{} is no UUID", quoted(&text)),
                "as `bridgehead nodes --json` shows it",
            ),
        }
    }
    for (span, text) in texts(&table.port) {
        if text.is_empty() || text.len() > 15 || text.contains(|c: char| c == '/' || c.is_whitespace()) {
            findings.add(
                span,
                format!("{} is no interface's name", quoted(&text)),
                "a port of the bridge: \"eth1\"",
            );
        }
        matches.ports.push(text);
    }
    let MatchTable { vendor, product, serial, cpu, memory, cores, disks, switch, switch_port, .. } = table;
    for (key, list) in [
        (Key::Vendor, vendor),
        (Key::Product, product),
        (Key::Serial, serial),
        (Key::Cpu, cpu),
        (Key::Memory, memory),
        (Key::Cores, cores),
        (Key::Disks, disks),
        (Key::Switch, switch),
        (Key::SwitchPort, switch_port),
    ] {
        let mut wanted = Vec::new();
        for (span, text) in texts(list) {
            match Wanted::parse(key, &text) {
                Ok(one) => wanted.push(one),
                Err(error) => findings.add(
                    span,
                    format!("{} can't be {}", quoted(&text), key.name()),
                    error.to_string(),
                ),
            }
        }
        if list.is_some() {
            matches.hardware.push((key, wanted));
        }
    }
    matches
}

fn prefix(text: &str) -> Option<Prefix> {
    let bytes = text.split([':', '-']).map(|part| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    });
    bytes.collect::<Option<Vec<u8>>>().filter(|bytes| bytes.len() <= 6).map(Prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_their_number_or_address() {
        let mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
        let name = |text: &str, number| Template::parse(text).unwrap().name(number, mac);
        assert_eq!([name("c{n}", 7), name("c{n:03}", 7), name("c{n:03}-x", 1234)], ["c7", "c007", "c1234-x"]);
        assert_eq!([name("m{mac}", 1), name("m{mac}", 2)], ["m525400770001", "m525400770001-2"]);
        for text in [
            "", "c", "c{}", "c{n", "c{m}", "c{n:3}", "c{n:00}", "c{n:010}", "c{n}{n}", "-{n}", "c_{n}",
            "{n}.",
        ] {
            assert_eq!(Template::parse(text), None, "{text}");
        }
        assert_eq!(Template::parse(&format!("{}{{n}}", "c".repeat(54))), None, "a number would not fit");
        for text in ["c{n}", "c{n:03}", "x{mac}-y"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_known_may_fit_and_does_not() {
        let facts = Facts::new(Mac([0x52, 0x54, 0, 0x77, 0, 1]));
        let mac = |text: &str| Match { macs: vec![prefix(text).unwrap()], ..Match::default() };
        assert!(Match::default().fits(&facts));
        assert!(
            mac("52:54").fits(&facts)
                && mac("52-54-00-77-00-01").fits(&facts)
                && !mac("52:55").may_fit(&facts)
        );
        let port = Match { ports: vec!["eth1".into(), "eth2".into()], ..mac("52") };
        assert!(!port.fits(&facts) && port.may_fit(&facts));
        let there = Facts { port: Some("eth2".into()), ..facts.clone() };
        let elsewhere = Facts { port: Some("eth3".into()), ..facts };
        assert!(port.fits(&there) && !port.may_fit(&elsewhere));
        for text in ["", "5", "52:", "52:54:00:77:00:01:02", "+5", "zz"] {
            assert_eq!(prefix(text), None, "{text}");
        }
    }

    proptest! {
        /// The names of one pattern differ, and each is a host's name.
        #[test]
        fn numbers_make_different_names(a: u32, b: u32, width in 1usize..=9) {
            let template = Template::parse(&format!("c{{n:0{width}}}-x")).unwrap();
            let names = [a, b].map(|n| template.name(n, Mac::default()));
            prop_assert!(names.iter().all(|name| is_host_label(name)));
            prop_assert_eq!(a == b, names[0] == names[1]);
        }
    }
}
