//! The bridge between the appliance and its nodes: created or adopted at start, watched while the
//! daemon runs, restored at the end.
//!
//! Each change is written to `network.json` in the state directory *before* it is made. A daemon that was killed
//! leaves that file; the next start takes over what is still wanted and undoes the rest, and boots in progress don't
//! notice.

mod ceiling;
mod journal;
mod links;
pub mod neighbours;
pub mod offload;
pub mod packet;
pub mod ra;
pub(crate) mod room;
mod stations;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::Ipv4Net;
use pxe_common::Mac;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::base::lock::Unpoisoned as _;
use crate::config::{FastPath, Http, Network};
use ceiling::Ceiling;
use journal::Journal;
use links::{Link, Links};
use watch::{Wanted, Watch};

pub use neighbours::{Certainty, Neighbours};
pub use stations::Stations;

/// The bridge after set-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeInfo {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    /// The appliance's own address on it.
    pub address: Ipv4Net,
    pub mtu: u32,
}

/// An interface that is enslaved to the bridge, by us or by anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// Why `[network] ceiling` does not hold on this port; `None` if it does, or there is none.
    pub unshaped: Option<String>,
}

/// The bridge's present ports. Cloning it is cheap.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    now: Arc<Mutex<Vec<Port>>>,
    /// Seconds; 0 without spanning tree.
    forwards_after: Arc<AtomicU32>,
}

impl Ports {
    pub fn now(&self) -> Vec<Port> {
        self.lock().clone()
    }

    /// How many seconds after their link came up they forward, where the bridge has spanning tree on. That is for longer
    /// than BIOS machines ask for an address.
    pub fn forwards_after(&self) -> Option<u32> {
        Some(self.forwards_after.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Port>> {
        self.now.lock().unpoisoned()
    }
}

/// A port came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortEvent {
    Added(Port),
    Removed(Port),
}

/// The bridge can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("changing the network ({what}) is not permitted: run as root, or give the daemon CAP_NET_ADMIN")]
    NotPermitted { what: String },
    #[error("{what}: {source}")]
    Netlink { what: String, source: std::io::Error },
    #[error("no interface is called `{port}`: `ip link` lists them; [network] ports names those to enslave")]
    NoSuchPort { port: String },
    #[error(
        "`{port}` is a port of `{master}` already: release it (`ip link set {port} nomaster`), or set [network] bridge = \"{master}\""
    )]
    PortTaken { port: String, master: String },
    #[error("`{name}` exists and is no bridge: choose another [network] bridge")]
    NotABridge { name: String },
    #[error("`{bridge}` has {found} where [network] address says {wanted}: make them the same")]
    OtherPrefix { bridge: String, found: Ipv4Net, wanted: Ipv4Net },
    #[error("{path}: {source}: the daemon notes there what to give back, and must be able to write it")]
    Journal { path: PathBuf, source: std::io::Error },
}

/// A handle on the bridge. [`Bridge::restore`], or dropping it, undoes the changes made for it.
pub struct Bridge {
    info: BridgeInfo,
    ports: Ports,
    events: Option<mpsc::UnboundedReceiver<PortEvent>>,
    stop: CancellationToken,
    watch: Option<JoinHandle<Journal>>,
    journal_path: PathBuf,
}

impl Bridge {
    /// Creates or adopts the bridge, enslaves the configured ports, and adds the address, on which `http` is served.
    /// If it fails, it undoes what it had done.
    pub async fn set_up(network: &Network, http: &Http, state_dir: &Path) -> Result<Self, NetError> {
        // Before the first look at the links, so that no change is missed in between.
        let changes = links::Changes::subscribe()?;
        let links = Links::connect()?;
        let mut journal = Journal::load(state_dir)?;
        journal.undo_unwanted(network, &links).await?;
        match build(network, &links, &mut journal).await {
            Ok(info) => {
                let stop = CancellationToken::new();
                let (sender, events) = mpsc::unbounded_channel();
                let ports = Ports::default();
                let journal_path = journal.path().to_owned();
                let ceiling = network.ceiling.map(|bytes_per_second| Ceiling {
                    bytes_per_second,
                    address: network.address.addr(),
                    http_ports: [http.port, http.tls_port],
                });
                let wanted =
                    Wanted { ports: network.ports.clone(), ceiling, tags_left_on: leaves_tags_on(network) };
                let mut watch = Watch::new(links, info.index, wanted, journal, ports.clone(), sender);
                watch.compare().await?;
                let watch = Some(tokio::spawn(watch.run(changes, stop.clone())));
                Ok(Self { info, ports, events: Some(events), stop, watch, journal_path })
            }
            Err(error) => {
                if let Err(undo) = journal.undo(&links).await {
                    tracing::error!(error = %undo, "what had been set up could not be undone");
                }
                Err(error)
            }
        }
    }

    pub fn info(&self) -> &BridgeInfo {
        &self.info
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Every port that comes or goes, first those that were there at set-up, so that a receiver does
    /// not need [`Bridge::ports`]. There is one receiver; later calls get a closed one.
    pub fn events(&mut self) -> mpsc::UnboundedReceiver<PortEvent> {
        self.events.take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Undoes all changes.
    pub async fn restore(mut self) -> Result<(), NetError> {
        let Some(watch) = self.watch.take() else { return Ok(()) };
        self.stop.cancel();
        let journal = match watch.await {
            Ok(journal) => journal,
            Err(_) => Journal::load_file(&self.journal_path)?,
        };
        journal.undo(&Links::connect()?).await
    }
}

impl Drop for Bridge {
    /// Best effort, for panics and errors at the end: what fails here is undone by the next start.
    fn drop(&mut self) {
        self.stop.cancel();
        let Some(watch) = self.watch.take() else { return };
        watch.abort();
        let path = self.journal_path.clone();
        // Not on this thread: it may be a runtime's, where blocking is forbidden.
        let undone = std::thread::spawn(move || -> Result<(), NetError> {
            let journal = Journal::load_file(&path)?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| NetError::Netlink { what: "starting a runtime".into(), source })?
                .block_on(async { journal.undo(&Links::connect()?).await })
        })
        .join();
        match undone {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the network was not given back; the next start does it")
            }
            Err(_) => tracing::error!("the network was not given back; the next start does it"),
        }
    }
}

/// Whether XDP may run on the ports, which needs VLAN tags left in the frames: see [`offload`].
fn leaves_tags_on(network: &Network) -> bool {
    matches!(network.fast_path, FastPath::Auto | FastPath::Xdp) && network.ceiling.is_none()
}

/// An earlier start may have done any of these steps already.
async fn build(network: &Network, links: &Links, journal: &mut Journal) -> Result<BridgeInfo, NetError> {
    let Network { bridge: name, address, ports, fast_path: _, ceiling: _ } = network;
    let mut found = Vec::new();
    for port in ports {
        let link = links.by_name(port).await?.ok_or_else(|| NetError::NoSuchPort { port: port.clone() })?;
        refuse_taken(&link, name, links).await?;
        warn_of_lost_routes(&link, links).await?;
        found.push(link);
    }
    let bridge = match links.by_name(name).await? {
        Some(link) if link.is_bridge => link,
        Some(_) => return Err(NetError::NotABridge { name: name.clone() }),
        None => {
            journal.note(|j| j.created = true)?;
            links.create_bridge(name, stable_mac(name, found.first())).await?
        }
    };
    put_address(*address, &bridge, links, journal).await?;
    if !bridge.up {
        journal.note(|j| j.raised = true)?;
        links.set_up(&bridge, true).await?;
    }
    for port in &found {
        enslave(port, bridge.index, links, journal).await?;
    }
    // Again: an adopted bridge may have taken the address of a new port.
    let bridge = links.by_name(name).await?.unwrap_or(bridge);
    Ok(BridgeInfo {
        name: bridge.name,
        index: bridge.index,
        mac: bridge.mac,
        address: *address,
        mtu: bridge.mtu,
    })
}

/// Adds `port` to the bridge and sets it up, unless it is so already.
async fn enslave(port: &Link, bridge: u32, links: &Links, journal: &mut Journal) -> Result<(), NetError> {
    if port.master != Some(bridge) {
        journal.note(|j| j.add_port(&port.name, port.up))?;
        links.set_master(port, Some(bridge)).await?;
    }
    if !port.up {
        links.set_up(port, true).await?;
    }
    Ok(())
}

async fn refuse_taken(port: &Link, bridge: &str, links: &Links) -> Result<(), NetError> {
    let Some(master) = port.master else { return Ok(()) };
    let master = links.by_index(master).await?.map_or_else(|| format!("interface {master}"), |l| l.name);
    if master == bridge {
        return Ok(());
    }
    Err(NetError::PortTaken { port: port.name.clone(), master })
}

async fn warn_of_lost_routes(port: &Link, links: &Links) -> Result<(), NetError> {
    if links.has_default_route(port.index).await? {
        tracing::warn!(
            port = port.name,
            "the host's default route leads through this port: it stops working while the port is in the bridge"
        );
    }
    Ok(())
}

async fn put_address(
    address: Ipv4Net,
    bridge: &Link,
    links: &Links,
    journal: &mut Journal,
) -> Result<(), NetError> {
    for (index, found) in links.addresses().await? {
        if index == bridge.index && found.addr() == address.addr() {
            if found == address {
                return Ok(());
            }
            return Err(NetError::OtherPrefix { bridge: bridge.name.clone(), found, wanted: address });
        }
        if index != bridge.index && (found.contains(&address.trunc()) || address.contains(&found.trunc())) {
            let other = links.by_index(index).await?.map_or_else(String::new, |l| l.name);
            tracing::warn!(interface = other, %found, %address, "another interface has the same network");
        }
    }
    journal.note(|j| j.address = Some(address))?;
    links.add_address(bridge.index, address).await
}

/// The MAC of a bridge of our own. A bridge changes its MAC by default when ports come and go. Ours
/// must not, nor from one start to the next: kernel programs and nodes' ARP caches keep it.
fn stable_mac(bridge: &str, first_port: Option<&Link>) -> Mac {
    if let Some(port) = first_port.filter(|p| p.mac.is_unicast()) {
        return port.mac;
    }
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let [a, b, c, d, e, ..] =
        <[u8; 32]>::from(Sha256::new().chain_update(machine).chain_update(bridge).finalize());
    // Locally administered, unicast.
    Mac([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod ceiling_tests;
#[cfg(test)]
pub(crate) mod tests;
