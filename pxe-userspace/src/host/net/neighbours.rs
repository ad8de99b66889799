//! The bridge's neighbours, as DHCP knows them.
//!
//! Linux keeps 1,024 IPv4 neighbours of all interfaces together (`gc_thresh3`). Beyond that it no longer answers ARP
//! ("neighbor table overflow"), and a boot stops after its lease. Externally learned entries (`NTF_EXT_LEARNED`) do
//! not count (Linux 5.0, `neigh_alloc` in net/core/neighbour.c). Otherwise they are like all others: ARP updates
//! them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pxe_common::Mac;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::links::Links;
use super::{BridgeInfo, packet};

/// The kernel removes the entries when the bridge loses its carrier. So a machine that is heard again after this time
/// is entered again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The MAC that the kernel has for the address on this bridge; `None` while it does not know.
pub fn known(bridge: &str, address: Ipv4Addr) -> Option<Mac> {
    // Any socket will do: SIOCGARP only uses its network namespace.
    static ASKING: OnceLock<Option<UdpSocket>> = OnceLock::new();
    let socket = ASKING.get_or_init(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()).as_ref()?;
    packet::neighbour(socket, bridge, address).ok().flatten()
}

/// Enters which machine has which address.
pub struct Neighbours {
    learned: mpsc::UnboundedSender<(Ipv4Addr, Mac)>,
    keeping: JoinHandle<()>,
}

impl Neighbours {
    /// For the neighbours on `bridge`, whose addresses are in its own network.
    pub fn of(bridge: &BridgeInfo) -> Self {
        let (learned, news) = mpsc::unbounded_channel();
        Self { learned, keeping: tokio::spawn(keep(bridge.clone(), news)) }
    }

    /// `mac` was given `address`.
    pub fn learn(&self, address: Ipv4Addr, mac: Mac) {
        // If entries can't be kept, nobody receives this, and the kernel uses ARP.
        let _ = self.learned.send((address, mac));
    }

    /// Removes all entries.
    pub async fn forget(self) {
        drop(self.learned);
        let _ = self.keeping.await;
    }
}

async fn keep(bridge: BridgeInfo, mut news: mpsc::UnboundedReceiver<(Ipv4Addr, Mac)>) {
    let kept = match Links::connect() {
        Ok(links) => links,
        Err(error) => {
            tracing::warn!(%error, "the kernel is not told which machine has which address");
            return;
        }
    };
    let mut known = HashMap::new();
    while let Some((address, mac)) = news.recv().await {
        let now = Instant::now();
        let told = known.get(&address).is_some_and(|(m, at)| *m == mac && now - *at < AGAIN_AFTER);
        // Addresses behind a relay are in other networks.
        if told || !bridge.address.contains(&address) {
            continue;
        }
        match kept.learn(bridge.index, address, mac).await {
            Ok(()) => drop(known.insert(address, (mac, now))),
            Err(error) => tracing::debug!(%address, %error, "the kernel does not take a neighbour"),
        }
    }
    for address in known.into_keys() {
        // It may be gone already, or replaced by somebody.
        let _ = kept.forget(bridge.index, address).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HTTP, in_namespace, ip, network, run};
    use super::*;
    use crate::host::net::Bridge;

    /// Three times the kernel's usual limit; verified with `ip`.
    const MANY: usize = 3072;

    #[test]
    fn there_may_be_more_neighbours_than_the_kernel_keeps_by_itself() {
        in_namespace(|| {
            let state = tempfile::tempdir().unwrap();
            ip("link add eth1 type veth peer name peer1");
            ip("link set peer1 up");
            run(async {
                let bridge = Bridge::set_up(&network("pxe0", &["eth1"]), &HTTP, state.path()).await.unwrap();
                let wide = BridgeInfo { address: "10.77.0.1/16".parse().unwrap(), ..bridge.info().clone() };
                let neighbours = Neighbours::of(&wide);
                let address = |n: usize| Ipv4Addr::from_bits(0x0a4d_1000 + n as u32);
                let mac = |n: usize| Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
                (0..MANY).for_each(|n| neighbours.learn(address(n), mac(n)));
                neighbours.learn(address(0), mac(7));
                neighbours.learn(Ipv4Addr::new(192, 0, 2, 1), mac(8));
                let shown = || ip("neigh show dev pxe0");
                let begun = Instant::now();
                while shown().lines().count() < MANY || !shown().contains("02:00:00:00:00:07 ") {
                    assert!(
                        begun.elapsed() < Duration::from_secs(60),
                        "{} neighbours",
                        shown().lines().count()
                    );
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let all = shown();
                assert_eq!(all.lines().count(), MANY);
                assert!(all.lines().all(|line| line.contains("extern_learn")), "{all}");
                let first = all.lines().find(|line| line.starts_with("10.77.16.0 ")).unwrap();
                assert!(first.contains("02:00:00:00:00:07"), "{first}");
                assert!(!all.contains("192.0.2.1"), "{all}");
                neighbours.forget().await;
                assert_eq!(shown(), "");
                bridge.restore().await.unwrap();
            });
        });
    }
}
