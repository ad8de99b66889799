//! A node's settings in words of its kernel's command line: `bridgehead.KEY=VALUE`.
//!
//! The node's identity and the address for its reports ([`Identity`]) are on the command line itself, so that a node
//! without anything else can report its failure. The rest ([`BootSettings`]) is in the machine's own initrd
//! ([`crate::ticket`]), whose words take precedence over the command line's. docs/node.md documents the keys.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;

use crate::cmdline;

const PREFIX: &str = "bridgehead.";

/// The keys that have values.
mod key {
    pub(super) const URL: &str = "url";
    pub(super) const MAC: &str = "mac";
    pub(super) const ADDRESS: &str = "address";
    pub(super) const ROUTER: &str = "router";
    pub(super) const DNS: &str = "dns";
    pub(super) const SEARCH: &str = "search";
    pub(super) const NTP: &str = "ntp";
    pub(super) const MTU: &str = "mtu";
    pub(super) const LEASE: &str = "lease";
    pub(super) const NAME: &str = "name";
    pub(super) const DIGEST: &str = "digest";
    pub(super) const ON_EXIT: &str = "on-exit";
    pub(super) const RUN: &str = "run";
    pub(super) const RESTARTS: &str = "restarts";
    pub(super) const ON_FAILURE: &str = "on-failure";
    pub(super) const LOGS: &str = "logs";
    pub(super) const MODULES: &str = "modules";
    pub(super) const STAGE2: &str = "stage2";
}

/// The expected value of several keys.
const ADDRESSES: &str = "IPv4 addresses separated by commas";

/// Values of `run`.
const DOCKER: &str = "docker";
const ENROL: &str = "enrol";

const HOLD: &str = "bridgehead.hold";
/// Written only by hand.
const RESCUE: &str = "bridgehead.rescue";

/// A node's identity, and where it sends its reports. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity<M> {
    /// Where the appliance answers HTTP.
    pub appliance: SocketAddrV4,
    /// Of the interface that the node boots from.
    pub mac: M,
    /// Its address, and the length of the network's prefix.
    pub address: Option<(Ipv4Addr, u8)>,
}

/// A node's settings for one boot. Missing ones have their default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSettings {
    /// The default gateway.
    pub router: Option<Ipv4Addr>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// The search list; the first domain is the node's own.
    pub search: Vec<String>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// The link's MTU, in bytes; `None` means the driver's.
    pub mtu: Option<u16>,
    /// The lease time; renewal begins at half of it.
    pub lease: Duration,
    /// Whether the boot is to stop in stage 1 until the appliance lets it go on.
    pub hold: bool,
    /// The host name.
    pub name: Option<String>,
    /// The digest that the image must have.
    pub digest: Option<String>,
    /// What to do when the workload's first process ends.
    pub on_exit: OnExit,
    /// Whether the image is a Docker engine, which needs certificates from the appliance.
    pub engine: bool,
    /// Whether it boots only to tell its facts: there is nothing to run.
    pub enrol: bool,
    /// With [`OnExit::Restart`], how often in a row a workload is started again; `None` means for ever.
    pub restarts: Option<u32>,
    /// How a node whose boot failed can be reached.
    pub on_failure: OnFailure,
    /// Whether the workload's output is sent to the appliance.
    pub logs: bool,
    /// Modules to load before all others.
    pub modules: Vec<String>,
    /// What to fetch as the image; `None` means that it comes with stage 1.
    pub stage2: Option<Stage2>,
}

/// The SquashFS that holds the image, as the appliance names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// Hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// What happens after a failed boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Shells on the console, and one by SSH.
    Ssh,
    /// Shells on the console.
    #[default]
    Console,
    /// None: it boots again.
    Off,
}

/// What the node does when its workload's first process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// It powers off.
    #[default]
    PowerOff,
    /// It boots again.
    Reboot,
    /// It starts the workload again.
    Restart,
    /// It stays up without the workload.
    Stay,
}

/// All of a node's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the appliance answers HTTP; `None` means that no reports are sent.
    pub appliance: Option<SocketAddrV4>,
    /// Of the interface that the node boots from, in lower case.
    pub mac: String,
    /// The node's address.
    pub address: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The host name: the one that the appliance gives, or one made from the MAC.
    pub name: String,
    /// The settings for this boot.
    pub boot: BootSettings,
}

/// Why a node can't use its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// This word is missing.
    Missing(&'static str),
    /// A word has a value that this version does not know.
    Invalid {
        /// The key, without its prefix.
        key: &'static str,
        /// The value.
        value: String,
        /// The possible values, as text.
        expected: &'static str,
    },
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(key) => write!(
                f,
                "the kernel's command line has no {PREFIX}{key}=: was this node booted by the appliance's grub.cfg?"
            ),
            Self::Invalid { key, value, expected } => {
                write!(f, "{PREFIX}{key}={value}: expected {expected}")
            }
        }
    }
}

impl core::error::Error for SettingsError {}

impl<M: fmt::Display> Identity<M> {
    /// Its words, for the kernel's command line.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::from([word(key::URL, url(self.appliance)), word(key::MAC, &self.mac)]);
        words.extend(
            self.address.map(|(address, prefix)| word(key::ADDRESS, format_args!("{address}/{prefix}"))),
        );
        words
    }
}

impl Default for BootSettings {
    fn default() -> Self {
        Self {
            router: None,
            dns: Vec::new(),
            search: Vec::new(),
            ntp: Vec::new(),
            mtu: None,
            lease: Duration::from_secs(120),
            hold: false,
            name: None,
            digest: None,
            on_exit: OnExit::default(),
            engine: false,
            enrol: false,
            restarts: None,
            on_failure: OnFailure::default(),
            logs: true,
            modules: Vec::new(),
            stage2: None,
        }
    }
}

impl BootSettings {
    /// Their words, for the machine's own initrd.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        words.extend(self.router.map(|router| word(key::ROUTER, router)));
        for (key, servers) in [(key::DNS, &self.dns), (key::NTP, &self.ntp)] {
            if !servers.is_empty() {
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                words.push(word(key, servers.join(",")));
            }
        }
        if !self.search.is_empty() {
            words.push(word(key::SEARCH, self.search.join(",")));
        }
        words.extend(self.mtu.map(|mtu| word(key::MTU, mtu)));
        words.push(word(key::LEASE, self.lease.as_secs()));
        if self.hold {
            words.push(HOLD.to_owned());
        }
        words.extend(self.name.as_ref().map(|name| word(key::NAME, name)));
        words.extend(self.digest.as_ref().map(|digest| word(key::DIGEST, digest)));
        words.push(word(key::ON_EXIT, self.on_exit.name()));
        if self.engine {
            words.push(word(key::RUN, DOCKER));
        }
        if self.enrol {
            words.push(word(key::RUN, ENROL));
        }
        words.extend(self.restarts.map(|most| word(key::RESTARTS, most)));
        if self.on_failure != OnFailure::default() {
            words.push(word(key::ON_FAILURE, self.on_failure.name()));
        }
        if !self.logs {
            words.push(word(key::LOGS, "off"));
        }
        if !self.modules.is_empty() {
            words.push(word(key::MODULES, self.modules.join(",")));
        }
        words.extend(
            self.stage2
                .as_ref()
                .map(|Stage2 { sha256, size }| word(key::STAGE2, format_args!("sha256:{sha256},{size}"))),
        );
        words
    }

    fn read(words: &Words) -> Result<Self, SettingsError> {
        let without = Self::default();
        let address = |v: &str| v.parse().ok();
        let addresses = |v: &str| v.split(',').map(address).collect();
        let known = |run: &str| [DOCKER, ENROL].into_iter().find(|known| *known == run);
        let run = words.optional(key::RUN, "docker or enrol", known)?;
        Ok(Self {
            router: words.optional(key::ROUTER, "an IPv4 address", address)?,
            dns: words.optional(key::DNS, ADDRESSES, addresses)?.unwrap_or_default(),
            search: words.list(key::SEARCH),
            ntp: words.optional(key::NTP, ADDRESSES, addresses)?.unwrap_or_default(),
            mtu: words.optional(key::MTU, "bytes", |v| v.parse().ok())?,
            lease: words
                .optional(key::LEASE, "seconds", |v| v.parse().ok())?
                .map_or(without.lease, Duration::from_secs),
            hold: words.0.iter().any(|word| word == HOLD),
            name: words.get(key::NAME),
            digest: words.get(key::DIGEST),
            on_exit: words
                .optional(key::ON_EXIT, "poweroff, reboot, restart or stay", OnExit::parse)?
                .unwrap_or_default(),
            engine: run == Some(DOCKER),
            enrol: run == Some(ENROL),
            restarts: words.optional(key::RESTARTS, "a number", |v| v.parse().ok())?,
            on_failure: words
                .optional(key::ON_FAILURE, "ssh, console or off", OnFailure::parse)?
                .unwrap_or_default(),
            logs: words.optional(key::LOGS, "on or off", on_off)?.unwrap_or(without.logs),
            modules: words.list(key::MODULES),
            stage2: words.optional(key::STAGE2, "sha256:DIGITS,BYTES", Stage2::parse)?,
        })
    }
}

impl Settings {
    /// Reads the kernel's command line. Other keys than ours belong to the kernel or the workload, and unknown ones of
    /// ours to a newer appliance.
    pub fn parse(cmdline: &str) -> Result<Self, SettingsError> {
        let words = Words(cmdline::words(cmdline));
        let mac = words.required(key::MAC)?.to_ascii_lowercase();
        let (address, prefix) = read(
            key::ADDRESS,
            &words.required(key::ADDRESS)?,
            "ADDRESS/PREFIX, such as 10.77.0.100/24",
            address_and_prefix,
        )?;
        let appliance = words.optional(key::URL, "http://ADDRESS[:PORT]", endpoint)?;
        let boot = BootSettings::read(&words)?;
        let name = boot.name.clone().unwrap_or_else(|| format!("node-{}", mac.replace(':', "")));
        Ok(Self { appliance, mac, address, prefix, name, boot })
    }
}

/// Whether a shell is wanted in place of the workload.
pub fn rescue_wanted(cmdline: &str) -> bool {
    let is_so = |word: &String| word.strip_prefix(RESCUE).is_some_and(|rest| matches!(rest, "" | "=1"));
    cmdline::words(cmdline).iter().any(is_so)
}

/// Where the appliance answers HTTP, if this is the word that says so.
pub fn appliance(word: &str) -> Option<SocketAddrV4> {
    endpoint(word.strip_prefix(PREFIX)?.strip_prefix(key::URL)?.strip_prefix('=')?)
}

/// `http://10.77.0.1`, with the port unless it is HTTP's own.
pub fn url(appliance: SocketAddrV4) -> String {
    format!("http://{}", authority(appliance))
}

/// `10.77.0.1`, with the port unless it is HTTP's own.
pub fn authority(appliance: SocketAddrV4) -> String {
    match appliance.port() {
        80 => appliance.ip().to_string(),
        _ => appliance.to_string(),
    }
}

/// Reads what [`url`] writes.
pub fn endpoint(url: &str) -> Option<SocketAddrV4> {
    let authority = url.strip_prefix("http://")?.trim_end_matches('/');
    authority.parse().ok().or_else(|| Some(SocketAddrV4::new(authority.parse().ok()?, 80)))
}

impl OnExit {
    const ALL: [Self; 4] = [Self::PowerOff, Self::Reboot, Self::Restart, Self::Stay];

    fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Restart => "restart",
            Self::Stay => "stay",
        }
    }

    fn parse(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|on_exit| on_exit.name() == value)
    }
}

impl OnFailure {
    const ALL: [Self; 3] = [Self::Ssh, Self::Console, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Console => "console",
            Self::Off => "off",
        }
    }

    fn parse(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|on_failure| on_failure.name() == value)
    }
}

impl Stage2 {
    fn parse(value: &str) -> Option<Self> {
        let (sha256, size) = value.strip_prefix("sha256:")?.split_once(',')?;
        // It becomes part of a path.
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let size = size.parse().ok().filter(|size| *size > 0)?;
        (sha256.len() == 64 && sha256.bytes().all(digits)).then(|| Self { sha256: sha256.to_owned(), size })
    }
}

/// The words of a command line.
struct Words(Vec<String>);

impl Words {
    /// The value of a key, if it has one. The last one counts, as with the kernel's own parameters.
    fn get(&self, key: &str) -> Option<String> {
        self.last(key).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    fn last(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find_map(|word| word.strip_prefix(PREFIX)?.strip_prefix(key)?.strip_prefix('='))
    }

    fn required(&self, key: &'static str) -> Result<String, SettingsError> {
        self.get(key).ok_or(SettingsError::Missing(key))
    }

    fn optional<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingsError> {
        self.get(key).map(|value| read(key, &value, expected, parse)).transpose()
    }

    /// The parts of a value between commas.
    fn list(&self, key: &str) -> Vec<String> {
        let list = self.last(key).unwrap_or_default();
        list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

fn word(key: &str, value: impl fmt::Display) -> String {
    format!("{PREFIX}{key}={value}")
}

fn read<T>(
    key: &'static str,
    value: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, SettingsError> {
    parse(value).ok_or_else(|| SettingsError::Invalid { key, value: value.to_owned(), expected })
}

fn address_and_prefix(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|p| (1..=32).contains(p))?;
    Some((address.parse().ok()?, prefix))
}

fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
