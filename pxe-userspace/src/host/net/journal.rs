//! The record of changes to the host's network that have to be undone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::links::Links;
use super::{NetError, Network, leaves_tags_on, offload};

/// Kept in a file that is written before each change.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    path: PathBuf,
    changes: Changes,
}

/// Every field's default is "nothing was changed".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Changes {
    /// The boot and the network namespace of the changes. In another one the changes are gone, and
    /// interfaces with the same names are somebody else's.
    world: String,
    pub(super) bridge: String,
    /// The bridge is ours.
    pub(super) created: bool,
    /// The bridge was down before.
    pub(super) raised: bool,
    /// The address was not on it before.
    pub(super) address: Option<Ipv4Net>,
    /// Ports that were not in the bridge before. None was in another bridge: those are refused.
    ports: Vec<PortBefore>,
    /// Ports that have a ceiling.
    shaped: Vec<String>,
    /// Ports whose card stripped VLAN tags before, and keeps them now.
    tags_left_on: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PortBefore {
    name: String,
    up: bool,
}

impl Changes {
    pub(super) fn add_port(&mut self, name: &str, up: bool) {
        // The first note has the state before our changes.
        if self.ports.iter().all(|p| p.name != name) {
            self.ports.push(PortBefore { name: name.to_owned(), up });
        }
    }

    pub(super) fn add_shaped(&mut self, name: &str) {
        add(&mut self.shaped, name);
    }

    pub(super) fn add_tags_left_on(&mut self, name: &str) {
        add(&mut self.tags_left_on, name);
    }

    /// The card strips tags again, if it did before.
    pub(super) fn give_tags_back(&mut self, name: &str) {
        if let Some(at) = self.tags_left_on.iter().position(|port| port == name) {
            take_tags_off_again(&[self.tags_left_on.remove(at)]);
        }
    }
}

fn add(names: &mut Vec<String>, name: &str) {
    if names.iter().all(|known| known != name) {
        names.push(name.to_owned());
    }
}

impl Journal {
    /// The journal in `state_dir`, which is created when missing.
    pub(super) fn load(state_dir: &Path) -> Result<Self, NetError> {
        fs::create_dir_all(state_dir)
            .map_err(|source| NetError::Journal { path: state_dir.to_owned(), source })?;
        Self::load_file(&state_dir.join("network.json"))
    }

    pub(super) fn load_file(path: &Path) -> Result<Self, NetError> {
        let world = world();
        let none = Changes { world: world.clone(), ..Changes::default() };
        let changes = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                // We write it atomically, so this is not ours. Not to start because of it would help nobody.
                tracing::warn!(path = %path.display(), %error, "not a journal of the network; it is replaced");
                none.clone()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => none.clone(),
            Err(source) => return Err(NetError::Journal { path: path.to_owned(), source }),
        };
        let changes = if changes.world == world { changes } else { none };
        Ok(Self { path: path.to_owned(), changes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a change that is about to be made.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Changes)) -> Result<(), NetError> {
        change(&mut self.changes);
        let bytes = serde_json::to_vec_pretty(&self.changes).expect("a journal has only text keys");
        // Atomically, because a half-written journal would lose what to undo.
        let new = self.path.with_extension("new");
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|source| NetError::Journal { path: self.path.clone(), source })
    }

    /// Undoes changes of a former run that `network` doesn't ask for; takes over the rest.
    pub(super) async fn undo_unwanted(&mut self, network: &Network, links: &Links) -> Result<(), NetError> {
        let left = self.changes.clone();
        if left == (Changes { world: left.world.clone(), ..Changes::default() }) {
            return self.note(|changes| changes.bridge.clone_from(&network.bridge));
        }
        tracing::info!(bridge = left.bridge, "an earlier run did not give the network back; taking over");
        if left.bridge != network.bridge {
            self.clone().undo(links).await?;
            self.changes =
                Changes { world: left.world, bridge: network.bridge.clone(), ..Changes::default() };
            return self.note(|_| ());
        }
        if network.ceiling.is_none() {
            unshape(&left.shaped, links).await?;
            self.note(|changes| changes.shaped.clear())?;
        }
        if !leaves_tags_on(network) {
            take_tags_off_again(&left.tags_left_on);
            self.note(|changes| changes.tags_left_on.clear())?;
        }
        for port in left.ports.iter().filter(|p| !network.ports.contains(&p.name)) {
            release(port, &left.bridge, links).await?;
            self.note(|changes| changes.ports.retain(|p| p.name != port.name))?;
        }
        if let Some(address) = left.address.filter(|a| *a != network.address) {
            if let Some(bridge) = links.by_name(&left.bridge).await? {
                links.delete_address(bridge.index, address).await?;
            }
            self.note(|changes| changes.address = None)?;
        }
        Ok(())
    }

    /// Undoes all changes, as far as they are still there, and forgets them.
    pub(super) async fn undo(self, links: &Links) -> Result<(), NetError> {
        let Changes { world: _, bridge, created, raised, address, ports, shaped, tags_left_on } =
            &self.changes;
        unshape(shaped, links).await?;
        take_tags_off_again(tags_left_on);
        for port in ports {
            release(port, bridge, links).await?;
        }
        if let Some(link) = links.by_name(bridge).await?.filter(|l| l.is_bridge) {
            if *created {
                links.delete(&link).await?;
            } else {
                if let Some(address) = address {
                    links.delete_address(link.index, *address).await?;
                }
                if *raised {
                    links.set_up(&link, false).await?;
                }
            }
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetError::Journal { path: self.path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Takes a port out of the bridge, if it is still in it, and sets it down, if it was down before.
async fn release(port: &PortBefore, bridge: &str, links: &Links) -> Result<(), NetError> {
    let Some(link) = links.by_name(&port.name).await? else { return Ok(()) };
    if let Some(master) = link.master {
        if links.by_index(master).await?.is_some_and(|m| m.name != bridge) {
            // Somebody else's by now.
            return Ok(());
        }
        links.set_master(&link, None).await?;
    }
    if !port.up {
        links.set_up(&link, false).await?;
    }
    Ok(())
}

/// Removes the ceiling of the ports that still exist.
async fn unshape(ports: &[String], links: &Links) -> Result<(), NetError> {
    for name in ports {
        let Some(link) = links.by_name(name).await? else { continue };
        if let Err(error) = links.unshape(link.index).await {
            tracing::warn!(port = name, %error, "its ceiling is left: `tc qdisc del dev {name} root` takes it off");
        }
    }
    Ok(())
}

/// Makes the cards of the ports that still exist strip tags again.
fn take_tags_off_again(ports: &[String]) {
    for name in ports {
        match offload::take_tags_off(name, true) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
                tracing::warn!(port = name, %error, "`ethtool -K {name} rxvlan on` gives its VLAN offload back");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn world() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}
