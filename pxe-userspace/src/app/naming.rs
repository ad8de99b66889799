//! Gives machines that nobody declared the names that rules have for them, before they are answered.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Appliance;
use crate::config::Config;
use crate::config::rules::Facts;
use crate::host::net::Stations;
use crate::machines::Machines;
use crate::machines::kept::{Kept, Names};
use crate::operate::launch::Launches;
use crate::serve::dhcp::Unnamed;
use crate::store::{ReadError, Store};

/// Machines that are named in one transaction.
const BATCH: usize = 512;

/// The machines that are declared elsewhere than in the file, and the configuration with them.
pub(super) fn open(
    config: &Config,
    store: &Store,
    launches: &Launches,
) -> Result<(Arc<Config>, Kept, Names), ReadError> {
    let (kept, names) = (Kept::open(store.clone())?, Names::open(store.clone())?);
    let config = Arc::new(whole(config, &kept, &names, launches));
    Ok((config, kept, names))
}

/// The configuration with the machines that are declared elsewhere than in its file, and what launches have them boot.
pub(super) fn whole(config: &Config, kept: &Kept, names: &Names, launches: &Launches) -> Config {
    let (kept, named) = (kept.all(), names.nodes(&config.rules));
    config.with_nodes(kept.iter().chain(&named)).with_launched(&launches.pins())
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
    let mut stations = Stations::of(&appliance.bridge);
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
        let by_ports = config.rules.iter().any(|rule| rule.matches.goes_by_ports());
        let facts = asking.iter().map(|asked| {
            let port = by_ports.then(|| stations.port_name_of(asked.facts.mac)).flatten();
            Facts { port, ..asked.facts.clone() }
        });
        if let Err(error) = appliance.name(facts.collect()).await {
            tracing::error!("machines were not named: {error}");
        }
        asking.drain(..).for_each(|asked| appliance.dhcp.named(asked));
    }
}
