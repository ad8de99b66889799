//! The progress of the boots that are running, and the speed of the links to the machines.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pxe_contract::paths::GRUB_EFI_X64;
use pxe_contract::stage::Stage;
use tokio_util::sync::CancellationToken;

use super::Appliance;
use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, Source};
use crate::machines::Machine;
use crate::machines::pacing::progress::{Boot, Needs, Rate, Wave};
use crate::provision::boot::{ImageFacts, plan};
use crate::provision::image::Availability;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A machine that was silent for this long is no longer booting, unless a transfer is in progress.
const QUIET: Duration = Duration::from_secs(60);

/// The boots at the moment.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the first of the running boots was first seen.
    began: Option<Timestamp>,
    rate: Rate,
    /// The fastest port's, in bytes a second.
    link_speed: Option<u64>,
}

/// Watches the boots until `shutdown`.
pub(super) async fn watch(appliance: Arc<Appliance>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => tokio::task::block_in_place(|| appliance.look_at_boots(Timestamp::now())),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

impl Appliance {
    /// The progress of the boots; `None` if none is running.
    pub(super) fn wave(&self, waiting: usize) -> Option<Wave> {
        let state = self.watched.0.lock().unpoisoned();
        let boots = self.boots_since(state.began?);
        Wave::of(
            &boots.into_iter().map(|(boot, _)| boot).collect::<Vec<_>>(),
            waiting,
            state.rate.per_second(),
        )
    }

    fn look_at_boots(&self, now: Timestamp) {
        let mut state = self.watched.0.lock().unpoisoned();
        let link_speed = self.ports.now().iter().filter_map(|port| link_speed(&port.name)).max();
        if link_speed != state.link_speed {
            state.link_speed = link_speed;
            self.dhcp.set_link_speed(link_speed);
        }
        let recently = now.checked_sub(QUIET).unwrap_or(Timestamp::MIN);
        let boots = self.boots_since(state.began.unwrap_or(recently));
        let goes_on = |boot: &Boot, m: &Machine| {
            !boot.done && boot.stage != Stage::Failed && (m.since >= Some(recently) || m.fetching.is_some())
        };
        let oldest = boots.iter().filter(|(boot, m)| goes_on(boot, m)).filter_map(|(_, m)| m.since).min();
        let Some(oldest) = oldest else {
            *state = State { link_speed, ..State::default() };
            return;
        };
        state.began.get_or_insert(oldest);
        let sent = boots.iter().filter_map(|(boot, _)| Some(boot.needs? - boot.left?)).sum();
        let somebody_fetches =
            boots.iter().any(|(_, m)| m.fetching.is_some() || m.stage == Some(Stage::Stage1));
        state.rate.sample(now, sent, somebody_fetches);
    }

    fn boots_since(&self, began: Timestamp) -> Vec<(Boot, Machine)> {
        let config = self.config();
        let machines = self.machines.seen_since(began);
        let still = self.timeline.stand_still(machines.iter().map(|machine| machine.mac));
        // Files are looked at once for all machines of a profile.
        let mut known = std::collections::HashMap::new();
        let mut boot = |machine: Machine| {
            let profile = config.profile_of(machine.mac);
            let image = profile.and_then(|profile| config.image_of(machine.mac, profile)).map(str::to_owned);
            let profile = (profile.map(|profile| profile.name.clone()), image);
            let needs =
                *known.entry((profile, machine.stages)).or_insert_with(|| self.needs(&config, &machine));
            let percent = machine.fetching.as_ref().map(|f| f.percent);
            let still = still.contains(&machine.mac);
            Some((Boot::of(machine.stage?, percent, needs, still), machine))
        };
        machines.into_iter().filter_map(&mut boot).collect()
    }

    /// The bytes that the machine's boot needs, as far as they are known.
    fn needs(&self, config: &Config, machine: &Machine) -> Option<Needs> {
        // The loaders of all platforms have about the same size.
        let loader = size_of(&config.boot.assets.join(GRUB_EFI_X64)).unwrap_or(0);
        let profile = config.profile_of(machine.mac)?;
        match &profile.source {
            Source::Kernel { kernel, initrd } => {
                let root = config.files_root.as_ref()?;
                let size = |path: &String| size_of(&root.join(path.trim_start_matches('/')));
                let initrds = initrd.iter().map(size).sum::<Option<u64>>()?;
                Some(Needs { loader, kernel: size(kernel)?, initrds, stage2: 0 })
            }
            Source::Image(reference) => {
                let reference = config.image_of(machine.mac, profile).unwrap_or(reference);
                let Availability::Ready(image) = self.wanted.availability(reference) else { return None };
                let facts = ImageFacts::from(&*image.record);
                let stages = machine.stages.unwrap_or_else(|| plan::by_size(&facts).stages());
                let (kernel, stage1) = (facts.kernel.len, facts.stage1.len);
                Some(match facts.stage2.filter(|_| stages == 2) {
                    Some(stage2) => Needs { loader, kernel, initrds: stage1, stage2: stage2.len },
                    None => Needs { loader, kernel, initrds: stage1 + facts.rootfs.len, stage2: 0 },
                })
            }
        }
    }
}

fn size_of(path: &Path) -> Option<u64> {
    Some(path.metadata().ok()?.len())
}

/// A port's capacity, in bytes a second. Virtual ports are ignored, because their value is fictitious.
fn link_speed(port: &str) -> Option<u64> {
    let port = Path::new("/sys/class/net").join(port);
    if !port.join("device").exists() {
        return None;
    }
    // -1 if there is no carrier, or the speed is unknown.
    let megabits: u64 = std::fs::read_to_string(port.join("speed")).ok()?.trim().parse().ok()?;
    (megabits > 0).then(|| megabits * 125_000)
}
