//! Every path that the daemon answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::paths::{ImagePart, LoadFailure, file};
use pxe_contract::ticket::Ticket;
use tokio::sync::watch;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Files, OpenError, Opened, Root};
use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, Source, kernel};
use crate::machines::rescue::Rescues;
use crate::machines::segment::Segment;
use crate::machines::timeline::Stage;
use crate::machines::{Machine, Machines};
use crate::nodes::trust::{IssueError, Trust};
use crate::provision::blob::Blob;
use crate::provision::boot::{Appliance, Generated, Plan, Refusal, grub, ipxe};
use crate::provision::image::{Images, archive};
use crate::provision::planner::Planner;
use crate::provision::{storage, tools};

/// The daemon's [`Files`]: generated files first, then the files root.
pub struct Catalog {
    config: watch::Receiver<Arc<Config>>,
    root: RwLock<Option<Arc<Root>>>,
    planner: Planner,
    images: Images,
    machines: Machines,
    rescues: Rescues,
    trust: Trust,
    segment: Option<Segment>,
}

/// A plan and its title, or why there is none.
type Planned = Result<(String, Plan), Refusal>;

/// What is stored about machines' boots, apart from their state.
pub struct Kept {
    pub rescues: Rescues,
    pub trust: Trust,
    /// Finds the owner of an address.
    pub segment: Option<Segment>,
}

/// The open files root of a configuration.
pub struct OpenRoot(Option<Arc<Root>>);

/// Why the files root can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("[files] root = {path:?}: {source}")]
pub struct RootError {
    path: std::path::PathBuf,
    source: std::io::Error,
}

impl Catalog {
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        planner: Planner,
        images: Images,
        machines: Machines,
        kept: Kept,
    ) -> Result<Self, RootError> {
        let Kept { rescues, trust, segment } = kept;
        let OpenRoot(root) = OpenRoot::of(&config.borrow())?;
        let root = RwLock::new(root);
        Ok(Self { config, root, planner, images, machines, rescues, trust, segment })
    }

    /// Switches to the files root of the next configuration. Files that are being sent stay open.
    pub fn serve(&self, root: OpenRoot) {
        *self.root.write().unpoisoned() = root.0;
    }

    /// The configuration in force.
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
            Generated::StorageTools => tools_initrd(&tools::storage_initrd(&config.boot.assets)),
            Generated::RescueTools => tools_initrd(&tools::rescue_initrd(&config.boot.assets)),
            Generated::Node(_) => {
                Err(OpenError::Forbidden("it has a secret of one machine's, and is sent by HTTP only".into()))
            }
            Generated::Image { digest, part } => {
                let blob = self.images.blob(digest)?.ok_or(OpenError::NotFound)?;
                if *part == ImagePart::Stage2 && self.machines.by_address(client).is_none() {
                    let why = "an image's second stage is for machines with a lease";
                    return Err(OpenError::Forbidden(why.to_owned()));
                }
                let stage = match part {
                    ImagePart::Kernel => Some(Stage::Kernel),
                    ImagePart::Stage1 | ImagePart::Rootfs => Some(Stage::Initrd),
                    // The node itself reports when it has fetched and verified it.
                    ImagePart::Stage2 => None,
                };
                Ok(Opened { blob, stage })
            }
            Generated::GrubConfig(mac) => Ok(self.config_file(config, *mac, client, None, grub_config)),
            Generated::GrubConfigAgain(failure, mac) => {
                Ok(self.config_file(config, *mac, client, Some(*failure), grub_config))
            }
            Generated::GrubConfigByAddress => {
                let machine = self.machines.by_address(client).ok_or(OpenError::NotFound)?;
                Ok(self.config_file(config, machine.mac, client, None, grub_config))
            }
            Generated::IpxeScript(mac) => Ok(self.config_file(config, *mac, client, None, ipxe_script)),
            Generated::IpxeScriptAgain(failure, mac) => {
                Ok(self.config_file(config, *mac, client, Some(*failure), ipxe_script))
            }
        }
    }

    /// What the machine is to load, in its loader's language. Only where the machine itself asks, something follows
    /// from it: an event, a row of the register, a kernel's chance. `failure` is what it could not do with the one before.
    fn config_file(
        &self,
        config: &Config,
        mac: Mac,
        client: Ipv4Addr,
        failure: Option<LoadFailure>,
        written: fn(&Config, &Machine, Planned, Option<&str>) -> String,
    ) -> Opened {
        let (text, stage) = if self.is_own(mac, client) {
            let machine = self.machines.get_or_insert(mac);
            let trouble = failure.and_then(|failure| {
                let flaw = self.flaw(config, &machine);
                self.planner.not_loaded(&machine, failure, flaw)
            });
            let planned = self.planner.for_loader(config, &machine);
            (written(config, &machine, planned, trouble.as_deref()), Some(Stage::Config))
        } else {
            let machine = self.machines.get(mac).unwrap_or_else(|| Machine::new(mac));
            (written(config, &machine, self.planner.for_onlooker(config, &machine), None), None)
        };
        Opened { blob: Blob::from_bytes(text), stage }
    }

    /// What is wrong with the kernel that the machine is told to load, where that shows. An image's was looked at when it
    /// was added.
    fn flaw(&self, config: &Config, machine: &Machine) -> Option<String> {
        let Source::Kernel { kernel, .. } = &config.profile_of(machine.mac)?.source else { return None };
        let blob = self.root()?.file(&normal(kernel).ok()?).ok()?;
        let mut start = vec![0; kernel::START];
        let len = blob.read_at(0, &mut start).ok()?;
        (!kernel::is_linux(&start[..len])).then(|| kernel::no_linux(kernel))
    }

    /// Whether the machine itself asks: from the address of its lease, or, where another server gave it one, from its
    /// own station.
    fn is_own(&self, mac: Mac, client: Ipv4Addr) -> bool {
        match self.machines.get(mac).and_then(|machine| machine.address) {
            Some(address) => address == client,
            None => self.segment.as_ref().is_some_and(|segment| segment.station_of(client) == Some(mac)),
        }
    }
}

fn grub_config(config: &Config, machine: &Machine, planned: Planned, trouble: Option<&str>) -> String {
    let own_path = Generated::GrubConfig(machine.mac).to_string();
    match planned {
        Ok((title, plan)) => {
            grub::boot(&title, trouble, &Appliance::from(config).authority(), machine.mac, &plan)
        }
        Err(refusal) => grub::refuse(&refused_title(machine), &own_path, &refusal),
    }
}

fn ipxe_script(config: &Config, machine: &Machine, planned: Planned, trouble: Option<&str>) -> String {
    let own_path = Generated::IpxeScript(machine.mac).to_string();
    let base_url = Appliance::from(config).url();
    match planned {
        Ok((title, plan)) => ipxe::boot(&title, trouble, &base_url, machine.mac, &plan),
        Err(refusal) => ipxe::refuse(&refused_title(machine), &base_url, &own_path, &refusal),
    }
}

impl OpenRoot {
    /// Opens the files root of `config`, if it has one.
    pub fn of(config: &Config) -> Result<Self, RootError> {
        let Some(path) = &config.files_root else { return Ok(Self(None)) };
        let root = Root::open(path).map_err(|source| RootError { path: path.clone(), source })?;
        Ok(Self(Some(Arc::new(root))))
    }
}

/// The stage that a plain file belongs to, if a profile names it.
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
        let plan = self.planner.for_node(config, &machine, profile).map_err(|e| refused(&e))?;
        if plan.settings.is_empty() {
            // The profile's own files are booted, so nobody would read it.
            return Err(OpenError::NotFound);
        }
        let storage = config.storage_of(profile);
        let keys = storage.and_then(|plan| storage::keys_for(&machine, plan));
        let mut token = self.trust.issue(mac, client, keys).map_err(|error| match error {
            IssueError::Running(_) => OpenError::Forbidden(error.to_string()),
            IssueError::Write(_) => OpenError::Io(io::Error::other(error)),
        })?;
        let appliance = Appliance::from(config);
        let mut ticket = Ticket {
            settings: plan.settings,
            profile: profile.name.clone(),
            appliance: SocketAddrV4::new(appliance.address.addr(), appliance.tls_port),
            ca: self.trust.authority().certificate().to_owned(),
            token: std::mem::take(&mut *token),
            time: Timestamp::now().as_second().try_into().unwrap_or_default(),
        };
        let written = serde_json::to_string_pretty(&ticket).expect("it has only text keys");
        ticket.token.zeroize();
        let ticket = Zeroizing::new(written);
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

/// The path without parts that have no meaning: leading and doubled slashes, `.`. Some ROMs and Windows' boot manager
/// use backslashes as separators; no file name here contains one. A path with `..` is refused even if it would stay
/// inside, because no loader sends one in good faith.
fn normal(path: &str) -> Result<String, OpenError> {
    let mut parts = Vec::new();
    for part in path.split(['/', '\\']) {
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

fn refused_title(machine: &Machine) -> String {
    format!("Bridgehead: {} can not boot yet", machine.label())
}

fn tools_initrd(path: &Path) -> Result<Opened, OpenError> {
    let missing = |error| OpenError::Refused(format!("{}: {error}", path.display()));
    Ok(Opened { blob: Blob::open(path).map_err(missing)?, stage: Some(Stage::Initrd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_normal_or_refused() {
        assert_eq!(normal("/grub//./grub.cfg").unwrap(), "grub/grub.cfg");
        assert_eq!(normal("\\boot\\x64/.\\bootmgr.exe").unwrap(), "boot/x64/bootmgr.exe");
        assert!(matches!(normal("a/../b"), Err(OpenError::Outside)));
        assert!(matches!(normal("a\\..\\..\\b"), Err(OpenError::Outside)));
        assert!(matches!(normal("../etc/passwd"), Err(OpenError::Outside)));
        assert!(matches!(normal("/"), Err(OpenError::Directory)));
        assert!(matches!(normal("a\0b"), Err(OpenError::NotFound)));
    }
}
