//! What rules and selectors can go by of what a machine says of itself. Pure.

use std::fmt;
use std::sync::Arc;

use pxe_contract::facts::Facts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::size;

/// The gist of a machine's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Hardware {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    pub disks: u32,
    /// What it is plugged into, by LLDP: the systems' names, or their chassis.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<String>,
    /// And by which of their ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub switch_ports: Vec<String>,
}

impl From<&Facts> for Hardware {
    fn from(facts: &Facts) -> Self {
        const GIB: u64 = 1 << 30;
        // What the kernel can use is some less than what is in the slots.
        let usable = facts.memory.usable.map(|usable| usable.div_ceil(GIB).saturating_mul(GIB));
        let heard = || facts.neighbours.iter().flatten();
        Self {
            vendor: facts.system.vendor.clone(),
            product: facts.system.product.clone(),
            serial: facts.system.serial.clone(),
            cpu: facts.cpu.model.clone(),
            memory: facts.memory.installed.or(usable),
            cores: facts.cpu.cores,
            disks: facts.disks.len() as u32,
            switches: heard().map(|n| n.system.clone().unwrap_or_else(|| n.chassis.clone())).collect(),
            switch_ports: heard().map(|n| n.port.clone()).collect(),
        }
    }
}

/// Something that can be asked of a machine's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Vendor,
    Product,
    Serial,
    Cpu,
    Memory,
    Cores,
    Disks,
    Switch,
    SwitchPort,
}

impl Key {
    pub const ALL: [Self; 9] = [
        Self::Vendor,
        Self::Product,
        Self::Serial,
        Self::Cpu,
        Self::Memory,
        Self::Cores,
        Self::Disks,
        Self::Switch,
        Self::SwitchPort,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vendor => "vendor",
            Self::Product => "product",
            Self::Serial => "serial",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Cores => "cores",
            Self::Disks => "disks",
            Self::Switch => "switch",
            Self::SwitchPort => "switch-port",
        }
    }

    fn is_number(self) -> bool {
        match self {
            Self::Memory | Self::Cores | Self::Disks => true,
            Self::Vendor | Self::Product | Self::Serial | Self::Cpu | Self::Switch | Self::SwitchPort => {
                false
            }
        }
    }
}

/// What a fact is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub key: Key,
    what: What,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Without regard to case; `*` is any text.
    Text(String),
    AtLeast(u64),
    AtMost(u64),
    Exactly(u64),
}

/// It can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    #[error("it is to be a text")]
    Text,
    #[error("it is to be a number: 2, >=2, <=2, >2 or <2")]
    Number,
    #[error("it is to be a size: 64G, >=64G, <=64G, >64G or <64G")]
    Size,
}

impl Wanted {
    pub fn parse(key: Key, text: &str) -> Result<Self, WantedError> {
        let text = text.trim();
        let what = if key.is_number() {
            bound(key, text).ok_or(if key == Key::Memory {
                WantedError::Size
            } else {
                WantedError::Number
            })?
        } else if text.is_empty() || text.chars().any(char::is_control) {
            return Err(WantedError::Text);
        } else {
            What::Text(text.to_lowercase())
        };
        Ok(Self { key, what, text: text.to_owned() })
    }

    /// Whether it is so; `None` where that is not known.
    pub fn fits(&self, hardware: &Hardware) -> Option<bool> {
        let one = |text: &Option<String>| text.as_deref().map(|text| self.text_fits(text));
        let any =
            |texts: &[String]| (!texts.is_empty()).then(|| texts.iter().any(|text| self.text_fits(text)));
        match self.key {
            Key::Vendor => one(&hardware.vendor),
            Key::Product => one(&hardware.product),
            Key::Serial => one(&hardware.serial),
            Key::Cpu => one(&hardware.cpu),
            Key::Memory => hardware.memory.map(|memory| self.number_fits(memory)),
            Key::Cores => hardware.cores.map(|cores| self.number_fits(cores.into())),
            Key::Disks => Some(self.number_fits(hardware.disks.into())),
            Key::Switch => any(&hardware.switches),
            Key::SwitchPort => any(&hardware.switch_ports),
        }
    }

    fn text_fits(&self, text: &str) -> bool {
        matches!(&self.what, What::Text(pattern) if is_like(pattern, &text.to_lowercase()))
    }

    fn number_fits(&self, number: u64) -> bool {
        match self.what {
            What::AtLeast(least) => number >= least,
            What::AtMost(most) => number <= most,
            What::Exactly(exactly) => number == exactly,
            What::Text(_) => false,
        }
    }
}

/// As it was written.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key.name(), self.text)
    }
}

fn bound(key: Key, text: &str) -> Option<What> {
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let count = || digits.then(|| text.parse::<u64>().ok()).flatten();
        if key == Key::Memory { size(text) } else { count() }
    };
    let (sign, rest) = text.split_at(text.find(|c| !matches!(c, '<' | '>' | '=')).unwrap_or(text.len()));
    let number = number(rest.trim())?;
    match sign {
        ">=" => Some(What::AtLeast(number)),
        "<=" => Some(What::AtMost(number)),
        ">" => Some(What::AtLeast(number.checked_add(1)?)),
        "<" => Some(What::AtMost(number.checked_sub(1)?)),
        "" | "=" => Some(What::Exactly(number)),
        _ => None,
    }
}

/// `*` is any text. Takes as many steps as pattern and text have characters, multiplied, at most.
fn is_like(pattern: &str, text: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(before) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The first place is as good as any: what comes behind it is only more.
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// Facts that several have, for serde.
pub mod shared {
    use serde::{Deserializer, Serializer};

    use super::{Arc, Deserialize as _, Hardware, Serialize as _};

    pub fn serialize<S: Serializer>(hardware: &Option<Arc<Hardware>>, s: S) -> Result<S::Ok, S::Error> {
        hardware.as_deref().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Arc<Hardware>>, D::Error> {
        Ok(Option::<Hardware>::deserialize(d)?.map(Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use pxe_contract::facts::{Memory, Neighbour};

    use super::*;

    fn dell() -> Hardware {
        Hardware {
            vendor: Some("Dell Inc.".into()),
            product: Some("PowerEdge R650".into()),
            serial: Some("ABC1234".into()),
            memory: Some(64 << 30),
            cores: Some(64),
            disks: 2,
            switches: vec!["leaf-a1".into(), "leaf-a2".into()],
            ..Hardware::default()
        }
    }

    fn fits(key: Key, text: &str) -> Option<bool> {
        Wanted::parse(key, text).unwrap_or_else(|e| panic!("{text}: {e}")).fits(&dell())
    }

    #[test]
    fn texts_fit_with_stars_and_without_regard_to_case() {
        for (key, text, expected) in [
            (Key::Vendor, "dell inc.", Some(true)),
            (Key::Vendor, "Dell*", Some(true)),
            (Key::Vendor, "Dell", Some(false)),
            (Key::Vendor, "*", Some(true)),
            (Key::Product, "Power*R6*0", Some(true)),
            (Key::Product, "*R65*50*", Some(false)),
            (Key::Product, "*edge*", Some(true)),
            (Key::Serial, "ABC1234", Some(true)),
            (Key::Serial, "ABC123", Some(false)),
            (Key::Switch, "leaf-a2", Some(true)),
            (Key::Switch, "leaf-b*", Some(false)),
            (Key::SwitchPort, "*", None),
            (Key::Cpu, "*", None),
        ] {
            assert_eq!(fits(key, text), expected, "{text}");
        }
        assert!(!is_like("ab*ba", "aba"), "each character counts once");
    }

    #[test]
    fn numbers_have_bounds() {
        for (key, text, expected) in [
            (Key::Memory, ">=64G", true),
            (Key::Memory, ">64G", false),
            (Key::Memory, "<= 65536M", true),
            (Key::Memory, "<64G", false),
            (Key::Memory, "64G", true),
            (Key::Cores, ">=65", false),
            (Key::Cores, "=64", true),
            (Key::Disks, "2", true),
            (Key::Disks, ">2", false),
        ] {
            assert_eq!(fits(key, text), Some(expected), "{text}");
        }
        for (key, text) in [
            (Key::Memory, "64"),
            (Key::Memory, ""),
            (Key::Memory, "=>64G"),
            (Key::Cores, ">= many"),
            (Key::Cores, "+3"),
            (Key::Disks, "<0"),
            (Key::Vendor, " "),
            (Key::Vendor, "a\u{1b}b"),
        ] {
            assert!(Wanted::parse(key, text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_gist_of_facts() {
        let neighbour = |system: Option<&str>| Neighbour {
            chassis: "00:1c:73:00:00:01".into(),
            port: "Ethernet7".into(),
            system: system.map(str::to_owned),
            ..Neighbour::default()
        };
        let facts = Facts {
            memory: Memory { usable: Some(62 << 30 | 1), ..Memory::default() },
            neighbours: Some(vec![neighbour(None), neighbour(Some("leaf-a1"))]),
            ..Facts::default()
        };
        let hardware = Hardware::from(&facts);
        assert_eq!(hardware.memory, Some(63 << 30));
        assert_eq!(hardware.switches, ["00:1c:73:00:00:01", "leaf-a1"]);
        let text = serde_json::to_string(&hardware).unwrap();
        assert_eq!(serde_json::from_str::<Hardware>(&text).unwrap(), hardware);
    }

    proptest::proptest! {
        /// As a regular expression would have it, by trying every split.
        #[test]
        fn stars_stand_for_any_text(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match pattern {
                    [] => text.is_empty(),
                    [b'*', rest @ ..] => (0..=text.len()).any(|at| slow(rest, &text[at..])),
                    [first, rest @ ..] => text.first() == Some(first) && slow(rest, &text[1..]),
                }
            }
            proptest::prop_assert_eq!(is_like(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
