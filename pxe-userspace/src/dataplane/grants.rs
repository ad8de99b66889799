//! The machines that the programs answer by themselves.

use std::collections::HashMap;

use aya::maps::MapData;
use pxe_common::Mac;
use pxe_common::map::{Lease, MAX_LEASES};

pub(super) type LeaseMap = aya::maps::HashMap<MapData, Mac, Lease>;

pub(super) struct Grants {
    map: LeaseMap,
    /// The machines in the map, and until when their entries are useful. The programs remove entries, too.
    until: HashMap<Mac, u64>,
    /// A full map is not searched again before this time.
    look_again_ns: u64,
    /// Grants for which there was no room since.
    without: u64,
}

/// How often a full map is searched for ended entries.
const LOOK_EVERY_NS: u64 = 60_000_000_000;

impl Grants {
    pub(super) fn new(map: LeaseMap) -> Self {
        Self { map, until: HashMap::new(), look_again_ns: 0, without: 0 }
    }

    pub(super) fn grant(&mut self, mac: Mac, lease: &Lease, now_ns: u64) {
        if self.until.len() >= MAX_LEASES && !self.until.contains_key(&mac) && !self.makes_room(now_ns) {
            self.without += 1;
            return;
        }
        self.until.insert(mac, lease.durable_until_ns);
        if let Err(error) = self.map.insert(mac, lease, 0) {
            // The old entry may have another address.
            tracing::debug!(%mac, %error, "the kernel does not answer this machine: its map takes no lease");
            self.revoke(mac);
            self.without += 1;
        }
    }

    /// Removes ended entries, and returns whether there is room then. All entries are searched only once in a while, not
    /// for each machine that finds the map full.
    fn makes_room(&mut self, now_ns: u64) -> bool {
        if now_ns >= self.look_again_ns {
            self.look_again_ns = now_ns + LOOK_EVERY_NS;
            self.forget_ended(now_ns);
            let without = std::mem::take(&mut self.without);
            if without > 0 {
                tracing::warn!(
                    without,
                    most = MAX_LEASES,
                    "the kernel's map of leases is full: the daemon answers the others"
                );
            }
        }
        self.until.len() < MAX_LEASES
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

    /// Grants these leases and no others, whatever an earlier daemon left in the map. A machine that is in
    /// it before and after is answered meanwhile.
    pub(super) fn grant_only(&mut self, leases: &[(Mac, Lease)], now_ns: u64) {
        self.until = leases.iter().map(|(mac, lease)| (*mac, lease.durable_until_ns)).collect();
        let others: Vec<Mac> =
            self.map.keys().filter_map(Result::ok).filter(|mac| !self.until.contains_key(mac)).collect();
        others.into_iter().for_each(|mac| self.remove(mac));
        leases.iter().for_each(|(mac, lease)| self.grant(*mac, lease, now_ns));
    }

    /// Removes the useless entries of machines that did not come back.
    fn forget_ended(&mut self, now_ns: u64) {
        let ended: Vec<Mac> =
            self.until.iter().filter(|(_, until)| **until <= now_ns).map(|(mac, _)| *mac).collect();
        ended.into_iter().for_each(|mac| self.revoke(mac));
    }
}
