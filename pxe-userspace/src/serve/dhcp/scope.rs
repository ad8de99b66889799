//! What the configuration means for replies: who gets a boot file, and the grant for each machine.

use std::net::Ipv4Addr;
use std::sync::Arc;

use pxe_common::Mac;
use pxe_common::dhcp::{Boot, Firmware, Grant, option, reply::OPTIONS_CAP};
use pxe_contract::paths::{GRUB_BIOS, GRUB_EFI_X64};

use super::leases::Pool;
use crate::config::{Config, DhcpMode, IpxeLoader, Unknown};
use crate::provision::boot::Appliance;
use crate::provision::boot::Generated;

/// Options that a reply's builder writes itself: given by number in the configuration, they are
/// left out.
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

/// The configuration as replies need it.
#[derive(Clone, Debug)]
pub struct Scope {
    config: Arc<Config>,
    common: [u8; OPTIONS_CAP],
    /// Where each common option ends, so that a reply can be shortened option by option.
    ends: Vec<u16>,
    /// Options of the configuration that no reply carries: owned by the builder, or no room.
    pub left_out: Vec<u8>,
}

impl Scope {
    pub fn new(config: Arc<Config>) -> Self {
        let common = common_options(&config);
        let mut scope = Self { config, common: [0; OPTIONS_CAP], ends: Vec::new(), left_out: Vec::new() };
        for (code, value) in common {
            scope.append(code, &value);
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
        self.config.dhcp.unknown != Unknown::Ignore || self.config.node(mac).is_some()
    }

    /// Whether an address of the boot segment.
    pub fn is_local(&self, address: Ipv4Addr) -> bool {
        self.config.network.address.contains(&address)
    }

    /// The profile that the machine boots.
    pub fn profile(&self, mac: Mac) -> Option<&str> {
        self.config.profile_of(mac).map(|p| p.name.as_str())
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
            lease_time: dhcp.lease_time,
        }
    }

    /// What a reply to `mac` says beyond what it echoes. A machine without a profile is given no
    /// boot file.
    pub fn grant(&self, mac: Mac, address: Ipv4Addr) -> Grant {
        Grant {
            address: address.octets(),
            server: self.address().octets(),
            lease_time: u32::try_from(self.config.dhcp.lease_time.as_secs()).unwrap_or(u32::MAX),
            reserved: 0,
            options_len: self.ends.last().copied().unwrap_or(0),
            options: self.common,
            boot: match self.profile(mac) {
                Some(_) => self.boots(mac),
                None => [Boot::NONE; Firmware::SLOTS],
            },
        }
    }

    /// Takes the last, least needed, common option off the grant; false when none is left.
    pub fn shorten(&self, grant: &mut Grant) -> bool {
        let shorter = self.ends.iter().rev().copied().find(|end| *end < grant.options_len);
        let had = grant.options_len != 0;
        grant.options_len = shorter.unwrap_or(0);
        had
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
            // Every name fits, whatever the address and port: a test says so.
            if let Some(boot) = Boot::new(firmware, self.address(), &name) {
                boots[firmware.slot()] = boot;
            }
        }
        boots
    }

    fn append(&mut self, code: u8, value: &[u8]) {
        let at = usize::from(self.ends.last().copied().unwrap_or(0));
        let end = at + 2 + value.len();
        match (u8::try_from(value.len()), self.common.get_mut(at..end)) {
            (Ok(len), Some(room)) if !OWNED.contains(&code) => {
                room[0] = code;
                room[1] = len;
                room[2..].copy_from_slice(value);
                self.ends.push(end as u16);
            }
            _ => self.left_out.push(code),
        }
    }
}

/// The options that all machines share, the most needed first. An option given by number
/// replaces the one that is made.
fn common_options(config: &Config) -> Vec<(u8, Vec<u8>)> {
    let dhcp = &config.dhcp;
    let octets = |addresses: &[Ipv4Addr]| addresses.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>();
    let made = [
        (option::SUBNET_MASK, config.network.address.netmask().octets().to_vec()),
        (option::ROUTER, octets(dhcp.router.as_slice())),
        (option::DNS, octets(&dhcp.dns)),
        (option::BROADCAST, config.network.address.broadcast().octets().to_vec()),
        (option::DOMAIN, dhcp.domain.as_deref().unwrap_or_default().as_bytes().to_vec()),
        (option::NTP, octets(&dhcp.ntp)),
    ];
    let made = made.into_iter().filter(|(code, value)| !value.is_empty() && !dhcp.options.contains_key(code));
    made.chain(dhcp.options.iter().map(|(code, value)| (*code, value.clone()))).collect()
}
