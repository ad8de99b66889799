//! Which kernel, initrds and command line a machine gets, or why none.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;
use pxe_common::Mac;
use pxe_contract::paths::ImagePart;
use pxe_contract::settings::{self, BootSettings, Identity, OnExit, OnFailure, Stage2};
use serde::{Deserialize, Serialize};

use super::Generated;
pub use crate::config::cmdline::CmdlineError;
use crate::config::cmdline::{MAX, with_consoles, words};
use crate::config::{self, Config, Profile, Rescue, Run, Stages};
use crate::machines::Machine;
use crate::provision::image::{ImageRecord, KernelRecord, ModuleError, Stored};

/// What the plan needs to know of the appliance.
#[derive(Clone, Debug)]
pub struct Appliance {
    pub address: Ipv4Net,
    pub http_port: u16,
    pub tls_port: u16,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// The machines' own domain, and the other search domains.
    pub search: Vec<String>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u16>,
    pub lease_time: Duration,
}

impl From<&Config> for Appliance {
    fn from(config: &Config) -> Self {
        Self {
            address: config.network.address,
            http_port: config.http.port,
            tls_port: config.http.tls_port,
            router: config.dhcp.router,
            dns: config.dhcp.dns.clone(),
            search: config.dhcp.search_list().cloned().collect(),
            ntp: config.dhcp.ntp.clone(),
            mtu: config.dhcp.mtu,
            lease_time: config.dhcp.lease_time,
        }
    }
}

impl Appliance {
    /// Its HTTP URL, without a slash at the end.
    pub fn url(&self) -> String {
        settings::url(self.http())
    }

    /// Its address, with the port unless it is 80.
    pub fn authority(&self) -> String {
        settings::authority(self.http())
    }

    fn http(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address.addr(), self.http_port)
    }
}

/// What the plan needs to know of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFacts {
    /// Of the contents: `sha256:` and hexadecimal digits.
    pub digest: String,
    pub kernel: Part,
    pub stage1: Part,
    pub rootfs: Part,
    /// The root file system for a boot in two stages.
    pub stage2: Option<Part>,
}

impl From<&ImageRecord> for ImageFacts {
    fn from(record: &ImageRecord) -> Self {
        let part =
            |stored: &Stored, unpacked| Part { sha256: stored.sha256.clone(), len: stored.size, unpacked };
        Self {
            digest: record.digest.clone(),
            kernel: part(&record.kernel_blob, record.unpacked.kernel),
            stage1: part(&record.stage1_blob, record.unpacked.stage1),
            rootfs: part(&record.rootfs_blob, record.unpacked.rootfs),
            // It is mounted without unpacking.
            stage2: record.stage2_blob.as_ref().map(|stored| part(stored, 0)),
        }
    }
}

/// A kernel with its stage 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KernelFacts {
    /// Shown to people.
    pub name: String,
    pub kernel: Part,
    pub stage1: Part,
    /// Whether it can mount an image's SquashFS.
    pub two_stages: bool,
}

impl KernelFacts {
    /// Identifies the kernel by its contents.
    pub fn id(&self) -> String {
        format!("{} {}", self.kernel.sha256, self.stage1.sha256)
    }
}

impl From<&ImageRecord> for KernelFacts {
    fn from(record: &ImageRecord) -> Self {
        let ImageFacts { kernel, stage1, stage2, .. } = record.into();
        Self { name: record.kernel.version.clone(), kernel, stage1, two_stages: stage2.is_some() }
    }
}

impl From<&KernelRecord> for KernelFacts {
    fn from(record: &KernelRecord) -> Self {
        let part =
            |stored: &Stored, unpacked| Part { sha256: stored.sha256.clone(), len: stored.size, unpacked };
        Self {
            name: record.name.clone(),
            kernel: part(&record.kernel_blob, record.memory),
            stage1: part(&record.stage1_blob, record.stage1_unpacked),
            two_stages: record.two_stages,
        }
    }
}

impl ImageFacts {
    /// The image with another kernel.
    pub fn with(self, kernel: KernelFacts) -> Self {
        let KernelFacts { kernel, stage1, two_stages, .. } = kernel;
        Self { kernel, stage1, stage2: self.stage2.filter(|_| two_stages), ..self }
    }
}

/// A file as it is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Part {
    /// Hexadecimal.
    pub sha256: String,
    pub len: u64,
    /// Bytes of memory that it takes when unpacked.
    pub unpacked: u64,
}

/// What the loader is to do. Paths have no leading slash.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kernel: String,
    pub initrds: Vec<String>,
    /// The kernel's command line, a parameter an entry.
    pub cmdline: Vec<String>,
    /// Settings for pxe-init that are not in `cmdline`, but in the machine's own initrd. A node without that initrd
    /// still knows from `cmdline` whom to report to.
    pub settings: Vec<String>,
    /// `None` for files by hand.
    pub choice: Option<Choice>,
    /// Bytes of memory that the boot takes; `None` for files by hand.
    pub needed: Option<u64>,
}

/// In how many stages an image boots, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub two: bool,
    pub why: String,
}

impl Choice {
    fn one(why: impl Into<String>) -> Self {
        Self { two: false, why: why.into() }
    }

    fn two(why: impl Into<String>) -> Self {
        Self { two: true, why: why.into() }
    }

    /// 1 or 2.
    pub fn stages(&self) -> u8 {
        1 + u8::from(self.two)
    }
}

/// Why a machine is not booted, in words for its console and the timeline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("no profile: give the machine one with [[node]] profile, or set [default] profile")]
    NoProfile,
    #[error("image {0} is not here yet: it is being brought in; `bridgehead images` shows how far")]
    Preparing(String),
    #[error("image {reference} could not be brought in: {cause}")]
    NoImage { reference: String, cause: String },
    #[error(
        "image {reference} needs {} MiB of memory in {} and this machine has {} MiB: use a smaller image, \
         or correct [[node]] memory",
        mib(*.needed), if *.two { "two stages" } else { "one stage" }, mib(*.memory)
    )]
    Memory { reference: String, two: bool, needed: u64, memory: u64 },
    #[error(
        "image {0} can't boot in two stages: its kernel brings no modules for that (loop, squashfs, overlay), or it \
         was added before there were two; add it again, or set stages = \"one\" in the profile"
    )]
    NoStage2(String),
    #[error(
        "the profile has a storage plan, and its tools are not here ({path}: {cause}): `cargo xtask setup` makes them"
    )]
    NoStorageTools { path: String, cause: String },
    #[error(
        "profile {profile} names the kernel {kernel}, and there is none of that name: `bridgehead kernel list`"
    )]
    NoKernel { profile: String, kernel: String },
    #[error("profile {profile}: {source}")]
    Modules { profile: String, source: ModuleError },
    #[error("profile {profile}: {source}")]
    Cmdline { profile: String, source: CmdlineError },
}

/// Memory in bytes that the firmware's leftovers and pxe-init need in addition to the archives. Measured under QEMU:
/// GRUB and a Debian kernel with a 1 MiB initrd boot with 112 MiB on BIOS and with 320 MiB on UEFI.
const HEADROOM_BIOS: u64 = 96 << 20;
const HEADROOM_UEFI: u64 = 304 << 20;
/// Bytes that Debian's 6.1 reserves while it unpacks ("reserved" in its log, less the initrds).
const KERNEL_RESERVED: u64 = 62 << 20;

/// Images of this many packed bytes or more boot in two stages. GRUB loads a smaller one before Linux could even
/// request it.
const LARGE: u64 = 32 << 20;

/// Plans the boot of `machine` with a profile that names a Docker image.
pub fn image(
    machine: &Machine,
    memory: Option<u64>,
    profile: &Profile,
    reference: &str,
    facts: &ImageFacts,
    rescue: Rescue,
    appliance: &Appliance,
) -> Result<Plan, Refusal> {
    let refused = |source| Refusal::Cmdline { profile: profile.name.clone(), source };
    let own = words(&profile.cmdline).map_err(refused)?;
    let choice = choose(profile.stages, memory, reference, facts, machine.is_uefi())?;
    let path = |name, part: &Part| Generated::Image { digest: part.sha256.clone(), part: name }.to_string();
    let mut cmdline = identity(machine, appliance).words();
    let mut initrds = vec![path(ImagePart::Stage1, &facts.stage1)];
    let stage2 = facts.stage2.as_ref().filter(|_| choice.two);
    if stage2.is_none() {
        initrds.push(path(ImagePart::Rootfs, &facts.rootfs));
    }
    // After stage 1: the kernel unpacks initrds in order, and a later file replaces an earlier one of the same name.
    initrds.push(Generated::Node(machine.mac).to_string());
    cmdline.extend(with_consoles(own));
    let kernel = path(ImagePart::Kernel, &facts.kernel);
    check_length(&kernel, initrds.len(), &cmdline).map_err(refused)?;
    let stage2 = stage2.map(|part| Stage2 { sha256: part.sha256.clone(), size: part.len });
    let settings = BootSettings {
        digest: Some(facts.digest.clone()),
        on_exit: on_exit(profile.on_exit),
        engine: profile.run == Run::Docker,
        enrol: profile.run == Run::Enrol,
        restarts: profile.restarts,
        on_failure: on_failure(rescue),
        logs: profile.logs,
        modules: profile.modules.clone(),
        stage2,
        ..of_machine(machine, appliance)
    }
    .words();
    let needed = Some(memory_needed(facts, choice.two, machine.is_uefi()));
    Ok(Plan { kernel, initrds, cmdline, settings, choice: Some(choice), needed })
}

/// How an image boots on a machine of unknown memory.
pub fn by_size(facts: &ImageFacts) -> Choice {
    match &facts.stage2 {
        None => Choice::one("its kernel brings no modules to mount a second one with"),
        Some(_) if facts.rootfs.len >= LARGE => {
            Choice::two(format!("it has {} MiB, packed", mib(facts.rootfs.len)))
        }
        Some(_) => Choice::one(format!("it has {} MiB only, packed", mib(facts.rootfs.len))),
    }
}

/// How many stages the image boots in on a machine with this memory. Refused if the image does not fit.
fn choose(
    stages: Stages,
    memory: Option<u64>,
    reference: &str,
    facts: &ImageFacts,
    uefi: bool,
) -> Result<Choice, Refusal> {
    let fits = |two| {
        let needed = memory_needed(facts, two, uefi);
        match memory.filter(|memory| *memory < needed) {
            Some(memory) => Err(Refusal::Memory { reference: reference.to_owned(), two, needed, memory }),
            None => Ok(()),
        }
    };
    let choice = match stages {
        Stages::One => Choice::one("the profile says so"),
        Stages::Two if facts.stage2.is_none() => return Err(Refusal::NoStage2(reference.to_owned())),
        Stages::Two => Choice::two("the profile says so"),
        Stages::Auto => match (fits(false), by_size(facts)) {
            (Err(_), _) if facts.stage2.is_some() => {
                Choice::two("the machine's memory would not hold it unpacked")
            }
            (_, choice) => choice,
        },
    };
    fits(choice.two).map(|()| choice)
}

/// Plans the boot of a profile that names its files by hand.
///
/// Nothing of ours is added to the command line: the system that boots does not know it.
pub fn by_hand(profile: &Profile, kernel: &str, initrds: &[String]) -> Result<Plan, Refusal> {
    let refused = |source| Refusal::Cmdline { profile: profile.name.clone(), source };
    let path = |path: &str| path.trim_start_matches('/').to_owned();
    let cmdline = words(&profile.cmdline).map_err(refused)?;
    let kernel = path(kernel);
    check_length(&kernel, initrds.len(), &cmdline).map_err(refused)?;
    let initrds = initrds.iter().map(|i| path(i)).collect();
    Ok(Plan { kernel, initrds, cmdline, settings: Vec::new(), choice: None, needed: None })
}

/// Bytes of memory below which the node does not come up.
fn memory_needed(facts: &ImageFacts, two: bool, uefi: bool) -> u64 {
    if two { memory_for_two(facts, uefi) } else { memory_for_one(facts, uefi) }
}

/// The archives lie in memory, packed, until they are unpacked. Unpacked they fill the kernel's rootfs, a tmpfs that
/// takes at most half of the memory that the archives and the kernel leave. Beyond that the kernel logs a write error
/// and boots on with truncated files. Measured: 142 MiB unpacked from 126 need 474 by this rule; they boot with 512
/// and are truncated with 448.
fn memory_for_one(facts: &ImageFacts, uefi: bool) -> u64 {
    let packed = facts.stage1.len + facts.rootfs.len;
    let unpacked = facts.stage1.unpacked + facts.rootfs.unpacked;
    let running = facts.kernel.unpacked + packed + unpacked + headroom(uefi);
    let unpacking = KERNEL_RESERVED + packed + 2 * unpacked;
    running.max(unpacking)
}

/// The same in two stages: the image stays packed and is mounted. Measured on BIOS: of 192 MiB, 91 are left to
/// pxe-init, which needs 32 beside the image. That would be 133 MiB plus the image; this rule adds some 60 more.
fn memory_for_two(facts: &ImageFacts, uefi: bool) -> u64 {
    let stage2 = facts.stage2.as_ref().map_or(0, |part| part.len);
    let Part { len: packed, unpacked, .. } = facts.stage1;
    let running = facts.kernel.unpacked + packed + unpacked + stage2 + headroom(uefi);
    let unpacking = KERNEL_RESERVED + packed + 2 * unpacked;
    running.max(unpacking)
}

fn headroom(uefi: bool) -> u64 {
    if uefi { HEADROOM_UEFI } else { HEADROOM_BIOS }
}

/// Who the node is, and which appliance it reports to.
fn identity(machine: &Machine, appliance: &Appliance) -> Identity<Mac> {
    let address = machine.address.map(|address| (address, appliance.address.prefix_len()));
    Identity { appliance: appliance.http(), mac: machine.mac, address }
}

/// Settings that every machine gets, whatever it boots.
fn of_machine(machine: &Machine, appliance: &Appliance) -> BootSettings {
    BootSettings {
        router: appliance.router,
        dns: appliance.dns.clone(),
        search: appliance.search.clone(),
        ntp: appliance.ntp.clone(),
        mtu: appliance.mtu,
        lease: appliance.lease_time,
        hold: machine.stops_in_stage1(),
        name: machine.name.clone(),
        ..BootSettings::default()
    }
}

fn on_exit(on_exit: config::OnExit) -> OnExit {
    match on_exit {
        config::OnExit::PowerOff => OnExit::PowerOff,
        config::OnExit::Reboot => OnExit::Reboot,
        config::OnExit::Restart => OnExit::Restart,
        config::OnExit::Stay => OnExit::Stay,
    }
}

fn on_failure(rescue: Rescue) -> OnFailure {
    match rescue {
        Rescue::Ssh => OnFailure::Ssh,
        Rescue::Console => OnFailure::Console,
        Rescue::Off => OnFailure::Off,
    }
}

fn check_length(kernel: &str, initrds: usize, words: &[String]) -> Result<(), CmdlineError> {
    let len = config::cmdline::length(kernel, initrds, words.iter().map(String::as_str));
    if len > MAX { Err(CmdlineError::TooLong(len)) } else { Ok(()) }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
