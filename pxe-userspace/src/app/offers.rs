//! What the daemon reports and does through its API.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use pxe_common::Mac;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Appliance;
use crate::api::documents::{
    Asked, BridgeStatus, Collected, FileEntry, Image, Lease, LeaseState, PortStatus, Profile, Progress,
    Reloaded, Status, Tier, Workload,
};
use crate::api::{self, Failure, KernelMeasures, Kind, Measures};
use crate::config::{FastPath, Node, Source, cmdline, kernel};
use crate::host::trace::{self, TraceError};
use crate::machines::kept::{Done, Order, OrderError};
use crate::machines::segment::Contradiction;
use crate::provision::boot::{CmdlineError, ImageFacts, KernelFacts, plan};
use crate::provision::image::{
    self, AddError, AddKernelError, Availability, ChildError, ExportError, ImageRecord, ImageSource,
    KernelList, KernelRecord, NewKernel, RemoveError,
};
use crate::serve::dhcp;
use crate::serve::dhcp::{Elsewhere, Room};

/// How long people are told of a host that said something wrong.
const LATELY: Duration = Duration::from_secs(10 * 60);

impl api::Appliance for Appliance {
    fn status(&self) -> Status {
        let dhcp = self.dhcp.status();
        let mut counters = BTreeMap::new();
        flatten("dhcp", &serde_json::to_value(&dhcp.counters).unwrap_or_default(), &mut counters);
        counters.insert("dhcp.bound".into(), dhcp.bound as u64);
        counters.insert("segment.contradictions".into(), self.segment.contradictions().count);
        counters.extend(self.tftp.read().map(|(name, value)| (format!("tftp.{name}"), value)));
        if let Some(dataplane) = &self.fast_path.dataplane {
            let seen = serde_json::to_value(dataplane.counters()).unwrap_or_default();
            flatten("kernel", &seen, &mut counters);
            counters.insert("kernel.published-bytes".into(), dataplane.published_bytes());
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.started,
            bridge: BridgeStatus {
                name: self.bridge.name.clone(),
                address: self.bridge.address,
                mac: self.bridge.mac,
            },
            pool: self.config().dhcp.range.map(|(first, last)| [first, last]),
            ports: self.port_tiers(),
            fast_path: self.fast_path.dataplane.as_ref().map(|dataplane| dataplane.kernel()),
            boots: self.wave(dhcp.pacing.waiting),
            pacing: dhcp.pacing,
            alerts: self.alerts(&dhcp),
            counters,
        }
    }

    fn measures(&self) -> Measures {
        let dhcp = self.dhcp.status();
        Measures {
            version: env!("CARGO_PKG_VERSION"),
            started: self.started,
            alerts: self.alerts(&dhcp).len(),
            ports: self.port_tiers(),
            dhcp,
            tftp: self.tftp.read().collect(),
            kernel: self.fast_path.dataplane.as_ref().map(|dataplane| KernelMeasures {
                counters: dataplane.counters(),
                published_bytes: dataplane.published_bytes(),
            }),
        }
    }

    fn leases(&self) -> Result<Vec<Lease>, Failure> {
        let now = Timestamp::now();
        let lease = |lease: dhcp::Lease| Lease {
            address: lease.address,
            mac: lease.mac,
            node: self.machines.get(lease.mac).and_then(|m| m.name),
            state: match lease.state {
                dhcp::LeaseState::Released => LeaseState::Released,
                _ if lease.expires <= now => LeaseState::Expired,
                dhcp::LeaseState::Offered => LeaseState::Offered,
                dhcp::LeaseState::Bound => LeaseState::Bound,
                dhcp::LeaseState::Declined => LeaseState::Declined,
            },
            expires: lease.expires,
        };
        Ok(self.dhcp.leases().into_iter().map(lease).collect())
    }

    fn files(&self) -> Result<Vec<FileEntry>, Failure> {
        let mut files = Vec::new();
        if let Some(root) = &self.config().files_root {
            list(root, "", &mut files).map_err(|error| {
                let hint = "check [files] root and its permissions";
                Failure::new(Kind::Unavailable, format!("{}: {error}", root.display()), hint)
            })?;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn profiles(&self) -> Vec<Profile> {
        let config = self.config();
        let profile = |profile: &crate::config::Profile| {
            let (image, kernel, problem) = match &profile.source {
                Source::Image(reference) => {
                    let problem = match self.wanted.availability(reference) {
                        Availability::Ready(_) => None,
                        Availability::Preparing => Some(format!("image {reference} is being brought in")),
                        Availability::Failed(cause) => Some(cause),
                    };
                    let missing = |name: &&String| self.images.kernel(name).is_none();
                    let problem = problem.or_else(|| {
                        let name = profile.kernel.as_ref().filter(missing)?;
                        Some(format!("there is no kernel {name}: `bridgehead kernel add` brings one in"))
                    });
                    (Some(reference.clone()), profile.kernel.clone(), problem)
                }
                Source::Kernel { kernel, .. } => (None, Some(kernel.clone()), None),
            };
            let problem =
                problem.or_else(|| cmdline::words(&profile.cmdline).err().map(|error| error.to_string()));
            let problem = problem.or_else(|| {
                let appliance = SocketAddrV4::new(config.network.address.addr(), config.http.port);
                let len = cmdline::overlong(profile, appliance)?;
                Some(CmdlineError::TooLong(len).to_string())
            });
            let problem = problem.or_else(|| {
                let root = config.files_root.as_deref()?;
                let Source::Kernel { kernel: path, initrd } = &profile.source else { return None };
                let mut files = std::iter::once(path).chain(initrd);
                files.find_map(|path| kernel::missing(root, path))
            });
            let (name, cmdline) = (profile.name.clone(), profile.cmdline.clone());
            Profile { name, image, kernel, cmdline, ready: problem.is_none(), problem }
        };
        config.profiles.iter().map(profile).collect()
    }

    fn workloads(&self) -> Vec<Workload> {
        self.workloads.list()
    }

    fn trace(&self, wanted: trace::Wanted) -> Result<mpsc::Receiver<Bytes>, TraceError> {
        self.tracer.start(wanted)
    }

    fn kept(&self) -> Vec<Arc<Node>> {
        self.kept.all()
    }

    fn node(&self, mac: Mac) -> Option<Arc<Node>> {
        self.config().nodes.by_mac(mac).cloned()
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Done, OrderError>> {
        Box::pin(Appliance::order(self, order))
    }

    fn launch(
        &self,
        order: api::LaunchOrder,
        dry: bool,
        by: String,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Asked, Failure>> {
        Box::pin(async move { Appliance::launch(self, &order, dry, &by, progress).await })
    }

    fn undo(&self, id: u64, by: String) -> BoxFuture<'_, Result<Asked, Failure>> {
        Box::pin(async move { Appliance::undo(self, id, &by).await })
    }

    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, Failure>> {
        Box::pin(async {
            Appliance::reload(self).await.map_err(|error| {
                Failure::new(Kind::Invalid, error.to_string(), "nothing was changed: correct the file")
            })
        })
    }
}

impl api::Images for Appliance {
    fn work(&self) -> PathBuf {
        self.images.work()
    }

    fn list(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.images.list().iter().map(|record| self.image(record)).collect())
    }

    fn add(
        &self,
        source: ImageSource,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Image, Failure>> {
        Box::pin(async move {
            let report = move |step: image::Progress| {
                // A slow or missing reader misses steps, but delays nobody.
                let _ = progress.try_send(shown(&step));
            };
            match self.images.add(&source, true, report).await {
                Ok(image) => Ok(self.image(&image.record)),
                Err(error) => Err(add_failure(error)),
            }
        })
    }

    fn remove(&self, reference: String) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let pinned = self.pinned_to(&reference);
            if !pinned.is_empty() {
                let error = format!("{reference} is booted by {}", pinned.join(", "));
                return Err(Failure::new(Kind::Conflict, error, "launch them with another image first"));
            }
            let used_by = self.profiles_of(&reference);
            if !used_by.is_empty() {
                let error = format!("{reference} is booted by profile {}", used_by.join(", "));
                return Err(Failure::new(Kind::Conflict, error, "take it out of the configuration first"));
            }
            self.images.rm(&reference).map_err(|error| match error {
                RemoveError::NoSuchImage(_) => {
                    Failure::new(Kind::NotFound, error.to_string(), "`bridgehead images` lists them")
                }
                RemoveError::Store(_) => Failure::internal(error),
            })
        })
    }

    fn collect(&self) -> BoxFuture<'_, Result<Collected, Failure>> {
        Box::pin(async {
            self.forget_unpinned().map_err(Failure::internal)?;
            self.images.gc(self.trials.blobs()).await.map_err(Failure::internal)
        })
    }

    fn kernels(&self) -> KernelList {
        self.images.kernels()
    }

    fn add_kernel(&self, new: NewKernel) -> BoxFuture<'_, Result<KernelRecord, Failure>> {
        Box::pin(async move {
            let record = self.images.add_kernel(new).await.map_err(|error| {
                let kind = match &error {
                    AddKernelError::NoImage(_) => Kind::NotFound,
                    AddKernelError::Store(_) | AddKernelError::Work(_) => Kind::Internal,
                    AddKernelError::Build(error) => add_failure_kind(error).0,
                    AddKernelError::Name(_)
                    | AddKernelError::NoKernel { .. }
                    | AddKernelError::OtherModules { .. }
                    | AddKernelError::NoIndex { .. }
                    | AddKernelError::NeitherNor { .. }
                    | AddKernelError::NotAPackage { .. }
                    | AddKernelError::Damaged { .. }
                    | AddKernelError::Kernel(_)
                    | AddKernelError::Stage1(_) => Kind::Invalid,
                };
                Failure::new(kind, error.to_string(), "docs/kernels.md says what a kernel needs")
            })?;
            tokio::task::block_in_place(|| self.trials.try_again(&KernelFacts::from(&record)));
            Ok(record)
        })
    }

    fn default_kernel(&self, name: Option<&str>) -> Result<(), Failure> {
        if !self.images.default_kernel(name).map_err(Failure::internal)? {
            return Err(no_such_kernel(name.unwrap_or_default()));
        }
        if let Some(record) = name.and_then(|name| self.images.kernel(name)) {
            self.trials.try_again(&KernelFacts::from(&record));
        }
        Ok(())
    }

    fn remove_kernel(&self, name: &str) -> Result<(), Failure> {
        let config = self.config();
        let uses = |profile: &&crate::config::Profile| profile.kernel.as_deref() == Some(name);
        if let Some(profile) = config.profiles.iter().find(uses) {
            let error = format!("kernel {name} is that of profile {}", profile.name);
            return Err(Failure::new(Kind::Conflict, error, "take it out of the configuration first"));
        }
        match self.images.remove_kernel(name).map_err(Failure::internal)? {
            true => Ok(()),
            false => Err(no_such_kernel(name)),
        }
    }
}

impl Appliance {
    fn port_tiers(&self) -> Vec<PortStatus> {
        if let Some(dataplane) = &self.fast_path.dataplane {
            return dataplane.ports();
        }
        let off = |name| PortStatus { name, tier: Tier::Off, reason: self.fast_path.off_because.clone() };
        self.ports.now().into_iter().map(|port| off(port.name)).collect()
    }

    /// Problems that need attention, and what to do about them.
    fn alerts(&self, dhcp: &dhcp::Status) -> Vec<String> {
        let config = self.config();
        let rivals = dhcp.rivals.iter().map(|rival| {
            format!(
                "another DHCP server, {}, answers on this segment, and machines may boot from it: \
                 stop it, or set [dhcp] mode = \"proxy\"",
                rival.server
            )
        });
        // If it was configured, it needs no attention.
        let asked_for = self.config().network.fast_path == FastPath::Off;
        let off = self
            .fast_path
            .off_because
            .iter()
            .filter(|_| !asked_for)
            .map(|why| format!("the fast path is off, and machines are answered more slowly: {why}"));
        let profiles = api::Appliance::profiles(self).into_iter().filter_map(|profile| {
            Some(format!("profile {} can't be booted: {}", profile.name, profile.problem?))
        });
        let unshaped = self.ports.now().into_iter().filter_map(|port| {
            Some(format!("[network] ceiling does not hold on {}: {}", port.name, port.unshaped?))
        });
        let forged = dhcp.forged.map(|mac| {
            format!(
                "another station sends DHCP messages in the name of {mac}, and they are ignored: find who does on the port \
                 that it comes by"
            )
        });
        let contradicted = self.segment.contradictions().last.filter(|last| last.at.elapsed() < LATELY);
        let contradicted = contradicted.map(|Contradiction { address, machine, station, .. }| {
            let name = self.machines.get(machine).and_then(|m| m.name).unwrap_or_else(|| machine.to_string());
            format!(
                "{station} says by ARP that {address} is its own, and it is {name}'s, {machine}: the appliance is not \
                 misled, other hosts may be. Find it on the port that it comes by"
            )
        });
        let elsewhere = dhcp.elsewhere.map(|Elsewhere { place, mac, .. }| {
            format!(
                "machines behind {place} ask for addresses, {mac} for one, and get none: only {} is served",
                config.network.address.trunc()
            )
        });
        let spanning = self.ports.forwards_after().map(|seconds| {
            let bridge = &config.network.bridge;
            format!(
                "{bridge} has spanning tree on: its ports forward {seconds} s after their link came up, and BIOS machines give \
                 up before: `ip link set {bridge} type bridge stp_state 0`"
            )
        });
        rivals
            .chain(elsewhere)
            .chain(spanning)
            .chain(room(dhcp.room))
            .chain(forged)
            .chain(contradicted)
            .chain(full_disk(&self.config().state_dir))
            .chain(off)
            .chain(self.fast_path_alerts())
            .chain(unshaped)
            .chain(profiles)
            .collect()
    }

    fn image(&self, record: &ImageRecord) -> Image {
        let stages = plan::by_size(&ImageFacts::from(record)).stages();
        Image {
            names: self.images.names(record),
            profiles: self.profiles_of(&record.reference),
            record: record.clone(),
            stages,
        }
    }

    /// The profiles that boot the image of this name.
    fn profiles_of(&self, reference: &str) -> Vec<String> {
        let wanted = image::canonical(reference);
        let boots = |p: &&crate::config::Profile| matches!(&p.source, Source::Image(named) if image::canonical(named) == wanted);
        self.config().profiles.iter().filter(boots).map(|p| p.name.clone()).collect()
    }
}

/// Below this much free space on the state directory's disk, there is an alert.
const ROOM_LEFT: u64 = 32 << 20;

/// An alert if the disk is nearly full. Machines without a lease wait while nothing can be written.
fn full_disk(state_dir: &Path) -> Option<String> {
    let disk = nix::sys::statvfs::statvfs(state_dir).ok()?;
    let left = disk.blocks_available() * disk.fragment_size();
    (left < ROOM_LEFT).then(|| {
        format!(
            "{} has {} MiB left: no new machine gets an address, and no image is imported, while it is full",
            state_dir.display(),
            left >> 20
        )
    })
}

fn no_such_kernel(name: &str) -> Failure {
    let error = format!("there is no kernel {name}");
    Failure::new(Kind::NotFound, error, "`bridgehead kernel list` has them")
}

/// A step of an import, for people.
pub(super) fn shown(step: &image::Progress) -> Progress {
    let bytes = match step {
        image::Progress::Pulling { bytes, .. } | image::Progress::Exported { bytes } => Some(*bytes),
        image::Progress::Layer { .. } | image::Progress::Packing => None,
    };
    Progress { step: step.to_string(), bytes }
}

pub(super) fn add_failure(error: AddError) -> Failure {
    let (kind, hint) = add_failure_kind(&error);
    Failure::new(kind, error.to_string(), hint)
}

fn add_failure_kind(error: &AddError) -> (Kind, &'static str) {
    match error {
        AddError::NoEngine(_) => (Kind::Unavailable, "or name an OCI layout or tar archive"),
        AddError::Export(ExportError::Engine { .. }) => (Kind::Unavailable, "the engine's log says more"),
        AddError::Work(_) | AddError::Store(_) | AddError::Export(ExportError::Spool { .. }) => {
            (Kind::Internal, "check the state directory: `df -h`, `ls -l`")
        }
        AddError::Stage1(_) | AddError::Assets(_) => (Kind::Internal, "docs/configuration.md, [boot] assets"),
        AddError::Child(ChildError::Memory { .. } | ChildError::Cpu { .. } | ChildError::Size { .. }) => {
            (Kind::Invalid, "docs/images.md says what an import may use")
        }
        AddError::Child(_) => (Kind::Internal, "docs/images.md, \"The process that reads it\""),
        AddError::Export(_)
        | AddError::Refused(_)
        | AddError::Open { .. }
        | AddError::Archive(_)
        | AddError::Layer { .. }
        | AddError::LayerDigest { .. }
        | AddError::NoCommand
        | AddError::Kernel(_)
        | AddError::Initrd(_)
        | AddError::Squashfs(_) => (Kind::Invalid, "docs/images.md says what an image needs"),
    }
}

/// Flattens a document's numbers by their path, joined with dots.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, u64>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}.{field}"), value, into);
            }
        }
        value => drop(value.as_u64().map(|number| into.insert(name.to_owned(), number))),
    }
}

/// Every regular file below `directory`. Links are not followed, because they may lead anywhere.
fn list(directory: &Path, prefix: &str, into: &mut Vec<FileEntry>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let meta = entry.metadata()?;
        if meta.is_dir() {
            list(&entry.path(), &format!("{path}/"), into)?;
        } else if meta.is_file() {
            let modified = Timestamp::try_from(meta.modified()?).unwrap_or_default();
            into.push(FileEntry { path, bytes: meta.len(), modified });
        }
    }
    Ok(())
}

/// An alert if the range is nearly used up.
fn room(Room { size, free }: Room) -> Option<String> {
    // A single machine that is away is no reason for an alert.
    (size > 0 && free <= size / 20).then(|| {
        format!("{free} of the {size} addresses of [dhcp] range are free: widen it, or shorten lease-time")
    })
}
