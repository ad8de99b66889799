//! Launches and the rest of the appliance: images that are brought in for them, and what is done about machines.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use pxe_common::Mac;
use tokio::sync::{Semaphore, mpsc};

use super::Appliance;
use super::offers::{add_failure, shown};
use crate::api::documents::{Asked, Progress};
use crate::api::{self, Failure, Kind, LaunchOrder};
use crate::config::{Config, Source};
use crate::machines::rescue::Rescues;
use crate::machines::timeline::Stage;
use crate::operate::launch::engine::Places;
use crate::operate::launch::healthy::HealthUrl;
use crate::operate::launch::model::{Judged, Member, Reach};
use crate::operate::launch::order::{self, Known, Ready};
use crate::operate::launch::{Site, SiteError};
use crate::operate::power::{self, Action, BootOnce, Mode, NetBoot};
use crate::provision::image::{self, Image, ImageSource, RemoveError};

/// Machines whose URL is asked at a time.
const CHECKS: usize = 64;

/// What launches use of the appliance.
pub(super) struct Surroundings {
    appliance: Arc<Appliance>,
    rescues: Rescues,
    checks: Semaphore,
}

impl Surroundings {
    pub(super) fn new(appliance: Arc<Appliance>, rescues: Rescues) -> Self {
        Self { appliance, rescues, checks: Semaphore::new(CHECKS) }
    }
}

impl Site for Surroundings {
    fn is_on(&self, mac: Mac) -> BoxFuture<'_, Result<Option<bool>, SiteError>> {
        Box::pin(async move { self.appliance.is_on(mac).await })
    }

    fn switch(&self, mac: Mac, on: bool) -> BoxFuture<'_, Result<(), SiteError>> {
        Box::pin(async move { self.appliance.switch(mac, on).await })
    }

    fn boot_again(&self, mac: Mac) {
        let failed = self.appliance.machines.get(mac).is_some_and(|m| m.stage == Some(Stage::Failed));
        if failed {
            self.rescues.release(mac, Timestamp::now());
        }
    }

    fn places(&self) -> Places {
        let pacing = self.appliance.dhcp.pacing();
        Places { most: pacing.most, under_way: pacing.under_way + pacing.waiting }
    }

    fn pinned(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.appliance.pinned())
    }

    fn check(&self, mac: Mac, url: HealthUrl) -> BoxFuture<'_, Result<(), SiteError>> {
        Box::pin(async move {
            let _place = self.checks.acquire().await.map_err(|error| SiteError(error.to_string()))?;
            let machine = self.appliance.machines.get(mac);
            let address = machine.as_ref().and_then(|machine| machine.address);
            let (Some(machine), Some(address)) = (machine, address) else {
                return Err(SiteError("it has no address".to_owned()));
            };
            let bridge = &self.appliance.bridge.name;
            url.check(bridge, address, &machine.label()).await.map_err(|error| SiteError(error.to_string()))
        })
    }
}

impl Appliance {
    /// Begins a launch, or says what it would be.
    pub(super) async fn launch(
        &self,
        order: &LaunchOrder,
        dry: bool,
        by: &str,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Asked, Failure> {
        let now = Timestamp::now();
        let understood =
            order.understand(&self.config(), now).map_err(|error| api::launch_refused(&error))?;
        self.launches.free(understood.machines()).map_err(api::launch_failure)?;
        let mut notes = Vec::new();
        let ready = match &understood.image {
            None => None,
            Some(reference) if dry => self.foreseen(reference, &mut notes).await?,
            Some(reference) => Some(self.bring_in(reference, &mut notes, progress).await?),
        };
        // Bringing the image in may have taken minutes.
        let (config, now) = (self.config(), Timestamp::now());
        let understood = order.understand(&config, now).map_err(|error| api::launch_refused(&error))?;
        let (seen, _) = self.timeline.follow();
        let planned = understood.plan(ready.as_ref(), |mac| self.known(&config, mac), by, seen, now);
        notes.extend(planned.notes.clone());
        let launch = match dry {
            true => planned.dry(),
            false => self.launches.begin(planned, now).await.map_err(api::launch_failure)?,
        };
        Ok(Asked { dry_run: dry, notes, launch })
    }

    /// Begins a launch that brings back what was before another.
    pub(super) async fn undo(&self, id: u64, by: &str) -> Result<Asked, Failure> {
        let now = Timestamp::now();
        let (of, members) =
            tokio::task::block_in_place(|| self.launches.undone(id)).map_err(api::launch_failure)?;
        let config = self.config();
        let gone =
            members.iter().filter_map(|member| Some((member, member.target.as_ref()?.image.as_ref()?)));
        let gone = gone.filter(|(_, image)| self.images.get(&image.name).is_none());
        if let Some((member, image)) = gone.clone().next() {
            let error = format!("{} booted {}, and that image is not here any more", member.name, image.name);
            return Err(Failure::new(Kind::Conflict, error, "launch what it shall boot"));
        }
        let (seen, _) = self.timeline.follow();
        let has_url = of.terms.healthy.is_some();
        let judged = |member: &Member| self.judged(&config, member, has_url);
        let reach = |mac| self.reach(&config, mac);
        let planned = order::undo(&of, members, judged, reach, by, seen, now);
        let notes = planned.notes.clone();
        let launch = self.launches.begin(planned, now).await.map_err(api::launch_failure)?;
        Ok(Asked { dry_run: false, notes, launch })
    }

    /// What tells that a machine is healthy with what it booted before.
    fn judged(&self, config: &Config, member: &Member, has_url: bool) -> Judged {
        let pin = member.target.as_ref();
        let declared = config.node(member.mac).and_then(|node| node.profile.as_ref());
        let name = pin.and_then(|pin| pin.profile.as_ref()).or(declared).or(config.default_profile.as_ref());
        let profile = name.and_then(|name| config.profile(name));
        let reference = pin.and_then(|pin| pin.image.as_ref()).map(|image| image.name.as_str());
        let reference = reference.or_else(|| match &profile?.source {
            Source::Image(reference) => Some(reference),
            Source::Kernel { .. } => None,
        });
        match reference {
            None if has_url => Judged::UrlFromKernel,
            Some(_) if has_url => Judged::Url,
            Some(reference) if self.images.get(reference).is_some_and(|image| has_check(&image)) => {
                Judged::HealthCheck
            }
            _ => Judged::Workload,
        }
    }

    fn known(&self, config: &Config, mac: Mac) -> Known {
        let why = self.timeline.why(mac).filter(|why| why.done && why.stage == Some(Stage::Workload));
        let held = self.machines.get(mac).is_some_and(|machine| machine.stops_in_stage1());
        Known { reach: self.reach(config, mac), up_since: why.map(|why| why.began), held }
    }

    /// The image as the engine has it now, or, where that can't be asked, as it is here.
    async fn bring_in(
        &self,
        reference: &str,
        notes: &mut Vec<String>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Ready, Failure> {
        let source = ImageSource::Reference(reference.to_owned());
        let report = move |step: image::Progress| drop(progress.try_send(shown(&step)));
        let image = match (self.images.get(reference), reference.contains('@')) {
            // Its name says which one it is.
            (Some(image), true) => image,
            (here, _) => match (self.images.add(&source, true, report).await, here) {
                (Ok(image), _) => image,
                (Err(error), Some(image)) => {
                    notes.push(format!("whether there is a newer {reference} is not known: {error}"));
                    image
                }
                (Err(error), None) => return Err(add_failure(error)),
            },
        };
        let pinned = self.images.pin(&image).map_err(add_failure)?;
        Ok(Ready { pinned, has_health_check: has_check(&image) })
    }

    /// The image as far as it can be seen without bringing it in.
    async fn foreseen(&self, reference: &str, notes: &mut Vec<String>) -> Result<Option<Ready>, Failure> {
        if let Some(image) = self.images.get(reference) {
            let pinned = image::pinned(&image.record);
            return Ok(Some(Ready { pinned, has_health_check: has_check(&image) }));
        }
        match self.images.is_at_engine(reference).await {
            Ok(()) => notes.push(format!("image {reference} is not here yet, and would be brought in")),
            Err(image::AddError::Export(image::ExportError::NoSuchImage { .. })) => notes.push(format!(
                "image {reference} is neither here nor in the Docker engine, which would be asked to pull it"
            )),
            Err(error) => return Err(add_failure(error)),
        }
        Ok(None)
    }

    /// Machines that launches have boot the image of this name.
    pub(super) fn pinned_to(&self, reference: &str) -> Vec<String> {
        let name = image::canonical(reference);
        let config = self.config();
        let boots = |node: &&Arc<crate::config::Node>| {
            node.launched.as_ref().and_then(|pin| pin.image.as_ref()).is_some_and(|image| image.name == name)
        };
        config.nodes.iter().filter(boots).map(|node| node.name.clone()).collect()
    }

    /// Takes names from images that no machine boots, and that no launch could bring back.
    pub(super) fn forget_unpinned(&self) -> Result<(), String> {
        let used =
            tokio::task::block_in_place(|| self.launches.images()).map_err(|error| error.to_string())?;
        for name in self.images.pinned().into_iter().filter(|name| !used.contains(name)) {
            match self.images.rm(&name) {
                Ok(()) | Err(RemoveError::NoSuchImage(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// What can be done about a machine's power.
    fn reach(&self, config: &Config, mac: Mac) -> Reach {
        match config.node(mac).map(|node| self.powers.can(node)) {
            Some(power::Reach::Full) => Reach::Full,
            Some(power::Reach::OnOnly) => Reach::Wake,
            Some(power::Reach::None) | None => Reach::None,
        }
    }

    /// Whether the machine is on, as far as its BMC says.
    async fn is_on(&self, mac: Mac) -> Result<Option<bool>, SiteError> {
        Ok(match self.act(mac, Action::Status).await? {
            power::State::On => Some(true),
            power::State::Off => Some(false),
            power::State::Unknown => None,
        })
    }

    async fn switch(&self, mac: Mac, on: bool) -> Result<(), SiteError> {
        let is_bios = self.machines.get(mac).is_some_and(|m| m.firmware.is_some() && !m.is_uefi());
        let mode = if is_bios { Mode::Bios } else { Mode::Uefi };
        let boot = Some(BootOnce { from: NetBoot::Pxe, mode });
        self.act(mac, if on { Action::On { boot } } else { Action::Off }).await.map(drop)
    }

    async fn act(&self, mac: Mac, action: Action) -> Result<power::State, SiteError> {
        let config = self.config();
        let node = config.node(mac).ok_or_else(|| SiteError("it is not declared any more".to_owned()))?;
        let done = self.powers.act(node, action).await;
        done.map(|done| done.state).map_err(|error| SiteError(error.to_string()))
    }
}

fn has_check(image: &Image) -> bool {
    image.record.config.health_check.is_some()
}
