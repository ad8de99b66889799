//! Configuration: `file` is the TOML as written, `validate` and `entries` turn it into the [`Config`]
//! that the rest of the daemon sees, `survey` looks at the system, and `findings` has what is wrong.
//! Nothing outside this module handles unchecked values.

mod assignment;
mod carousel;
pub mod cmdline;
mod entries;
pub mod facts;
mod file;
mod findings;
pub mod kernel;
mod launched;
pub mod nodes;
pub mod power;
pub mod rules;
mod segment;
pub mod storage;
mod survey;
#[cfg(test)]
mod tests;
mod validate;
mod values;
mod workloads;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use findings::Findings;

pub use carousel::Carousel;
pub use findings::Problem;
pub use nodes::{Launched, Node, Nodes, Origin, PinnedImage, Place};
pub use power::{Power, PowerTable};
pub use storage::StoragePlan;
pub use validate::API_SOCKET;
pub use values::{duration, size, written_size};

/// The image of nodes with `run = "docker"`, which comes with the assets.
pub const DOCKER_NODE: &str = "bridgehead/docker-node:latest";

/// The image of machines that only tell their facts, which is nearly nothing: the daemon makes it.
pub const ENROL: &str = "bridgehead/enrol:latest";
/// The profile of unknown machines with `unknown = "enrol"`, where no profile has `run = "enrol"`.
pub const ENROL_PROFILE: &str = "enrol";

/// A bridge's port that forwards within so many seconds after its link came up is there for all firmware. iPXE sends its
/// last DISCOVER 15 s after its first, EDK2 after a minute.
pub const FORWARDS_IN_TIME: u32 = 8;

/// Reads and validates the file at `path`; the result is every problem found.
pub fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    parse(&read(path)?, path)
}

/// Validates a configuration's text. `path` names it in problems, and relative paths in it start
/// where it lies.
pub fn parse(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
    let mut findings = Findings::new(text, path);
    let config = findings.shape().and_then(|raw| validate::validate(&raw, &mut findings));
    findings.result(config)
}

/// [`load`], and what can be seen of the system without changing it: the ports are there, the
/// files root can be read. `bridgehead check`.
pub fn check(path: &Path) -> Result<Config, Vec<Problem>> {
    let text = read(path)?;
    let mut findings = Findings::new(&text, path);
    let Some(raw) = findings.shape() else { return findings.result(None) };
    let config = validate::validate(&raw, &mut findings);
    survey::survey(&raw, config.as_ref(), &mut findings);
    if let Some(config) = &config {
        cmdline::survey(&raw, config, &mut findings);
    }
    findings.result(config)
}

fn read(path: &Path) -> Result<String, Vec<Problem>> {
    std::fs::read(path)
        .map_err(|error| (error.to_string(), "name a readable file with --config".to_owned()))
        .and_then(|bytes| {
            String::from_utf8(bytes)
                .map_err(|error| (error.utf8_error().to_string(), "TOML is UTF-8 text".to_owned()))
        })
        .map_err(|(what, right)| vec![Problem { file: path.to_owned(), line: 1, column: 1, what, right }])
}

/// Where a Docker node's engine keeps images, containers and volumes.
pub const ENGINE_DATA: &str = "/var/lib/docker";
/// Where it answers the appliance, in TLS.
pub const ENGINE_PORT: u16 = 2376;

/// A configuration in which everything that can be checked without the system has been.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Database, images, runtime state. Created when missing.
    pub state_dir: PathBuf,
    pub network: Network,
    pub dhcp: Dhcp,
    /// The directory whose contents are served, if any.
    pub files_root: Option<PathBuf>,
    pub http: Http,
    pub api: Api,
    pub boot: Boot,
    pub docker: Docker,
    pub carousel: Carousel,
    /// The profile of machines that name none.
    pub default_profile: Option<String>,
    pub profiles: Vec<Profile>,
    pub storage: Vec<StoragePlan>,
    pub nodes: Nodes,
    /// What other machines become.
    pub rules: Vec<rules::Rule>,
    pub workloads: Vec<Workload>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub bridge: String,
    /// The appliance's own address (host bits kept) and prefix.
    pub address: Ipv4Net,
    pub ports: Vec<String>,
    pub fast_path: FastPath,
    /// What boots may take of each port, in bytes a second.
    pub ceiling: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastPath {
    #[default]
    Auto,
    Xdp,
    Tc,
    Off,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dhcp {
    pub mode: DhcpMode,
    /// First and last address of the dynamic pool, both included; absent when `mode` is not
    /// authoritative.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    pub lease_time: Duration,
    /// T1, when a client asks its server to renew, where it is not half of the lease time.
    pub renewal_time: Option<Duration>,
    /// T2, when it asks any server, where it is not 7/8 of the lease time.
    pub rebinding_time: Option<Duration>,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    /// Domains beside [`domain`](Dhcp::domain) that a name without dots may be in.
    pub search: Vec<String>,
    /// The longest packet that the machines' links shall carry, in bytes.
    pub mtu: Option<u16>,
    pub ntp: Vec<Ipv4Addr>,
    /// Further options by number, already encoded.
    pub options: BTreeMap<u8, Vec<u8>>,
    pub unknown: Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DhcpMode {
    #[default]
    Authoritative,
    Proxy,
    Off,
}

/// What a machine that no `[[node]]` declares is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unknown {
    /// An address and the default profile.
    #[default]
    Boot,
    /// An address and a boot that tells what the machine is made of.
    Enrol,
    /// An address, no boot file.
    AddressOnly,
    /// Nothing.
    Ignore,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where the bridge's own address answers nodes. Port 80 unless told.
    pub port: u16,
    /// And where by TLS. Port 7443 unless told.
    pub tls_port: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// The UNIX socket that the command line uses.
    pub socket: PathBuf,
    /// Where it is served by TCP as well, to who has a token.
    pub listen: Option<SocketAddr>,
    /// What `Host` may say there, beside addresses and `localhost`. In lower case.
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    /// What a client that already is iPXE (a NIC's ROM, QEMU's) is given.
    pub ipxe: IpxeLoader,
    /// Where set-up put GRUB's netboot images, the stock kernel, BusyBox and pxe-init.
    pub assets: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpxeLoader {
    /// GRUB, as every other BIOS client.
    #[default]
    Grub,
    /// A script over HTTP: no GRUB in between.
    Script,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Docker {
    /// The engine's socket; Docker's own default (`DOCKER_HOST`, then /var/run/docker.sock) when absent.
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub name: String,
    pub source: Source,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// What a node does when its workload's first process ends.
    pub on_exit: OnExit,
    /// How often in a row `on-exit = "restart"` starts the workload again; none means for ever.
    pub restarts: Option<u32>,
    /// How a machine whose boot failed can be reached.
    pub rescue: Rescue,
    /// Whether what the workload says is kept here, too.
    pub logs: bool,
    /// Whether an image comes as an initrd or is fetched by pxe-init.
    pub stages: Stages,
    /// The storage plan of its machines.
    pub storage: Option<String>,
    pub run: Run,
    /// The kernel to boot the image with, by its name in the store.
    pub kernel: Option<String>,
    /// Modules that stage 1 loads beside those that the machine's devices ask for.
    pub modules: Vec<String>,
}

/// What runs on a profile's machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// What the image names.
    #[default]
    Image,
    /// A Docker engine, and in it the workloads that are assigned to the machine.
    Docker,
    /// Nothing: the machine tells its facts, and waits for what it becomes, or powers off.
    Enrol,
}

/// What a profile boots.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A Docker image by reference, as `docker image ls` names it.
    Image(String),
    /// A kernel and initrds by hand: paths below the files root.
    Kernel { kernel: String, initrd: Vec<String> },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stages {
    /// By the image's size and the machine's memory.
    #[default]
    Auto,
    One,
    Two,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    #[default]
    PowerOff,
    Reboot,
    /// Start the workload again, after a pause that grows.
    Restart,
    /// Keep the node up, without the workload, for someone to look at.
    Stay,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rescue {
    /// A shell on its console, and one by SSH.
    Ssh,
    #[default]
    Console,
    /// Not at all: it boots again.
    Off,
}

/// A container on the appliance itself, or on nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub name: String,
    pub image: String,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// `HOST:CONTAINER[/udp]` on the appliance's address.
    pub ports: Vec<PublishedPort>,
    /// An address of its own on the bridge.
    pub address: Option<Ipv4Addr>,
    pub restart: Restart,
    /// Named volumes of the engine that it runs in.
    pub volumes: Vec<Volume>,
    /// The nodes that it runs on; none means the appliance.
    pub on: Option<On>,
}

/// A directory that outlives the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// Where it is in the container.
    pub path: String,
}

/// Which nodes a workload runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct On {
    pub group: Group,
    /// On so many of the group; none means on each.
    pub count: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    Node(String),
    Label(String),
    Profile(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl Dhcp {
    /// The domains that a name without dots may be in, the machines' own first.
    pub fn search_list(&self) -> impl Iterator<Item = &String> {
        self.domain.iter().chain(&self.search)
    }

    /// T1 and T2 (RFC 2131 section 4.4.5).
    pub fn renewals(&self) -> [Duration; 2] {
        let defaults = [self.lease_time / 2, self.lease_time / 8 * 7];
        [self.renewal_time.unwrap_or(defaults[0]), self.rebinding_time.unwrap_or(defaults[1])]
    }
}

impl Config {
    /// The node declared for `mac`.
    pub fn node(&self, mac: Mac) -> Option<&Node> {
        self.nodes.by_mac(mac).map(|node| &**node)
    }

    /// The profile named `name`.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.name == name)
    }

    /// The storage plan of a profile's machines.
    pub fn storage_of(&self, profile: &Profile) -> Option<&StoragePlan> {
        self.storage.iter().find(|plan| Some(&plan.name) == profile.storage.as_ref())
    }

    /// How a machine can be reached after a boot of this profile failed.
    pub fn rescue_of(&self, mac: Mac, profile: &Profile) -> Rescue {
        self.node(mac).and_then(|node| node.rescue).unwrap_or(profile.rescue)
    }

    /// The declared nodes that run a Docker engine.
    pub fn docker_nodes(&self) -> impl Iterator<Item = &Node> {
        let runs_docker = |node: &&Node| self.profile_for(Some(node)).is_some_and(|p| p.run == Run::Docker);
        self.nodes.iter().map(|node| &**node).filter(runs_docker)
    }

    /// Whether what a node's engine holds is still there after a reboot: a volume of its storage plan is
    /// mounted where the engine keeps everything.
    pub fn keeps_volumes(&self, node: &Node) -> bool {
        let plan = self.profile_of(node.mac).and_then(|profile| self.storage_of(profile));
        plan.is_some_and(|plan| plan.volumes.iter().any(|volume| volume.mount == ENGINE_DATA))
    }

    /// The profile that a machine boots: a launch's, its own, else the default one. For unknown machines the default
    /// one, the one that enrols, or none, as `dhcp.unknown` says.
    pub fn profile_of(&self, mac: Mac) -> Option<&Profile> {
        self.profile_for(self.node(mac))
    }

    /// The image that a machine boots with its profile: a launch's, else the profile's; none for a kernel by hand.
    pub fn image_of<'a>(&'a self, mac: Mac, profile: &'a Profile) -> Option<&'a str> {
        let Source::Image(reference) = &profile.source else { return None };
        let pinned = self.node(mac).and_then(|node| node.launched.as_ref()?.image.as_ref());
        Some(pinned.map_or(reference, |image| &image.name))
    }

    /// Whether the machine has become something: it boots more than its facts.
    pub fn is_something(&self, mac: Mac) -> bool {
        self.profile_of(mac).is_some_and(|profile| profile.run != Run::Enrol)
    }

    /// The same of a machine that was looked up.
    pub fn profile_for(&self, node: Option<&Node>) -> Option<&Profile> {
        if node.is_none() {
            match self.dhcp.unknown {
                Unknown::Boot => {}
                Unknown::Enrol => return self.profiles.iter().find(|profile| profile.run == Run::Enrol),
                Unknown::AddressOnly | Unknown::Ignore => return None,
            }
        }
        let name = node.and_then(Node::profile_in_effect).or(self.default_profile.as_ref())?;
        self.profile(name)
    }
}
