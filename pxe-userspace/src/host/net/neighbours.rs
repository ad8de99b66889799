//! The bridge's neighbours, as DHCP knows them.
//!
//! Linux keeps 1,024 IPv4 neighbours of all interfaces together (`gc_thresh3`). Beyond that it no longer answers ARP
//! ("neighbor table overflow"), and a boot stops after its lease. Externally learned entries (`NTF_EXT_LEARNED`) do
//! not count (Linux 5.0, `neigh_alloc` in net/core/neighbour.c).
//!
//! Those of leases are permanent, so no ARP of another station's changes them: what the appliance says to a machine's address goes
//! to the machine. They end with the lease's release, when another machine gets the address, and with the daemon; those
//! of a killed one with the next.

use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pxe_common::Mac;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::links::{Links, Teller};
use super::{BridgeInfo, NetError, packet};

/// The kernel removes them when the bridge goes down, so a machine that is heard again is entered again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Neighbours that the kernel is told of at a time.
const AT_ONCE: usize = 64;

/// Whose the kernel takes the address to be, on this bridge; `None` while it does not know.
pub fn known(bridge: &str, address: Ipv4Addr) -> Option<Mac> {
    // Any socket will do: SIOCGARP only uses its network namespace.
    static ASKING: OnceLock<Option<UdpSocket>> = OnceLock::new();
    let socket = ASKING.get_or_init(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()).as_ref()?;
    packet::neighbour(socket, bridge, address).ok().flatten()
}

/// How well it is known whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It is leased from here.
    Lease,
    /// Its machine says so, to another server. ARP may say something else.
    Hearsay,
}

enum News {
    Learn(Ipv4Addr, Mac, Certainty),
    Unlearn(Ipv4Addr),
}

/// Who has which address.
pub struct Neighbours {
    news: mpsc::UnboundedSender<News>,
    keeping: JoinHandle<()>,
}

impl Neighbours {
    /// For the neighbours on `bridge`, whose addresses are in its own network.
    pub fn of(bridge: &BridgeInfo) -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        Self { news: sender, keeping: tokio::spawn(keep(bridge.clone(), news)) }
    }

    /// `mac` was given `address`.
    pub fn learn(&self, address: Ipv4Addr, mac: Mac, certainty: Certainty) {
        // Where they can't be kept nobody listens, and the kernel asks by itself.
        let _ = self.news.send(News::Learn(address, mac, certainty));
    }

    /// Its machine gave `address` back.
    pub fn unlearn(&self, address: Ipv4Addr) {
        let _ = self.news.send(News::Unlearn(address));
    }

    /// Removes all entries.
    pub async fn forget(self) {
        drop(self.news);
        let _ = self.keeping.await;
    }
}

async fn keep(bridge: BridgeInfo, mut news: mpsc::UnboundedReceiver<News>) {
    let told = match Teller::of(bridge.index) {
        Ok(told) => told,
        Err(error) => {
            tracing::warn!(%error, "the kernel is not told which machine has which address");
            return;
        }
    };
    match left(bridge.index).await {
        Ok(left) => forget(&told, left),
        Err(error) => tracing::warn!(%error, "what a killed daemon said of its neighbours stays"),
    }
    let (mut known, mut batch, mut changes) = (HashMap::new(), Vec::new(), Vec::new());
    while news.recv_many(&mut batch, AT_ONCE).await > 0 {
        let now = Instant::now();
        for next in batch.drain(..) {
            match next {
                // Behind a relay there are other networks.
                News::Learn(address, mac, certainty) if bridge.address.contains(&address) => {
                    let before = known.insert(address, (mac, now));
                    match before.filter(|(m, at)| *m == mac && now - *at < AGAIN_AFTER) {
                        Some(before) => drop(known.insert(address, before)),
                        None => changes.push((address, Some((mac, certainty)))),
                    }
                }
                News::Unlearn(address) => changes.extend(known.remove(&address).map(|_| (address, None))),
                News::Learn(..) => {}
            }
        }
        if !changes.is_empty()
            && let Err(error) = told.tell(&changes)
        {
            tracing::debug!(%error, "the kernel does not take neighbours");
            changes.iter().for_each(|(address, _)| _ = known.remove(address));
        }
        changes.clear();
    }
    forget(&told, known.into_keys().collect());
}

async fn left(index: u32) -> Result<Vec<Ipv4Addr>, NetError> {
    Links::connect()?.learned(index).await
}

fn forget(told: &Teller, addresses: Vec<Ipv4Addr>) {
    for some in addresses.chunks(AT_ONCE) {
        // Gone already, or replaced by somebody.
        let _ = told.tell(&some.iter().map(|address| (*address, None)).collect::<Vec<_>>());
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
                (0..MANY).for_each(|n| neighbours.learn(address(n), mac(n), Certainty::Lease));
                neighbours.learn(address(0), mac(7), Certainty::Lease);
                neighbours.learn(Ipv4Addr::new(192, 0, 2, 1), mac(8), Certainty::Lease);
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
                assert!(all.lines().all(|line| line.contains("extern_learn PERMANENT")), "{all}");
                let first = all.lines().find(|line| line.starts_with("10.77.16.0 ")).unwrap();
                assert!(first.contains("02:00:00:00:00:07"), "{first}");
                assert!(!all.contains("192.0.2.1"), "{all}");
                // What another server gave is ARP's to change.
                neighbours.learn(address(2), mac(9), Certainty::Hearsay);
                while !shown().contains("10.77.16.2 lladdr 02:00:00:00:00:09 extern_learn REACHABLE") {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{}", shown());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // What the kernel asked for by itself is nobody's here, and stays.
                ip("neigh add 10.77.0.5 lladdr 02:00:00:00:00:05 dev pxe0 nud permanent");
                neighbours.unlearn(address(1));
                neighbours.forget().await;
                assert_eq!(shown().lines().count(), 1, "{}", shown());

                // A daemon that was killed left one.
                ip("neigh add 10.77.0.6 lladdr 02:00:00:00:00:06 dev pxe0 nud permanent extern_learn");
                let neighbours = Neighbours::of(&wide);
                neighbours.forget().await;
                assert!(shown().starts_with("10.77.0.5 ") && shown().lines().count() == 1, "{}", shown());
                ip("neigh del 10.77.0.5 dev pxe0");
                bridge.restore().await.unwrap();
            });
        });
    }
}
