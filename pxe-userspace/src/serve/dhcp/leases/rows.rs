//! The rows of the leases, by address and by their end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiff::Timestamp;

use super::Lease;

/// Every address that was given out. Ended leases are found without a search of the others, so that a storm of unknown
/// machines does not search all leases for each of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    by_address: BTreeMap<Ipv4Addr, Lease>,
    /// The rows whose addresses may be given out again.
    by_end: BTreeSet<(Timestamp, Ipv4Addr)>,
}

impl Rows {
    pub(super) fn get(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.by_address.get(&address)
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// All rows, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_address.values()
    }

    /// The rows whose addresses may be given out again, by their end.
    pub(super) fn by_end(&self) -> impl Iterator<Item = &Lease> {
        self.by_end.iter().map(|(_, address)| &self.by_address[address])
    }

    /// Enters a row, in place of the address's old one. `pooled`: whether the address may be given out again.
    pub(super) fn insert(&mut self, lease: Lease, pooled: bool) {
        self.remove(lease.address);
        if pooled {
            self.by_end.insert((lease.expires, lease.address));
        }
        self.by_address.insert(lease.address, lease);
    }

    pub(super) fn remove(&mut self, address: Ipv4Addr) {
        if let Some(lease) = self.by_address.remove(&address) {
            self.by_end.remove(&(lease.expires, address));
        }
    }

    /// Changes a row, and returns the changed row.
    pub(super) fn edit(&mut self, address: Ipv4Addr, edit: impl FnOnce(&mut Lease)) -> Option<&Lease> {
        let lease = self.by_address.get_mut(&address)?;
        let pooled = self.by_end.remove(&(lease.expires, address));
        edit(lease);
        if pooled {
            self.by_end.insert((lease.expires, address));
        }
        Some(lease)
    }

    /// Sets for every row whether its address may be given out again.
    pub(super) fn arrange(&mut self, pooled: impl Fn(Ipv4Addr) -> bool) {
        let again = self.by_address.values().filter(|lease| pooled(lease.address));
        self.by_end = again.map(|lease| (lease.expires, lease.address)).collect();
    }
}
