//! What the appliance tells a node: keys that begin with `bridgehead.`, on the kernel's command line and behind it
//! (`ticket`).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::appliance::Appliance;

/// The node's part in this boot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Where reports go and stage 2 comes from; none means that no reports are sent.
    pub(crate) appliance: Option<Appliance>,
    /// The MAC of the interface that the node booted from, in lower case.
    pub(crate) mac: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) router: Option<Ipv4Addr>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) name: String,
    pub(crate) on_exit: OnExit,
    /// Whether the image is a Docker engine, which needs papers of the appliance.
    pub(crate) engine: bool,
    /// How often in a row a workload is started again, where that is wanted; none means for ever.
    pub(crate) restarts: Option<u32>,
    /// How a node whose boot failed can be reached.
    pub(crate) on_failure: Rescue,
    /// Whether the appliance is told what the workload says.
    pub(crate) logs: bool,
    /// The digest that the image must have.
    pub(crate) digest: Option<String>,
    /// What to fetch as the image; none means that it came with stage 1.
    pub(crate) stage2: Option<Stage2>,
    /// How long the address is the node's; renewal begins at half of it.
    pub(crate) lease: Duration,
}

/// The SquashFS that holds the image, as the appliance names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage2 {
    /// Hexadecimal.
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

/// What becomes of a boot that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rescue {
    /// Shells on the console, and one by SSH.
    Ssh,
    Console,
    /// None: it boots again.
    Off,
}

/// What the node does when its workload's first process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnExit {
    PowerOff,
    Reboot,
    Restart,
    Stay,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(
        "the kernel's command line has no bridgehead.{0}=: was this node booted by the appliance's grub.cfg?"
    )]
    Missing(&'static str),
    #[error("bridgehead.{key}={value}: expected {expected}")]
    Invalid { key: &'static str, value: String, expected: &'static str },
}

/// Whether a shell was asked for in place of the workload.
pub(crate) fn rescue_wanted(cmdline: &str) -> bool {
    words(cmdline).iter().any(|w| w == "bridgehead.rescue" || w == "bridgehead.rescue=1")
}

/// Whether the boot is to stop here until the appliance lets it go on.
pub(crate) fn hold_wanted(cmdline: &str) -> bool {
    words(cmdline).iter().any(|w| w == "bridgehead.hold")
}

/// The modules that the profile names.
pub(crate) fn modules_wanted(cmdline: &str) -> Vec<String> {
    let words = words(cmdline);
    let value = words.iter().rev().find_map(|word| word.strip_prefix("bridgehead.modules="));
    value.unwrap_or_default().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Settings {
    /// Reads the kernel's command line. Other keys than ours are the kernel's or the workload's.
    pub(crate) fn parse(cmdline: &str) -> Result<Self, SettingsError> {
        let words = words(cmdline);
        // The last one wins, as with the kernel's own parameters.
        let get = |key: &'static str| {
            let value = |w: &'_ String| {
                w.strip_prefix("bridgehead.")?.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)
            };
            words.iter().rev().find_map(value).filter(|v| !v.is_empty())
        };
        let required = |key| get(key).ok_or(SettingsError::Missing(key));

        let mac = required("mac")?.to_ascii_lowercase();
        let (address, prefix) = read(
            "address",
            &required("address")?,
            "ADDRESS/PREFIX, such as 10.77.0.100/24",
            address_and_prefix,
        )?;
        let dns = |v: &str| v.split(',').map(|a| a.parse().ok()).collect();
        Ok(Self {
            appliance: optional(get("url"), "url", "http://ADDRESS[:PORT]", endpoint)?.map(Appliance::plain),
            address,
            prefix,
            router: optional(get("router"), "router", "an IPv4 address", |v| v.parse().ok())?,
            dns: optional(get("dns"), "dns", "IPv4 addresses separated by commas", dns)?.unwrap_or_default(),
            name: get("name").unwrap_or_else(|| format!("node-{}", mac.replace(':', ""))),
            on_exit: optional(get("on-exit"), "on-exit", "poweroff, reboot, restart or stay", on_exit)?
                .unwrap_or(OnExit::PowerOff),
            engine: optional(get("run"), "run", "docker", |run| (run == "docker").then_some(()))?.is_some(),
            restarts: optional(get("restarts"), "restarts", "a number", |v| v.parse().ok())?,
            on_failure: optional(get("on-failure"), "on-failure", "ssh, console or off", rescue)?
                .unwrap_or(Rescue::Console),
            logs: optional(get("logs"), "logs", "on or off", on_off)?.unwrap_or(true),
            digest: get("digest"),
            stage2: optional(get("stage2"), "stage2", "sha256:DIGITS,BYTES", stage2)?,
            lease: optional(get("lease"), "lease", "seconds", |v| v.parse().ok())?
                .map_or(Duration::from_secs(120), Duration::from_secs),
            mac,
        })
    }
}

fn optional<T>(
    value: Option<String>,
    key: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, SettingsError> {
    value.map(|v| read(key, &v, expected, parse)).transpose()
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

fn endpoint(url: &str) -> Option<SocketAddrV4> {
    let authority = url.strip_prefix("http://")?.trim_end_matches('/');
    authority.parse().ok().or_else(|| Some(SocketAddrV4::new(authority.parse().ok()?, 80)))
}

fn stage2(value: &str) -> Option<Stage2> {
    let (sha256, size) = value.strip_prefix("sha256:")?.split_once(',')?;
    // It becomes part of a path.
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let size = size.parse().ok().filter(|size| *size > 0)?;
    (sha256.len() == 64 && sha256.bytes().all(digits)).then(|| Stage2 { sha256: sha256.to_owned(), size })
}

fn rescue(value: &str) -> Option<Rescue> {
    match value {
        "ssh" => Some(Rescue::Ssh),
        "console" => Some(Rescue::Console),
        "off" => Some(Rescue::Off),
        _ => None,
    }
}

fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn on_exit(value: &str) -> Option<OnExit> {
    match value {
        "poweroff" => Some(OnExit::PowerOff),
        "reboot" => Some(OnExit::Reboot),
        "restart" => Some(OnExit::Restart),
        "stay" => Some(OnExit::Stay),
        _ => None,
    }
}

/// Splits as the kernel does (`next_arg` in lib/cmdline.c): at white space outside double quotes.
/// Quotes around a value or around a whole word are not part of it; there are no escapes.
fn words(cmdline: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "BOOT_IMAGE=x console=ttyS0 bridgehead.url=http://10.77.0.1 bridgehead.mac=52:54:00:77:00:0A \
        bridgehead.address=10.77.0.100/24 bridgehead.router= bridgehead.dns=10.77.0.1,1.1.1.1 \"bridgehead.name=n 1\" \
        bridgehead.on-exit=stay bridgehead.restarts=3 bridgehead.on-failure=ssh bridgehead.logs=off bridgehead.run=docker bridgehead.digest=sha256:abc bridgehead.lease=3600 \
        bridgehead.stage2=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef,4096";

    #[test]
    fn reads_every_key() {
        let settings = Settings::parse(LINE).unwrap();
        assert_eq!(
            settings,
            Settings {
                appliance: Some(Appliance::plain("10.77.0.1:80".parse().unwrap())),
                mac: "52:54:00:77:00:0a".into(),
                address: Ipv4Addr::new(10, 77, 0, 100),
                prefix: 24,
                router: None,
                dns: vec![Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(1, 1, 1, 1)],
                name: "n 1".into(),
                on_exit: OnExit::Stay,
                engine: true,
                restarts: Some(3),
                on_failure: Rescue::Ssh,
                logs: false,
                digest: Some("sha256:abc".into()),
                stage2: Some(Stage2 { sha256: "0123456789abcdef".repeat(4), size: 4096 }),
                lease: Duration::from_secs(3600),
            }
        );
    }

    #[test]
    fn says_which_key_is_missing_or_wrong() {
        assert_eq!(Settings::parse("quiet"), Err(SettingsError::Missing("mac")));
        let wrong = format!("{LINE} bridgehead.address=10.77.0.100");
        let error = Settings::parse(&wrong).unwrap_err().to_string();
        assert_eq!(error, "bridgehead.address=10.77.0.100: expected ADDRESS/PREFIX, such as 10.77.0.100/24");
        let wrong = format!("{LINE} bridgehead.on-exit=explode");
        assert!(matches!(Settings::parse(&wrong), Err(SettingsError::Invalid { key: "on-exit", .. })));
    }

    #[test]
    fn endpoints_are_addresses_with_or_without_a_port() {
        assert_eq!(endpoint("http://10.0.0.1:8080/"), Some("10.0.0.1:8080".parse().unwrap()));
        for bad in ["https://10.0.0.1", "http://name", "10.0.0.1", "http://10.0.0.1/path"] {
            assert_eq!(endpoint(bad), None, "{bad}");
        }
    }

    #[test]
    fn stage_2_is_a_digest_and_a_size() {
        let digest = "0123456789abcdef".repeat(4);
        assert!(stage2(&format!("sha256:{digest},1")).is_some());
        for bad in ["", "sha256:ab,1", &digest, &format!("sha256:{digest}"), &format!("sha256:{digest},0")] {
            assert_eq!(stage2(bad), None, "{bad}");
        }
        assert_eq!(stage2(&format!("sha256:{},1", digest.replace('0', "/"))), None);
    }

    #[test]
    fn modules_are_a_list_and_the_last_one_counts() {
        let line = "bridgehead.modules=dummy quiet bridgehead.modules=bonding,,8021q";
        assert_eq!(modules_wanted(line), ["bonding", "8021q"]);
        assert!(modules_wanted("quiet bridgehead.modules=").is_empty());
    }

    #[test]
    fn rescue_is_a_word_of_its_own() {
        assert!(rescue_wanted("quiet bridgehead.rescue"));
        assert!(!rescue_wanted("quiet \"x=bridgehead.rescue \" bridgehead.rescuer"));
    }
}
