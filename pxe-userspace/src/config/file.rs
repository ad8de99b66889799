//! The configuration file as written: TOML with spans, before validation.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::Deserialize;
use toml::Spanned;

use super::carousel::CarouselTable;
use super::power::PowerTable;
use super::storage::StorageTable;
use super::{DhcpMode, FastPath, IpxeLoader, OnExit, Rescue, Restart, Run, Stages, Unknown};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) state_dir: Option<Spanned<PathBuf>>,
    pub(super) network: NetworkTable,
    #[serde(default)]
    pub(super) dhcp: Option<Spanned<DhcpTable>>,
    pub(super) files: Option<FilesTable>,
    pub(super) http: Option<HttpTable>,
    pub(super) api: Option<ApiTable>,
    #[serde(default)]
    pub(super) boot: BootTable,
    #[serde(default)]
    pub(super) docker: DockerTable,
    #[serde(default)]
    pub(super) carousel: CarouselTable,
    pub(super) default: Option<DefaultTable>,
    #[serde(default, rename = "profile")]
    pub(super) profiles: Vec<Spanned<ProfileTable>>,
    #[serde(default)]
    pub(super) storage: Vec<StorageTable>,
    #[serde(default, rename = "node")]
    pub(super) nodes: Vec<NodeTable>,
    #[serde(default, rename = "rule")]
    pub(super) rules: Vec<Spanned<RuleTable>>,
    #[serde(default, rename = "workload")]
    pub(super) workloads: Vec<WorkloadTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct NetworkTable {
    pub(super) bridge: Spanned<String>,
    pub(super) address: Spanned<Ipv4Net>,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) fast_path: FastPath,
    pub(super) ceiling: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DhcpTable {
    #[serde(default)]
    pub(super) mode: DhcpMode,
    pub(super) range: Option<Spanned<[Ipv4Addr; 2]>>,
    pub(super) lease_time: Option<Spanned<String>>,
    pub(super) renewal_time: Option<Spanned<String>>,
    pub(super) rebinding_time: Option<Spanned<String>>,
    pub(super) router: Option<Spanned<Ipv4Addr>>,
    #[serde(default)]
    pub(super) dns: OneOrMany<Ipv4Addr>,
    pub(super) domain: Option<Spanned<String>>,
    pub(super) search: Option<Spanned<OneOrMany<String>>>,
    pub(super) mtu: Option<Spanned<u16>>,
    #[serde(default)]
    pub(super) ntp: OneOrMany<Ipv4Addr>,
    #[serde(default)]
    pub(super) options: BTreeMap<Spanned<String>, Spanned<OptionValue>>,
    #[serde(default)]
    pub(super) unknown: Unknown,
}

/// `"a"` or `["a", "b"]`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "one value or an array of them")]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T: Clone> OneOrMany<T> {
    pub(super) fn to_vec(&self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value.clone()],
            Self::Many(values) => values.clone(),
        }
    }
}

/// A DHCP option's value.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text, an address, addresses, bytes, or \"hex:…\"")]
pub(super) enum OptionValue {
    Text(String),
    Addresses(Vec<Ipv4Addr>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FilesTable {
    pub(super) root: Spanned<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HttpTable {
    pub(super) port: Option<Spanned<u16>>,
    pub(super) tls_port: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ApiTable {
    pub(super) socket: Option<Spanned<PathBuf>>,
    pub(super) listen: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    pub(super) names: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BootTable {
    #[serde(default)]
    pub(super) ipxe: IpxeLoader,
    pub(super) assets: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DockerTable {
    pub(super) socket: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DefaultTable {
    pub(super) profile: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProfileTable {
    pub(super) name: Spanned<String>,
    pub(super) image: Option<Spanned<String>>,
    pub(super) kernel: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) initrd: Option<Spanned<OneOrMany<String>>>,
    pub(super) cmdline: Option<Spanned<String>>,
    pub(super) on_exit: Option<Spanned<OnExit>>,
    pub(super) restarts: Option<Spanned<u32>>,
    pub(super) rescue: Option<Spanned<Rescue>>,
    pub(super) logs: Option<Spanned<bool>>,
    pub(super) stages: Option<Spanned<Stages>>,
    pub(super) storage: Option<Spanned<String>>,
    pub(super) run: Option<Spanned<Run>>,
    #[serde(default)]
    pub(super) modules: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct NodeTable {
    pub(super) name: Spanned<String>,
    pub(super) mac: Spanned<String>,
    pub(super) address: Option<Spanned<Ipv4Addr>>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) rescue: Option<Rescue>,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) power: Option<Spanned<PowerTable>>,
    #[serde(default)]
    pub(super) labels: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) keys: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RuleTable {
    #[serde(rename = "match")]
    pub(super) matches: Spanned<MatchTable>,
    pub(super) name: Spanned<String>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) power: Option<Spanned<PowerTable>>,
    #[serde(default)]
    pub(super) labels: Vec<Spanned<String>>,
}

/// What a machine must match. Each key has one value or several, of which one must fit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MatchTable {
    pub(super) mac: Option<Spanned<OneOrMany<String>>>,
    pub(super) relay: Option<Spanned<OneOrMany<String>>>,
    pub(super) port: Option<Spanned<OneOrMany<String>>>,
    pub(super) uuid: Option<Spanned<OneOrMany<String>>>,
    pub(super) vendor: Option<Spanned<OneOrMany<String>>>,
    pub(super) product: Option<Spanned<OneOrMany<String>>>,
    pub(super) serial: Option<Spanned<OneOrMany<String>>>,
    pub(super) cpu: Option<Spanned<OneOrMany<String>>>,
    pub(super) memory: Option<Spanned<OneOrMany<String>>>,
    pub(super) cores: Option<Spanned<OneOrMany<String>>>,
    pub(super) disks: Option<Spanned<OneOrMany<String>>>,
    pub(super) switch: Option<Spanned<OneOrMany<String>>>,
    pub(super) switch_port: Option<Spanned<OneOrMany<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct WorkloadTable {
    pub(super) name: Spanned<String>,
    pub(super) image: Spanned<String>,
    #[serde(default)]
    pub(super) command: Vec<String>,
    #[serde(default)]
    pub(super) environment: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<String>>,
    pub(super) address: Option<Spanned<Ipv4Addr>>,
    #[serde(default)]
    pub(super) restart: Restart,
    #[serde(default)]
    pub(super) volumes: Vec<Spanned<String>>,
    pub(super) on: Option<Spanned<OnTable>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct OnTable {
    pub(super) node: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) count: Option<Spanned<u32>>,
}
