//! What a machine boots: the files that its profile names, or an image with its kernel, tools and rescue initrd.

use pxe_contract::paths::{ImagePart, LoadFailure};

use super::boot::{Appliance, Generated, ImageFacts, KernelFacts, Plan, Refusal, plan};
use super::image::{Availability, ImageRecord, Images, KernelSource, Wanted};
use super::tools::{self, Tools};
use super::trials::Trials;
use crate::config::{Config, Profile, Rescue, Source};
use crate::machines::diagnosis::{Note, Planned};
use crate::machines::timeline::{Happened, Stage, Timeline, Who};
use crate::machines::{Machine, Machines};

/// Plans boots, and notes what it decides for the diagnosis.
#[derive(Clone)]
pub struct Planner {
    images: Images,
    wanted: Wanted,
    machines: Machines,
    timeline: Timeline,
    trials: Trials,
}

/// Who asks what a machine boots.
#[derive(Clone, Copy)]
enum Asks {
    /// The machine's loader, at the beginning of a boot: this is when the last boot is judged.
    Loader,
    /// Somebody other than the machine: it has no effect.
    Onlooker,
    /// The machine's own initrd, later in the same boot. It needs nothing of the kernel.
    Node,
}

impl Planner {
    pub fn new(
        images: Images,
        wanted: Wanted,
        machines: Machines,
        timeline: Timeline,
        trials: Trials,
    ) -> Self {
        Self { images, wanted, machines, timeline, trials }
    }

    /// What the machine's loader shall boot, and a title for its console. A refusal is an event of the boot.
    pub(crate) fn for_loader(&self, config: &Config, machine: &Machine) -> Result<(String, Plan), Refusal> {
        let planned = self.titled(config, machine, Asks::Loader);
        if let Ok((_, Plan { choice: Some(choice), .. })) = &planned {
            let (node, stages, why) = (machine.label(), choice.stages(), &choice.why);
            tracing::info!(node, stages, why, "how the image comes to the machine");
            self.machines.planned(machine.mac, choice.stages());
        }
        let note = match &planned {
            Ok((_, plan)) => Some(Note::Planned(self.noted(config, machine, plan))),
            Err(Refusal::Preparing(image)) => Some(Note::Preparing { image: image.clone() }),
            Err(_) => None,
        };
        if let Some(note) = note {
            self.timeline.note(Who::Mac(machine.mac), note);
        }
        if let Err(refusal) = &planned
            && !matches!(refusal, Refusal::Preparing(_))
        {
            self.timeline.refused(machine.mac, refusal.to_string());
        }
        planned
    }

    /// The machine's loader asks again, because it could not do what it was told before. `flaw` is what is wrong with
    /// the kernel, where that is known. Returns what to say on its screen.
    pub(crate) fn not_loaded(
        &self,
        machine: &Machine,
        failure: LoadFailure,
        flaw: Option<String>,
    ) -> Option<String> {
        let why = self.timeline.not_loaded(machine.mac, Note::NotLoaded { failure, flaw })?;
        Some(format!("Bridgehead: {why}"))
    }

    /// What it would be told, for whoever is not the machine. It is no part of its boot.
    pub(crate) fn for_onlooker(&self, config: &Config, machine: &Machine) -> Result<(String, Plan), Refusal> {
        self.titled(config, machine, Asks::Onlooker)
    }

    fn titled(&self, config: &Config, machine: &Machine, asks: Asks) -> Result<(String, Plan), Refusal> {
        let profile = config.profile_of(machine.mac).ok_or(Refusal::NoProfile)?;
        self.plan(config, machine, profile, asks).map(|plan| {
            let stages = match &plan.choice {
                Some(choice) if choice.two => " in two stages",
                _ => "",
            };
            (format!("Bridgehead: {} boots profile {}{stages}", machine.label(), profile.name), plan)
        })
    }

    /// The same plan, for the machine's own initrd. `profile` is the machine's.
    pub(crate) fn for_node(
        &self,
        config: &Config,
        machine: &Machine,
        profile: &Profile,
    ) -> Result<Plan, Refusal> {
        self.plan(config, machine, profile, Asks::Node)
    }

    /// A plan, as the diagnosis needs it.
    fn noted(&self, config: &Config, machine: &Machine, plan: &Plan) -> Planned {
        let console = |word: &String| word.strip_prefix("console=").map(str::to_owned);
        Planned {
            reports: plan.choice.is_some(),
            initrds: plan.initrds.len(),
            needed: plan.needed,
            memory: config.node(machine.mac).and_then(|n| n.memory),
            consoles: plan.cmdline.iter().filter_map(console).collect(),
        }
    }

    fn plan(
        &self,
        config: &Config,
        machine: &Machine,
        profile: &Profile,
        asks: Asks,
    ) -> Result<Plan, Refusal> {
        let reference = match &profile.source {
            Source::Kernel { kernel, initrd } => return plan::by_hand(profile, kernel, initrd),
            Source::Image(reference) => config.image_of(machine.mac, profile).unwrap_or(reference),
        };
        let image = match self.wanted.availability(reference) {
            Availability::Ready(image) => image,
            Availability::Preparing => return Err(Refusal::Preparing(reference.to_owned())),
            Availability::Failed(cause) => {
                return Err(Refusal::NoImage { reference: reference.to_owned(), cause });
            }
        };
        let memory = config.node(machine.mac).and_then(|n| n.memory);
        let mut initrds = Vec::new();
        let kernel = self.kernel(profile, &image.record, &mut initrds)?;
        let kernel = match asks {
            Asks::Loader => self.or_last_good(machine, kernel),
            Asks::Node | Asks::Onlooker => kernel,
        };
        let mut facts = ImageFacts::from(&*image.record).with(kernel);
        if profile.storage.is_some() {
            let tools = Tools::below(&config.boot.assets, tools::STORAGE).map_err(|error| {
                Refusal::NoStorageTools {
                    path: config.boot.assets.join(tools::STORAGE).display().to_string(),
                    cause: error.to_string(),
                }
            })?;
            tools.add_to(&mut facts);
            initrds.push(Generated::StorageTools.to_string());
        }
        let mut rescue = config.rescue_of(machine.mac, profile);
        if rescue == Rescue::Ssh {
            match Tools::below(&config.boot.assets, tools::RESCUE) {
                Ok(tools) => {
                    tools.add_to(&mut facts);
                    initrds.push(Generated::RescueTools.to_string());
                }
                // No reason to stop a machine from booting.
                Err(error) => {
                    let path = config.boot.assets.join(tools::RESCUE);
                    tracing::warn!(path = %path.display(), %error, "no rescue by SSH: `cargo xtask setup` makes its tools");
                    rescue = Rescue::Console;
                }
            }
        }
        let appliance = Appliance::from(config);
        let mut plan = plan::image(machine, memory, profile, reference, &facts, rescue, &appliance)?;
        plan.initrds.extend(initrds);
        Ok(plan)
    }

    /// The kernel for an image: the profile's, or else the image's own, the default one, or the stock one. What stage 1
    /// needs for the profile's modules is added to `initrds`.
    fn kernel(
        &self,
        profile: &Profile,
        image: &ImageRecord,
        initrds: &mut Vec<String>,
    ) -> Result<KernelFacts, Refusal> {
        let kernels = self.images.kernels();
        let default = kernels.default.as_ref().filter(|_| image.kernel.source == KernelSource::Assets);
        let Some(name) = profile.kernel.as_ref().or(default) else { return Ok(image.into()) };
        let profile_name = || profile.name.clone();
        let record = self.images.kernel(name);
        let record =
            record.ok_or_else(|| Refusal::NoKernel { profile: profile_name(), kernel: name.clone() })?;
        let mut kernel = KernelFacts::from(&record);
        if !profile.modules.is_empty() {
            let set = self.images.module_set(&record, &profile.modules);
            let set = set.map_err(|source| Refusal::Modules { profile: profile_name(), source })?;
            kernel.stage1.len += set.blob.size;
            kernel.stage1.unpacked += set.unpacked;
            let part = Generated::Image { digest: set.blob.sha256, part: ImagePart::Stage1 };
            initrds.push(part.to_string());
        }
        Ok(kernel)
    }

    /// `wanted`, or the machine's last good kernel if `wanted` has failed too often. That is an event of its boot.
    fn or_last_good(&self, machine: &Machine, wanted: KernelFacts) -> KernelFacts {
        // Only machines with a lease boot: a request that anybody can send is not recorded.
        if machine.address.is_none() {
            return wanted;
        }
        let Some(good) = self.trials.asked(machine.mac, &wanted) else { return wanted };
        let here = |sha256: &str| matches!(self.images.blob(sha256), Ok(Some(_)));
        if !here(&good.kernel.sha256) || !here(&good.stage1.sha256) {
            return wanted;
        }
        // Loaders ask several times.
        if machine.stage != Some(Stage::Config) {
            let words = format!(
                "kernel {} did not reach stage 1 twice: booting the last good one, {}",
                wanted.name, good.name
            );
            self.timeline.record(Happened::new(Who::Mac(machine.mac), Stage::Config).detail(words));
        }
        good
    }
}
