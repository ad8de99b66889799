//! What the configuration means for replies: who gets a boot file, and the grant for each machine.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use pxe_common::Mac;
use pxe_common::dhcp::{Boot, Firmware, Grant, option, reply::OPTIONS_CAP};
use pxe_contract::paths::{GRUB_BIOS, GRUB_EFI_X64};

use super::leases::Pool;
use crate::config::rules::Facts;
use crate::config::{Config, DhcpMode, IpxeLoader, Node, Origin, Unknown};
use crate::machines::kept::says_more;
use crate::provision::boot::Appliance;
use crate::provision::boot::Generated;

/// Options that the reply builder writes itself; in the configuration's options by number, they are
/// ignored.
const OWNED: [u8; 16] = [
    option::PAD,
    option::VENDOR_SPECIFIC,
    option::REQUESTED_ADDRESS,
    option::LEASE_TIME,
    option::OVERLOAD,
    option::MESSAGE_TYPE,
    option::SERVER_ID,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
    option::VENDOR_CLASS,
    option::CLIENT_ID,
    option::TFTP_SERVER,
    option::BOOT_FILE,
    option::RELAY_AGENT,
    option::MACHINE_ID,
    option::END,
];

/// The configuration, prepared for replies.
#[derive(Clone, Debug)]
pub struct Scope {
    config: Arc<Config>,
    common: [u8; OPTIONS_CAP],
    /// Where each common option ends, so that a reply can be shortened option by option.
    ends: Vec<u16>,
    /// Options of the configuration that are in no reply: the builder's own, or there is no room.
    pub left_out: Vec<u8>,
}

impl Scope {
    pub fn new(config: Arc<Config>) -> Self {
        let common = common_options(&config);
        let mut scope = Self { config, common: [0; OPTIONS_CAP], ends: Vec::new(), left_out: Vec::new() };
        for (code, value) in common {
            scope.append(code, &value);
        }
        if !scope.config.nodes.is_empty() && scope.common.len() - scope.len() < HOST_NAME_LEN {
            scope.left_out.push(option::HOST_NAME);
        }
        scope
    }

    /// What the scope was made from.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The appliance's own address.
    pub fn address(&self) -> Ipv4Addr {
        self.config.network.address.addr()
    }

    pub fn mode(&self) -> DhcpMode {
        self.config.dhcp.mode
    }

    /// Whether the machine is served at all.
    pub fn serves(&self, mac: Mac) -> bool {
        self.config.dhcp.unknown != Unknown::Ignore || self.node(mac).is_some()
    }

    /// The machines that the configuration names.
    pub fn declared(&self) -> HashSet<Mac> {
        self.config.nodes.iter().map(|node| node.mac).collect()
    }

    /// What the configuration says of the machine.
    fn node(&self, mac: Mac) -> Option<&Node> {
        self.config.node(mac)
    }

    /// Whether a rule may take the machine, once more is known of it; or whether it may be another machine than the one
    /// that a rule took.
    pub fn may_be_named(&self, facts: &Facts) -> bool {
        let node = match self.config.rules.is_empty() {
            true => return false,
            false => self.node(facts.mac),
        };
        match node {
            None => self.config.rules.iter().any(|rule| rule.matches.may_fit(facts)),
            Some(node) if matches!(node.origin, Origin::Rule(_)) => {
                says_more(node.uuid.as_deref(), facts.uuid.as_deref())
            }
            Some(_) => false,
        }
    }

    /// Whether the address is on the boot segment.
    pub fn is_local(&self, address: Ipv4Addr) -> bool {
        self.config.network.address.contains(&address)
    }

    /// The profile that the machine boots.
    pub fn profile(&self, mac: Mac) -> Option<&str> {
        self.config.profile_for(self.node(mac)).map(|p| p.name.as_str())
    }

    /// The addresses that may be given out.
    pub fn pool(&self) -> Pool {
        let Config { network, dhcp, nodes, workloads, .. } = &*self.config;
        let subnet = network.address;
        let mut taken = [subnet.addr(), subnet.network(), subnet.broadcast()].into_iter().collect();
        let others = dhcp.router.iter().chain(&dhcp.dns).chain(&dhcp.ntp).copied();
        let workloads = workloads.iter().filter_map(|w| w.address);
        std::collections::BTreeSet::extend(&mut taken, others.chain(workloads));
        Pool {
            range: dhcp.range,
            taken,
            reservations: nodes.iter().filter_map(|n| Some((n.mac, n.address?))).collect(),
            declared: nodes.iter().filter(|n| n.address.is_none()).map(|n| n.mac).collect(),
            lease_time: dhcp.lease_time,
        }
    }

    /// What a reply to `mac` says beyond what it echoes. A machine without a profile is given no
    /// boot file.
    pub fn grant(&self, mac: Mac, address: Ipv4Addr) -> Grant {
        let (options, options_len) = self.options(mac);
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let dhcp = &self.config.dhcp;
        let [renewal_time, rebinding_time] = dhcp.renewals();
        Grant {
            address: address.octets(),
            server: self.address().octets(),
            lease_time: seconds(dhcp.lease_time),
            renewal_time: seconds(renewal_time),
            rebinding_time: seconds(rebinding_time),
            reserved: 0,
            options_len,
            options,
            boot: match self.profile(mac) {
                Some(_) => self.boots(mac),
                None => [Boot::NONE; Firmware::SLOTS],
            },
        }
    }

    /// The options that all machines share, and behind them its name; with their length.
    fn options(&self, mac: Mac) -> ([u8; OPTIONS_CAP], u16) {
        let (mut options, at) = (self.common, self.len());
        let end =
            self.node(mac).and_then(|node| encode(&mut options, at, option::HOST_NAME, node.name.as_bytes()));
        (options, end.unwrap_or(at) as u16)
    }

    /// Bytes of the options that all machines share.
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0).into()
    }

    /// Takes the last, least needed, common option off the grant; false when none is left.
    pub fn shorten(&self, grant: &mut Grant) -> bool {
        let shorter = self.ends.iter().rev().copied().find(|end| *end < grant.options_len);
        let had = grant.options_len != 0;
        grant.options_len = shorter.unwrap_or(0);
        had
    }

    /// The one subnet that is served.
    pub fn subnet(&self) -> ipnet::Ipv4Net {
        self.config.network.address.trunc()
    }

    /// The boundary of the boot segment.
    pub fn netmask(&self) -> Ipv4Addr {
        self.config.network.address.netmask()
    }

    /// The first file of each kind of client's boot.
    fn boots(&self, mac: Mac) -> [Boot; Firmware::SLOTS] {
        let http = Appliance::from(&*self.config).url();
        let script = || format!("{http}/{}", Generated::IpxeScript(mac));
        let (ipxe_bios, ipxe_uefi) = match self.config.boot.ipxe {
            IpxeLoader::Grub => (GRUB_BIOS.to_owned(), GRUB_EFI_X64.to_owned()),
            IpxeLoader::Script => (script(), script()),
        };
        let mut boots = [Boot::NONE; Firmware::SLOTS];
        for (firmware, name) in [
            (Firmware::Bios, GRUB_BIOS.to_owned()),
            (Firmware::UefiX64, GRUB_EFI_X64.to_owned()),
            (Firmware::IpxeBios, ipxe_bios),
            (Firmware::IpxeUefiX64, ipxe_uefi),
            (Firmware::HttpX64, format!("{http}/{GRUB_EFI_X64}")),
        ] {
            // Every name fits, whatever the address and port, which a test shows.
            if let Some(boot) = Boot::new(firmware, self.address(), &name) {
                boots[firmware.slot()] = boot;
            }
        }
        boots
    }

    fn append(&mut self, code: u8, value: &[u8]) {
        let at = self.len();
        let end = (!OWNED.contains(&code)).then(|| encode(&mut self.common, at, code, value)).flatten();
        match end {
            Some(end) => self.ends.push(end as u16),
            None => self.left_out.push(code),
        }
    }
}

/// Bytes of the longest host name as an option.
const HOST_NAME_LEN: usize = 2 + 63 + 1;

/// Writes an option, and returns where the next one begins; `None` without room. A text is followed by a zero, which is
/// a PAD, because many clients read it as a C string.
fn encode(options: &mut [u8; OPTIONS_CAP], at: usize, code: u8, value: &[u8]) -> Option<usize> {
    let is_text = matches!(code, option::HOST_NAME | option::DOMAIN | option::ROOT_PATH);
    let end = at + 2 + value.len() + usize::from(is_text);
    let room = options.get_mut(at..end)?;
    room.fill(0);
    room[0] = code;
    room[1] = u8::try_from(value.len()).ok()?;
    room[2..][..value.len()].copy_from_slice(value);
    Some(end)
}

/// A list of domains as option 119 has it (RFC 3397 section 2), without compression.
fn domain_list<'a>(domains: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    let mut list = Vec::new();
    for domain in domains {
        for label in domain.split('.') {
            // A label has at most 63 bytes: the configuration was checked.
            list.push(label.len() as u8);
            list.extend(label.as_bytes());
        }
        list.push(0);
    }
    list
}

/// The options that all machines share, the most needed first. An option given by number
/// replaces the one that is made.
fn common_options(config: &Config) -> Vec<(u8, Vec<u8>)> {
    let dhcp = &config.dhcp;
    let octets = |addresses: &[Ipv4Addr]| addresses.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>();
    // The domain alone needs no list.
    let search = if dhcp.search.is_empty() { Vec::new() } else { domain_list(dhcp.search_list()) };
    let made = [
        (option::SUBNET_MASK, config.network.address.netmask().octets().to_vec()),
        (option::ROUTER, octets(dhcp.router.as_slice())),
        (option::DNS, octets(&dhcp.dns)),
        (option::BROADCAST, config.network.address.broadcast().octets().to_vec()),
        (option::DOMAIN, dhcp.domain.as_deref().unwrap_or_default().as_bytes().to_vec()),
        (option::MTU, dhcp.mtu.map(|mtu| mtu.to_be_bytes().to_vec()).unwrap_or_default()),
        (option::NTP, octets(&dhcp.ntp)),
        (option::DOMAIN_SEARCH, search),
    ];
    let made = made.into_iter().filter(|(code, value)| !value.is_empty() && !dhcp.options.contains_key(code));
    made.chain(dhcp.options.iter().map(|(code, value)| (*code, value.clone()))).collect()
}
