//! Gives machines that nobody declared the names that rules have for them, before they are answered.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use pxe_common::Mac;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Appliance;
use crate::config::Config;
use crate::config::rules::Facts;
use crate::machines::Machines;
use crate::machines::kept::{Kept, Names};
use crate::serve::dhcp::Unnamed;
use crate::store::{ReadError, Store};

/// Machines that are named in one transaction.
const BATCH: usize = 512;

/// The machines that are declared elsewhere than in the file, and the configuration with them.
pub(super) fn open(config: &Config, store: &Store) -> Result<(Arc<Config>, Kept, Names), ReadError> {
    let (kept, names) = (Kept::open(store.clone())?, Names::open(store.clone())?);
    let config = Arc::new(whole(config, &kept, &names));
    Ok((config, kept, names))
}

/// The configuration with the machines that are declared elsewhere than in its file.
pub(super) fn whole(config: &Config, kept: &Kept, names: &Names) -> Config {
    let (kept, named) = (kept.all(), names.nodes(&config.rules));
    config.with_nodes(kept.iter().chain(&named))
}

/// Machines that booted from here, as far as they are known.
pub(super) fn seen(machines: &Machines) -> Vec<Facts> {
    machines.look(|all| {
        let booted = all.filter(|machine| machine.firmware.is_some());
        booted.map(|machine| Facts { uuid: machine.uuid.clone(), ..Facts::new(machine.mac) }).collect()
    })
}

/// Names machines as they ask, until `shutdown`. Each is answered then, whether it has a name or not.
pub(super) async fn give(
    appliance: Arc<Appliance>,
    mut unnamed: mpsc::Receiver<Unnamed>,
    shutdown: CancellationToken,
) {
    let mut asking = Vec::new();
    loop {
        let received = tokio::select! {
            received = unnamed.recv_many(&mut asking, BATCH) => received,
            () = shutdown.cancelled() => return,
        };
        if received == 0 {
            return;
        }
        let config = appliance.config();
        let ports = match config.rules.iter().any(|rule| rule.matches.goes_by_ports()) {
            true => tokio::task::block_in_place(|| ports_of(&config.network.bridge)),
            false => HashMap::new(),
        };
        let facts = asking.iter().map(|asked| {
            let port = ports.get(&asked.facts.mac).cloned();
            Facts { port, ..asked.facts.clone() }
        });
        if let Err(error) = appliance.name(facts.collect()).await {
            tracing::error!("machines were not named: {error}");
        }
        asking.drain(..).for_each(|asked| appliance.dhcp.named(asked));
    }
}

/// The port that each station is behind, as the bridge has learned it. Nothing where that can't be read.
fn ports_of(bridge: &str) -> HashMap<Mac, String> {
    let bridge = Path::new("/sys/class/net").join(bridge);
    let number = |port: &Path| {
        let text = std::fs::read_to_string(port.join("port_no")).ok()?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let ports = std::fs::read_dir(bridge.join("brif")).into_iter().flatten().flatten();
    let named = |port: std::fs::DirEntry| {
        Some((number(&port.path())?, port.file_name().to_string_lossy().into_owned()))
    };
    let names: HashMap<u16, String> = ports.filter_map(named).collect();
    let learned = std::fs::read(bridge.join("brforward")).unwrap_or_default();
    entries(&learned).filter_map(|(mac, port)| Some((mac, names.get(&port)?.clone()))).collect()
}

/// `struct __fdb_entry` (linux/if_bridge.h): MAC, the port's number, whether it is the bridge's own, age, the number's
/// high byte, and three that say nothing.
fn entries(learned: &[u8]) -> impl Iterator<Item = (Mac, u16)> {
    let (entries, _) = learned.as_chunks::<16>();
    entries.iter().filter(|entry| entry[7] == 0).filter_map(|entry| {
        let mac = *entry.first_chunk()?;
        Some((Mac(mac), u16::from_le_bytes([entry[6], entry[12]])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bridge_has_learned() {
        let mut entry = [2, 0, 0, 0, 0, 7, 3, 0, 9, 9, 9, 9, 1, 0, 0, 0].to_vec();
        let own = [2, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        entry.extend(own);
        entry.push(0);
        assert_eq!(entries(&entry).collect::<Vec<_>>(), [(Mac([2, 0, 0, 0, 0, 7]), 0x103)]);
    }
}
