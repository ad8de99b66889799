//! Gives machines that nobody declared the names that rules have for them, before they are answered.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Appliance;
use crate::config::Config;
use crate::config::rules::Facts;
use crate::host::net::Stations;
use crate::machines::facts::Known;
use crate::machines::kept::{Kept, Names};
use crate::machines::timeline::{Happened, Who};
use crate::machines::{Machine, Machines};
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
        booted.map(facts).collect()
    })
}

/// What the register knows of a machine.
fn facts(machine: &Machine) -> Facts {
    let Machine { uuid, facts, .. } = machine;
    Facts { uuid: uuid.clone(), hardware: facts.clone(), ..Facts::new(machine.mac) }
}

/// Names machines when they have told what they are made of, until `shutdown`. What such a machine runs goes on: its name
/// and what comes with it are in effect from its next boot on.
pub(super) async fn by_facts(appliance: Arc<Appliance>, known: Known, shutdown: CancellationToken) {
    loop {
        let news = tokio::select! {
            news = known.news() => news,
            () = shutdown.cancelled() => return,
        };
        let machines: Vec<Machine> = news.iter().filter_map(|mac| appliance.machines.get(*mac)).collect();
        if let Err(error) = appliance.name(machines.iter().map(facts).collect()).await {
            tracing::error!("machines were not named: {error}");
            continue;
        }
        for before in machines {
            let after = appliance.machines.get(before.mac).filter(|after| after.name != before.name);
            if let Some(words) = after.and_then(|after| renamed(&before, &after)) {
                appliance.timeline.record(Happened::warning(Who::Mac(before.mac), words));
            }
        }
    }
}

/// What has become of a machine by what it told.
fn renamed(before: &Machine, after: &Machine) -> Option<String> {
    let Some(name) = &after.name else {
        let name = before.name.as_ref()?;
        return Some(format!(
            "it is not {name}, by the facts that it told: it is nobody's until a rule takes it"
        ));
    };
    Some(match &before.name {
        Some(was) => format!(
            "it is {name}, by the facts that it told, and not {was}: what it runs goes on as {was}'s until its next boot"
        ),
        None => format!("it is {name}, by the facts that it told: from its next boot on it boots as that"),
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
            let hardware = appliance.machines.get(asked.facts.mac).and_then(|machine| machine.facts);
            Facts { port, hardware, ..asked.facts.clone() }
        });
        if let Err(error) = appliance.name(facts.collect()).await {
            tracing::error!("machines were not named: {error}");
        }
        asking.drain(..).for_each(|asked| appliance.dhcp.named(asked));
    }
}
