//! The kernel's part in DHCP: which machines it may answer, and the answers that it reports.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::{Firmware, MessageType};
use pxe_common::map::{Event, EventKind, Lease};
use pxe_common::verdict::Hook;

use super::server::Standing;
use crate::base::clock::boot_time_ns;
use crate::machines::timeline::AnsweredBy;

/// Where the kernel programs look leases up.
pub trait LeaseMap: Send + Sync {
    /// From now on the machine is answered from `lease`.
    fn grant(&self, mac: Mac, lease: &Lease);
    /// From now on the machine's requests come to the daemon.
    fn revoke(&self, mac: Mac);
    /// From now on these machines are answered, and no others.
    fn grant_only(&self, leases: &[(Mac, Lease)]);
    /// Requests a [`Told::Heard`] with a time not before now.
    fn settle(&self);
}

/// The programs, and the MAC from which they answer.
#[derive(Clone)]
pub struct Kernel {
    map: Arc<dyn LeaseMap>,
    server_mac: Mac,
}

impl Kernel {
    /// Programs that answer from `server_mac`, the bridge's own.
    pub fn new(map: Arc<dyn LeaseMap>, server_mac: Mac) -> Self {
        Self { map, server_mac }
    }

    /// Makes the kernel answer the machine from `standing`; with `None` only the daemon does.
    pub(super) fn set(&self, mac: Mac, standing: Option<Standing>, now: Timestamp) {
        match standing {
            Some(standing) => self.map.grant(mac, &lease(&standing, self.server_mac, now)),
            None => self.map.revoke(mac),
        }
    }

    /// Finds out soon whether the kernel promised an address again that has just ended.
    pub(super) fn settle(&self) {
        self.map.settle();
    }

    /// Makes the kernel answer these machines, and no others.
    pub(super) fn set_all(&self, standing: impl Iterator<Item = (Mac, Standing)>, now: Timestamp) {
        let leases: Vec<_> = standing.map(|(mac, s)| (mac, lease(&s, self.server_mac, now))).collect();
        self.map.grant_only(&leases);
    }
}

/// A lease as the programs read it. Its end is in the time of their clock, which no administrator and
/// no time server sets.
pub(super) fn lease(standing: &Standing, server_mac: Mac, now: Timestamp) -> Lease {
    let left_ns = standing.durable_until.duration_since(now).as_nanos().max(0);
    Lease {
        durable_until_ns: boot_time_ns().saturating_add(u64::try_from(left_ns).unwrap_or(u64::MAX)),
        netmask: standing.netmask.octets(),
        server_mac,
        reserved: [0; 2],
        grant: standing.grant,
    }
}

/// The kernel's messages, in order.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    Event(Event),
    /// All events of the programs before `until_ns`, by CLOCK_BOOTTIME, have been passed on, except those that were
    /// `lost`, if any.
    Heard {
        until_ns: u64,
        lost: bool,
    },
}

/// A time of the programs' clock.
pub(super) fn time(boot_ns: u64, now: Timestamp) -> Timestamp {
    let ago = Duration::from_nanos(boot_time_ns().saturating_sub(boot_ns));
    now.checked_sub(ago).unwrap_or(Timestamp::MIN)
}

/// A request that the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub firmware: Firmware,
    /// DISCOVER or REQUEST.
    pub message: MessageType,
    pub by: AnsweredBy,
}

impl Answered {
    /// Reads DHCP's events.
    pub fn of(event: &Event) -> Option<Self> {
        let message = match event.kind()? {
            EventKind::Offer => MessageType::Discover,
            EventKind::Ack => MessageType::Request,
            EventKind::Mark | EventKind::Finished | EventKind::Aborted => return None,
        };
        let (mac, firmware) = event.client();
        let by = if event.hook == Hook::Xdp as u16 { AnsweredBy::Xdp } else { AnsweredBy::Tc };
        Some(Self { mac, address: event.address.into(), firmware, message, by })
    }
}
