//! Every path that the daemon answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::paths::{ImagePart, file};
use pxe_contract::ticket::Ticket;
use tokio::sync::watch;

use super::{Files, OpenError, Opened, Root};
use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, Profile, Rescue, Source};
use crate::machines::diagnosis::{Note, Planned};
use crate::machines::rescue::Rescues;
use crate::machines::timeline::{Happened, Stage, Timeline, Who};
use crate::machines::{Machine, Machines};
use crate::nodes::trust::{IssueError, Trust};
use crate::provision::blob::Blob;
use crate::provision::boot::{
    Appliance, Generated, ImageFacts, KernelFacts, Plan, Refusal, grub, ipxe, plan,
};
use crate::provision::image::{Availability, ImageRecord, Images, KernelSource, Wanted, archive};
use crate::provision::storage;
use crate::provision::trials::Trials;

/// The daemon's [`Files`]: what is generated first, then the files root.
pub struct Catalog {
    config: watch::Receiver<Arc<Config>>,
    root: RwLock<Option<Arc<Root>>>,
    images: Images,
    wanted: Wanted,
    machines: Machines,
    timeline: Timeline,
    rescues: Rescues,
    trials: Trials,
    trust: Trust,
}

/// What is kept of each machine's boots, beside where they stand.
pub struct Kept {
    pub rescues: Rescues,
    pub trials: Trials,
    pub trust: Trust,
}

/// Who wants to know what a machine boots.
#[derive(Clone, Copy)]
enum Asks {
    /// Its loader, at the beginning: whether the last boot came up is judged then.
    Loader,
    /// The machine's own initrd, later in the same boot. It has nothing of the kernel.
    Node,
}

/// A configuration's files root, open.
pub struct OpenRoot(Option<Arc<Root>>);

/// The files root can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("[files] root = {path:?}: {source}")]
pub struct RootError {
    path: std::path::PathBuf,
    source: std::io::Error,
}

impl Catalog {
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        images: Images,
        wanted: Wanted,
        machines: Machines,
        timeline: Timeline,
        kept: Kept,
    ) -> Result<Self, RootError> {
        let Kept { rescues, trials, trust } = kept;
        let OpenRoot(root) = OpenRoot::of(&config.borrow())?;
        let root = RwLock::new(root);
        Ok(Self { config, root, images, wanted, machines, timeline, rescues, trials, trust })
    }

    /// Goes on with another files root, that of the next configuration. What is being sent stays as it was opened.
    pub fn serve(&self, root: OpenRoot) {
        *self.root.write().unpoisoned() = root.0;
    }

    /// What it goes by now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    fn root(&self) -> Option<Arc<Root>> {
        self.root.read().unpoisoned().clone()
    }

    fn generated(&self, path: &Generated, client: Ipv4Addr) -> Result<Opened, OpenError> {
        let config = &*self.config();
        match path {
            Generated::Loader(name) => {
                let blob = Blob::open(&config.boot.assets.join(name)).map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => OpenError::Refused(format!(
                        "{name} is not below {}: run `cargo xtask setup`",
                        config.boot.assets.display()
                    )),
                    _ => OpenError::Io(e),
                })?;
                Ok(Opened { blob, stage: Some(Stage::Loader) })
            }
            Generated::StorageTools => tools_initrd(&config.boot.assets, STORAGE),
            Generated::RescueTools => tools_initrd(&config.boot.assets, RESCUE),
            Generated::Node(_) => {
                Err(OpenError::Forbidden("it has a secret of one machine's, and is sent by HTTP only".into()))
            }
            Generated::Image { digest, part } => {
                let blob = self.images.blob(digest)?.ok_or(OpenError::NotFound)?;
                if *part == ImagePart::Kernel
                    && let Some(machine) = self.machines.by_address(client)
                {
                    self.trials.fetches(machine.mac, digest);
                }
                let stage = match part {
                    ImagePart::Kernel => Some(Stage::Kernel),
                    ImagePart::Stage1 | ImagePart::Rootfs => Some(Stage::Initrd),
                    // The node itself says when it is there and verified.
                    ImagePart::Stage2 => None,
                };
                Ok(Opened { blob, stage })
            }
            Generated::GrubConfig(mac) => {
                let machine = self.machines.get_or_insert(*mac);
                Ok(config_file(self.grub(config, &machine)))
            }
            Generated::GrubConfigByAddress => {
                let machine = self.machines.by_address(client).ok_or(OpenError::NotFound)?;
                Ok(config_file(self.grub(config, &machine)))
            }
            Generated::IpxeScript(mac) => {
                let machine = self.machines.get_or_insert(*mac);
                Ok(config_file(self.ipxe(config, &machine)))
            }
        }
    }

    fn grub(&self, config: &Config, machine: &Machine) -> String {
        let own_path = Generated::GrubConfig(machine.mac).to_string();
        match self.plan(config, machine) {
            Ok((title, plan)) => grub::boot(&title, &Appliance::from(config).authority(), &own_path, &plan),
            Err(refusal) => grub::refuse(&refused_title(machine), &own_path, &refusal),
        }
    }

    fn ipxe(&self, config: &Config, machine: &Machine) -> String {
        let own_path = Generated::IpxeScript(machine.mac).to_string();
        let base_url = Appliance::from(config).url();
        match self.plan(config, machine) {
            Ok((title, plan)) => ipxe::boot(&title, &base_url, &own_path, &plan),
            Err(refusal) => ipxe::refuse(&refused_title(machine), &base_url, &own_path, &refusal),
        }
    }

    /// What the machine boots, and a title for its console. A refusal is an event of its boot.
    fn plan(&self, config: &Config, machine: &Machine) -> Result<(String, Plan), Refusal> {
        let planned = match config.profile_of(machine.mac) {
            None => Err(Refusal::NoProfile),
            Some(profile) => self.plan_profile(config, machine, profile, Asks::Loader).map(|plan| {
                let stages = match &plan.choice {
                    Some(choice) if choice.two => " in two stages",
                    _ => "",
                };
                (format!("Bridgehead: {} boots profile {}{stages}", machine.label(), profile.name), plan)
            }),
        };
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
            // The loader asks again every so often: one event for one cause is enough.
            && machine.stage != Some(Stage::Failed)
        {
            self.timeline.record(Happened::failed(Who::Mac(machine.mac), refusal.to_string()));
        }
        planned
    }

    /// A plan as a diagnosis wants it.
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

    fn plan_profile(
        &self,
        config: &Config,
        machine: &Machine,
        profile: &Profile,
        asks: Asks,
    ) -> Result<Plan, Refusal> {
        let reference = match &profile.source {
            Source::Kernel { kernel, initrd } => return plan::by_hand(profile, kernel, initrd),
            Source::Image(reference) => reference,
        };
        let image = match self.wanted.availability(reference) {
            Availability::Ready(image) => image,
            Availability::Preparing => return Err(Refusal::Preparing(reference.clone())),
            Availability::Failed(cause) => {
                return Err(Refusal::NoImage { reference: reference.clone(), cause });
            }
        };
        let memory = config.node(machine.mac).and_then(|n| n.memory);
        let mut initrds = Vec::new();
        let kernel = self.kernel(profile, &image.record, &mut initrds)?;
        let kernel = match asks {
            Asks::Loader => self.or_last_good(machine, kernel),
            Asks::Node => kernel,
        };
        let mut facts = ImageFacts::from(&*image.record).with(kernel);
        if profile.storage.is_some() {
            let tools = tools(&config.boot.assets, STORAGE).map_err(|error| Refusal::NoStorageTools {
                path: config.boot.assets.join(STORAGE).display().to_string(),
                cause: error.to_string(),
            })?;
            tools.add_to(&mut facts);
            initrds.push(Generated::StorageTools.to_string());
        }
        let mut rescue = config.rescue_of(machine.mac, profile);
        if rescue == Rescue::Ssh {
            match tools(&config.boot.assets, RESCUE) {
                Ok(tools) => {
                    tools.add_to(&mut facts);
                    initrds.push(Generated::RescueTools.to_string());
                }
                // No reason to keep a machine from booting.
                Err(error) => {
                    let path = config.boot.assets.join(RESCUE);
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

    /// The kernel that an image is to boot with: the profile's, else the image's own, else the default one, else the
    /// stock one. What stage 1 needs for the profile's modules is added to `initrds`.
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

    /// `wanted`, or what the machine came up with last, where `wanted` had its chances. That is an event of its boot.
    fn or_last_good(&self, machine: &Machine, wanted: KernelFacts) -> KernelFacts {
        // Only machines with a lease boot: what anybody may ask for is not written down.
        if machine.address.is_none() {
            return wanted;
        }
        let Some(good) = self.trials.asked(machine.mac, &wanted) else { return wanted };
        let here = |sha256: &str| matches!(self.images.blob(sha256), Ok(Some(_)));
        if !here(&good.kernel.sha256) || !here(&good.stage1.sha256) {
            return wanted;
        }
        // Loaders ask more than once.
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

impl OpenRoot {
    /// Opens what `config` names, if it names one.
    pub fn of(config: &Config) -> Result<Self, RootError> {
        let Some(path) = &config.files_root else { return Ok(Self(None)) };
        let root = Root::open(path).map_err(|source| RootError { path: path.clone(), source })?;
        Ok(Self(Some(Arc::new(root))))
    }
}

/// The stage that a plain file is of: that of a profile which names it.
fn stage_of(path: &str, config: &Config, machine: Option<&Machine>) -> Option<Stage> {
    match &config.profile_of(machine?.mac)?.source {
        Source::Kernel { kernel, .. } if same_path(kernel, path) => Some(Stage::Kernel),
        Source::Kernel { initrd, .. } if initrd.iter().any(|i| same_path(i, path)) => Some(Stage::Initrd),
        Source::Kernel { .. } | Source::Image(_) => None,
    }
}

impl Files for Catalog {
    fn node(&self, mac: Mac, client: Ipv4Addr) -> Result<Vec<u8>, OpenError> {
        let config = &*self.config();
        let machine = self.machines.by_address(client).filter(|machine| machine.mac == mac);
        let machine = machine.ok_or_else(|| {
            OpenError::Forbidden(format!("it is for {mac}, and {client} is not its address"))
        })?;
        let profile = config.profile_of(mac).ok_or(OpenError::NotFound)?;
        let refused = |error: &dyn std::fmt::Display| OpenError::Refused(error.to_string());
        let plan = self.plan_profile(config, &machine, profile, Asks::Node).map_err(|e| refused(&e))?;
        if plan.settings.is_empty() {
            // Files by hand: nobody there would read it.
            return Err(OpenError::NotFound);
        }
        let storage = config.storage_of(profile);
        let keys = storage.and_then(|plan| storage::keys_for(&machine, plan));
        let token = self.trust.issue(mac, client, keys).map_err(|error| match error {
            IssueError::Running(_) => OpenError::Forbidden(error.to_string()),
            IssueError::Write(_) => OpenError::Io(io::Error::other(error)),
        })?;
        let appliance = Appliance::from(config);
        let ticket = Ticket {
            settings: plan.settings,
            profile: profile.name.clone(),
            appliance: SocketAddrV4::new(appliance.address.addr(), appliance.tls_port),
            ca: self.trust.authority().certificate().to_owned(),
            token,
            time: Timestamp::now().as_second().try_into().unwrap_or_default(),
        };
        let ticket = serde_json::to_string_pretty(&ticket).expect("it has only text keys");
        let storage = storage.map(|plan| storage::document::text(plan, &machine.label()));
        let mut files = vec![(file::name(file::TICKET), ticket.as_bytes())];
        files.extend(storage.as_ref().map(|text| (file::name(file::STORAGE), text.as_bytes())));
        let ssh = plan.initrds.contains(&Generated::RescueTools.to_string());
        let rescue = ssh.then(|| self.rescues.document(mac, Timestamp::now()));
        files.extend(rescue.as_ref().map(|text| (file::name(file::RESCUE), text.as_bytes())));
        archive(&files).map_err(|e| OpenError::Io(io::Error::other(e)))
    }

    fn open(&self, path: &str, client: Ipv4Addr) -> Result<Opened, OpenError> {
        let path = normal(path)?;
        if let Some(generated) = Generated::parse(&path) {
            return self.generated(&generated, client);
        }
        let blob = self.root().ok_or(OpenError::NotFound)?.file(&path)?;
        let stage = stage_of(&path, &self.config(), self.machines.by_address(client).as_ref());
        Ok(Opened { blob, stage })
    }
}

/// The path without what means nothing: leading and doubled slashes, `.`. One with `..` is refused
/// even where it would stay inside: no loader sends one in good faith.
fn normal(path: &str) -> Result<String, OpenError> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(OpenError::Outside),
            part if part.contains('\0') => return Err(OpenError::NotFound),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(OpenError::Directory);
    }
    Ok(parts.join("/"))
}

fn same_path(configured: &str, asked: &str) -> bool {
    normal(configured).is_ok_and(|c| c == asked)
}

fn config_file(text: String) -> Opened {
    Opened { blob: Blob::from_bytes(text), stage: Some(Stage::Config) }
}

fn refused_title(machine: &Machine) -> String {
    format!("Bridgehead: {} can not boot yet", machine.label())
}

/// What set-up made, below the assets: `initrd`, and `unpacked`, its size in a machine's memory.
const STORAGE: &str = "storage";
const RESCUE: &str = "rescue";

struct Tools {
    len: u64,
    unpacked: u64,
}

impl Tools {
    fn add_to(&self, facts: &mut ImageFacts) {
        facts.stage1.len += self.len;
        facts.stage1.unpacked += self.unpacked;
    }
}

fn tools(assets: &Path, name: &str) -> io::Result<Tools> {
    let directory = assets.join(name);
    let unpacked = std::fs::read_to_string(directory.join("unpacked"))?;
    let unpacked = unpacked.trim().parse().map_err(io::Error::other)?;
    Ok(Tools { len: directory.join("initrd").metadata()?.len(), unpacked })
}

fn tools_initrd(assets: &Path, name: &str) -> Result<Opened, OpenError> {
    let path = assets.join(name).join("initrd");
    let missing = |error| OpenError::Refused(format!("{}: {error}", path.display()));
    Ok(Opened { blob: Blob::open(&path).map_err(missing)?, stage: Some(Stage::Initrd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_normal_or_refused() {
        assert_eq!(normal("/grub//./grub.cfg").unwrap(), "grub/grub.cfg");
        assert!(matches!(normal("a/../b"), Err(OpenError::Outside)));
        assert!(matches!(normal("../etc/passwd"), Err(OpenError::Outside)));
        assert!(matches!(normal("/"), Err(OpenError::Directory)));
        assert!(matches!(normal("a\0b"), Err(OpenError::NotFound)));
    }
}
