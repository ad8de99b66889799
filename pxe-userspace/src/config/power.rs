//! How a machine's power is switched: `power = { … }` of a node or a rule. Pure.
//!
//! `{name}` in a URL or host stands for the machine's name, so that one entry serves many machines.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::nodes::quoted;
use super::values::is_host_label;

/// Characters of a URL, and of an argument of a command.
const TEXT_MAX: usize = 1024;
/// Arguments of a command.
const ARGUMENTS_MAX: usize = 64;
/// Characters of the name of credentials.
pub const CREDENTIALS_NAME_MAX: usize = 64;
/// The placeholder for the machine's name.
const NAME: &str = "{name}";

const IPMI_PORT: u16 = 623;

/// How a machine's power is switched. It is written, sent and stored as [`PowerTable`] has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PowerTable", into = "PowerTable")]
pub enum Power {
    /// By its BMC, over HTTP (DMTF DSP0266).
    Redfish { url: BmcUrl, credentials: Option<String> },
    /// By its BMC, IPMI 2.0 over LAN.
    Ipmi { host: String, port: u16, credentials: Option<String> },
    /// By a magic packet to its network card.
    Wol,
    /// By a program of the appliance's owner.
    Command(Vec<String>),
}

/// The same as it is written: one of the first four keys, and what goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PowerTable {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub redfish: Option<String>,
    /// `HOST` or `HOST:PORT`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ipmi: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wol: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub command: Option<Vec<String>>,
    /// Who the appliance is before the BMC, by name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub credentials: Option<String>,
}

/// Why something is no way to switch a machine's power, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {right}")]
pub struct PowerFault {
    pub what: String,
    pub right: &'static str,
}

/// Where a BMC answers HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcUrl {
    pub tls: bool,
    /// May contain `{name}`.
    pub host: String,
    pub port: u16,
    /// Empty, or begins with `/` and does not end with one. May contain `{name}`.
    pub path: String,
}

impl Power {
    /// What it is called in tables and documents.
    pub fn driver(&self) -> &'static str {
        match self {
            Self::Redfish { .. } => "redfish",
            Self::Ipmi { .. } => "ipmi",
            Self::Wol => "wol",
            Self::Command(_) => "command",
        }
    }

    /// Its credentials' name, if it has any.
    pub fn credentials(&self) -> Option<&str> {
        match self {
            Self::Redfish { credentials, .. } | Self::Ipmi { credentials, .. } => credentials.as_deref(),
            Self::Wol | Self::Command(_) => None,
        }
    }

    /// For one machine: with its name in place of the placeholder.
    pub fn of(&self, name: &str) -> Self {
        let named = |text: &str| text.replace(NAME, name);
        match self {
            Self::Redfish { url, credentials } => {
                let (host, path) = (named(&url.host), named(&url.path));
                let url = BmcUrl { host, path, ..url.clone() };
                Self::Redfish { url, credentials: credentials.clone() }
            }
            Self::Ipmi { host, port, credentials } => {
                Self::Ipmi { host: named(host), port: *port, credentials: credentials.clone() }
            }
            Self::Wol | Self::Command(_) => self.clone(),
        }
    }

    /// The BMC that it reaches for a machine of this name; another machine can't have the same.
    pub fn bmc(&self, name: &str) -> Option<String> {
        match self.of(name) {
            Self::Redfish { url, .. } => Some(url.to_string()),
            Self::Ipmi { host, port, .. } => Some(format!("{host}:{port}")),
            Self::Wol | Self::Command(_) => None,
        }
    }
}

impl PowerTable {
    /// From keys and values as people write them, one by one; a command is not written so.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> Result<Self, String> {
        let mut table = Self::default();
        for (key, value) in words {
            let text = Some((*value).to_owned());
            match *key {
                "redfish" => table.redfish = text,
                "ipmi" => table.ipmi = text,
                "credentials" => table.credentials = text,
                "wol" => {
                    let wol = value.parse().map_err(|_| format!("wol is true, and not {}", quoted(value)))?;
                    table.wol = Some(wol);
                }
                "command" => return Err("a command stands in the configuration's file alone".to_owned()),
                _ => {
                    return Err(format!(
                        "power has no key {}: it has redfish, ipmi, wol and credentials",
                        quoted(key)
                    ));
                }
            }
        }
        Ok(table)
    }

    /// What is said of one way in place of the same keys of another: another BMC's address keeps the credentials.
    pub fn over(self, before: Self) -> Self {
        let names_way =
            self.redfish.is_some() || self.ipmi.is_some() || self.wol.is_some() || self.command.is_some();
        let keeps_bmc = self.redfish.is_some() || self.ipmi.is_some() || !names_way;
        let credentials = self.credentials.or(before.credentials.filter(|_| keeps_bmc));
        match names_way {
            true => Self { credentials, ..self },
            false => Self { credentials, ..before },
        }
    }
}

impl TryFrom<PowerTable> for Power {
    type Error = PowerFault;

    fn try_from(table: PowerTable) -> Result<Self, PowerFault> {
        const WAYS: &str = "{ redfish = \"https://HOST\", credentials = \"NAME\" }, { ipmi = \"HOST\", credentials = \
                            \"NAME\" }, { wol = true } or { command = [\"PROGRAM\", …] }";
        let fault = |what: String, right| Err(PowerFault { what, right });
        let PowerTable { redfish, ipmi, wol, command, credentials } = table;
        if let Some(name) = credentials.as_ref().filter(|name| !is_credentials_name(name)) {
            let right = "1 to 64 letters, digits and `.`, `_`, `@`, `-`: `bridgehead power credentials list`";
            return fault(format!("{} can't be the name of credentials", quoted(name)), right);
        }
        let power = match (redfish, ipmi, wol, command) {
            (Some(url), None, None, None) => Self::Redfish { url: url.parse()?, credentials },
            (None, Some(host), None, None) => {
                let (host, port) = host_and_port(&host, IPMI_PORT).ok_or_else(|| PowerFault {
                    what: format!("{} is no BMC's host", quoted(&host)),
                    right: "a name or an address, and a port where it is not 623: \"10.0.0.7\", \"bmc-{name}:6230\"",
                })?;
                Self::Ipmi { host, port, credentials }
            }
            (None, None, Some(true), None) if credentials.is_none() => Self::Wol,
            (None, None, None, Some(words)) if credentials.is_none() => command_of(words)?,
            (None, None, Some(false), None) => {
                return fault("wol = false switches nothing".into(), "leave `power` out");
            }
            (None, None, Some(_), None) | (None, None, None, Some(_)) => {
                return fault("only BMCs ask for credentials".into(), "leave `credentials` out");
            }
            (None, None, None, None) => return fault("power says no way to switch it".into(), WAYS),
            _ => return fault("power says several ways to switch it".into(), WAYS),
        };
        Ok(power)
    }
}

impl From<Power> for PowerTable {
    fn from(power: Power) -> Self {
        let nothing = Self::default();
        match power {
            Power::Redfish { url, credentials } => {
                Self { redfish: Some(url.to_string()), credentials, ..nothing }
            }
            Power::Ipmi { host, port: IPMI_PORT, credentials } => {
                Self { ipmi: Some(host), credentials, ..nothing }
            }
            Power::Ipmi { host, port, credentials } if host.contains(':') => {
                Self { ipmi: Some(format!("[{host}]:{port}")), credentials, ..nothing }
            }
            Power::Ipmi { host, port, credentials } => {
                Self { ipmi: Some(format!("{host}:{port}")), credentials, ..nothing }
            }
            Power::Wol => Self { wol: Some(true), ..nothing },
            Power::Command(words) => Self { command: Some(words), ..nothing },
        }
    }
}

pub fn is_credentials_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    (1..=CREDENTIALS_NAME_MAX).contains(&text.len()) && text.chars().all(allowed)
}

fn command_of(words: Vec<String>) -> Result<Power, PowerFault> {
    let sound = |word: &String| word.chars().count() <= TEXT_MAX && !word.contains(char::is_control);
    if !words.first().is_some_and(|program| program.starts_with('/'))
        || words.len() > ARGUMENTS_MAX
        || !words.iter().all(sound)
    {
        let what = "that is no command to switch power with".to_owned();
        let right = "the program by its whole path, then arguments, 64 at most, without control characters: \
                     [\"/usr/local/bin/pdu\", \"{name}\", \"{action}\"]";
        return Err(PowerFault { what, right });
    }
    Ok(Power::Command(words))
}

impl std::str::FromStr for BmcUrl {
    type Err = PowerFault;

    /// RFC 3986 section 3, without user, query and fragment.
    fn from_str(text: &str) -> Result<Self, PowerFault> {
        let fault = |what: &str, right| Err(PowerFault { what: format!("{} {what}", quoted(text)), right });
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return fault("is no BMC's URL", "https://HOST, or http://HOST for one without TLS"),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            let right = "a password has no place in a URL: `bridgehead power credentials add` keeps it, and \
                         `credentials = NAME` names it";
            // The URL itself is not repeated: it contains the password.
            return Err(PowerFault { what: "that URL contains a user".into(), right });
        }
        let sound = |c: char| c.is_ascii_alphanumeric() || "-._~/:@!$&'()*+,;=%".contains(c);
        let plain = path.replace(NAME, "");
        let dots = path.split('/').any(|part| part == "." || part == "..");
        if text.len() > TEXT_MAX || !plain.chars().all(sound) || dots {
            return fault(
                "has a path that no BMC has",
                "letters and digits: https://HOST/redfish/v1/Systems/1",
            );
        }
        let Some((host, port)) = host_and_port(authority, if tls { 443 } else { 80 }) else {
            return fault("names no host", "a name or an address: https://10.0.0.7, https://bmc-{name}:8443");
        };
        Ok(Self { tls, host, port, path: path.trim_end_matches('/').to_owned() })
    }
}

impl BmcUrl {
    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for BmcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, default) = if self.tls { ("https", 443) } else { ("http", 80) };
        let authority = self.authority();
        let authority = match self.port == default {
            true => authority.strip_suffix(&format!(":{default}")).unwrap_or(&authority),
            false => &authority,
        };
        write!(f, "{scheme}://{authority}{}", self.path)
    }
}

/// `HOST`, `HOST:PORT`, an IPv6 address by itself or in brackets.
fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    if let Ok(IpAddr::V6(address)) = text.parse() {
        return Some((address.to_string(), default));
    }
    let (host, port) = match text.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')) {
        Some((host, port)) if !text.ends_with(']') => (host, port.parse::<u16>().ok().filter(|p| *p != 0)?),
        _ => (text, default),
    };
    if let Some(inside) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inside.parse().ok().map(|address: std::net::Ipv6Addr| (address.to_string(), port));
    }
    let named = host.replace(NAME, "x");
    let named = named.strip_suffix('.').unwrap_or(&named);
    (named.len() <= 253 && named.split('.').all(is_host_label)).then(|| (host.to_owned(), port))
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
