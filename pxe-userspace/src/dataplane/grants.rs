//! The machines that the programs answer by themselves.

use std::collections::HashMap;

use aya::maps::MapData;
use pxe_common::Mac;
use pxe_common::map::{Lease, MAX_LEASES};

pub(super) type LeaseMap = aya::maps::HashMap<MapData, Mac, Lease>;

pub(super) struct Grants {
    map: LeaseMap,
    /// Who is in the map, and until when that is of use. The programs take entries out, too.
    until: HashMap<Mac, u64>,
}

impl Grants {
    pub(super) fn new(map: LeaseMap) -> Self {
        Self { map, until: HashMap::new() }
    }

    pub(super) fn grant(&mut self, mac: Mac, lease: &Lease, now_ns: u64) {
        if self.until.len() >= MAX_LEASES && !self.until.contains_key(&mac) {
            self.forget_ended(now_ns);
        }
        self.until.insert(mac, lease.durable_until_ns);
        if let Err(error) = self.map.insert(mac, lease, 0) {
            // What was there before may be another address.
            tracing::warn!(%mac, %error, "the kernel does not answer this machine: its map takes no more leases");
            self.revoke(mac);
        }
    }

    pub(super) fn revoke(&mut self, mac: Mac) {
        if self.until.remove(&mac).is_some() {
            self.remove(mac);
        }
    }

    fn remove(&mut self, mac: Mac) {
        if let Err(error) = self.map.remove(&mac) {
            tracing::debug!(%mac, %error, "a lease was gone already");
        }
    }

    /// These and no others, whatever an earlier daemon left in the map. Who is in it before and
    /// after is answered all the while.
    pub(super) fn grant_only(&mut self, leases: &[(Mac, Lease)], now_ns: u64) {
        self.until = leases.iter().map(|(mac, lease)| (*mac, lease.durable_until_ns)).collect();
        let others: Vec<Mac> =
            self.map.keys().filter_map(Result::ok).filter(|mac| !self.until.contains_key(mac)).collect();
        others.into_iter().for_each(|mac| self.remove(mac));
        leases.iter().for_each(|(mac, lease)| self.grant(*mac, lease, now_ns));
    }

    /// Machines that stayed away leave entries that are of no use.
    fn forget_ended(&mut self, now_ns: u64) {
        let ended: Vec<Mac> =
            self.until.iter().filter(|(_, until)| **until <= now_ns).map(|(mac, _)| *mac).collect();
        ended.into_iter().for_each(|mac| self.revoke(mac));
    }
}
