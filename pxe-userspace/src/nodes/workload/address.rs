//! Addresses for workloads that are configured without one. The engine would choose the lowest free one, without
//! knowing the leases and reservations on the same segment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::config::Config;

/// The address of each workload: the configured one; else its present one, if that is still free; else the highest that
/// is neither leased nor reserved. `None` if there is no such address.
pub(super) fn assign(
    config: &Config,
    current: &BTreeMap<String, Ipv4Addr>,
) -> BTreeMap<String, Option<Ipv4Addr>> {
    let network = config.network.address;
    let mut taken: BTreeSet<Ipv4Addr> = [network.addr()].into();
    taken.extend(config.dhcp.router);
    taken.extend(&config.dhcp.dns);
    taken.extend(&config.dhcp.ntp);
    taken.extend(config.nodes.iter().filter_map(|node| node.address));
    taken.extend(config.workloads.iter().filter_map(|workload| workload.address));
    let leased =
        |address: &Ipv4Addr| config.dhcp.range.is_some_and(|(first, last)| (first..=last).contains(address));
    let hosts = || network.hosts().rev().filter(|address| !leased(address));

    let mut assigned = BTreeMap::new();
    // Workloads with an address keep it, whichever others are new.
    for workload in config.workloads.iter().filter(|workload| workload.on.is_none()) {
        let kept = current.get(&workload.name).copied();
        let kept =
            kept.filter(|address| network.contains(address) && !leased(address) && !taken.contains(address));
        if let Some(address) = workload.address.or(kept) {
            taken.insert(address);
            assigned.insert(workload.name.clone(), Some(address));
        }
    }
    for workload in config.workloads.iter().filter(|workload| workload.on.is_none()) {
        if !assigned.contains_key(&workload.name) {
            let free = hosts().find(|address| !taken.contains(address));
            taken.extend(free);
            assigned.insert(workload.name.clone(), free);
        }
    }
    assigned
}
