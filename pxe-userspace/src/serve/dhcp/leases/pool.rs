//! Which addresses may be given out, and to whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use pxe_common::Mac;

/// The addresses that may be given out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// First and last, both included.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Addresses inside the range that are in use otherwise: by the appliance, the router, workloads.
    pub taken: BTreeSet<Ipv4Addr>,
    pub reservations: HashMap<Mac, Ipv4Addr>,
    /// Machines without a reservation for which an address is kept free.
    pub declared: Vec<Mac>,
    pub lease_time: Duration,
}

/// A pool with the addresses that it keeps for declared machines: no other machine gets one of these.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    pub(super) pool: Pool,
    /// The addresses that the pool reserves for somebody.
    reserved: HashSet<Ipv4Addr>,
    /// The address kept for each machine, and the reverse.
    kept: HashMap<Mac, Ipv4Addr>,
    kept_for: BTreeMap<Ipv4Addr, Mac>,
}

impl Addresses {
    /// Those of `pool`. `present`: the address that a machine has; `free`: addresses that can be kept, the best first.
    pub(super) fn new(
        pool: Pool,
        present: impl Fn(Mac) -> Option<Ipv4Addr>,
        free: impl Iterator<Item = Ipv4Addr>,
    ) -> Self {
        let reserved = pool.reservations.values().copied().collect();
        let declared = pool.declared.clone();
        let mut addresses = Self { pool, reserved, kept: HashMap::new(), kept_for: BTreeMap::new() };
        let mut without = Vec::new();
        for mac in declared {
            match present(mac).filter(|address| addresses.is_pooled(*address)) {
                Some(address) => addresses.keep(mac, address),
                None => without.push(mac),
            }
        }
        let mut free = free;
        for mac in without {
            let unclaimed = |address: &Ipv4Addr| {
                addresses.is_pooled(*address) && !addresses.kept_for.contains_key(address)
            };
            let Some(address) = free.find(unclaimed) else { break };
            addresses.keep(mac, address);
        }
        addresses
    }

    /// Whether the address is one of the range that any machine may get.
    pub(super) fn is_pooled(&self, address: Ipv4Addr) -> bool {
        self.pool.range.is_some_and(|(first, last)| (first..=last).contains(&address))
            && !self.pool.taken.contains(&address)
            && !self.reserved.contains(&address)
    }

    /// How many addresses of the range any machine may get.
    pub(super) fn size(&self) -> usize {
        let Some((first, last)) = self.pool.range else { return 0 };
        let apart: HashSet<_> = self.pool.taken.iter().chain(&self.reserved).collect();
        let apart = apart.into_iter().filter(|address| (first..=last).contains(*address)).count();
        (u32::from(last) - u32::from(first)) as usize + 1 - apart
    }

    /// Whether `mac` may be given `address` at all.
    pub(super) fn allows(&self, mac: Mac, address: Ipv4Addr) -> bool {
        self.pool.reservations.get(&mac) == Some(&address)
            || (self.is_pooled(address) && self.kept_for.get(&address).is_none_or(|other| *other == mac))
    }

    pub(super) fn kept(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.kept.get(&mac).copied()
    }

    /// The machine has `address` now. Returns the address that was kept for it, if that is another one.
    pub(super) fn has(&mut self, mac: Mac, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let before = self.kept(mac).filter(|kept| *kept != address && self.is_pooled(address))?;
        self.kept_for.remove(&before);
        self.keep(mac, address);
        Some(before)
    }

    fn keep(&mut self, mac: Mac, address: Ipv4Addr) {
        self.kept.insert(mac, address);
        self.kept_for.insert(address, mac);
    }
}
