//! The configuration file as written: TOML with spans, nothing judged yet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;
use toml::Spanned;

use super::{Config, DhcpMode, FastPath, IpxeLoader, OnExit, Restart, Unknown, survey, validate};

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub what: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, what, right } = self;
        write!(f, "{}:{line}:{column}: {what}; {right}", file.display())
    }
}

impl std::error::Error for Problem {}

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
    survey::survey(&raw, &mut findings);
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

/// Where problems are collected while a text is judged.
pub(super) struct Findings<'a> {
    text: &'a str,
    file: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Findings<'a> {
    fn new(text: &'a str, file: &'a Path) -> Self {
        Self { text, file, problems: Vec::new() }
    }

    pub(super) fn add(&mut self, at: Range<usize>, what: impl Into<String>, right: impl Into<String>) {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            column,
            what: what.into(),
            right: right.into(),
        });
    }

    /// The directory that relative paths start from.
    pub(super) fn directory(&self) -> &'a Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// The text's keys and types. Their first fault ends the reading: what follows would be guesses.
    fn shape(&mut self) -> Option<File> {
        match toml::from_str(self.text) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                let (what, right) = explain(error.message());
                self.add(at, what, right);
                None
            }
        }
    }

    fn result(mut self, config: Option<Config>) -> Result<Config, Vec<Problem>> {
        match config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => {
                self.problems.sort_by_key(|p| (p.line, p.column));
                Err(self.problems)
            }
        }
    }
}

/// serde's words for an unknown key or value (``unknown field `a`, expected one of `b`, `c` ``)
/// with the nearest that would be right; other messages as they are.
fn explain(message: &str) -> (String, String) {
    let message = message.trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    match quoted.split_first() {
        Some((wrong, expected)) if unknown && !expected.is_empty() => {
            let kind = if message.starts_with("unknown field") { "key" } else { "value" };
            let nearest = expected
                .iter()
                .map(|e| (strsim::damerau_levenshtein(wrong, e), *e))
                .filter(|(edits, e)| *edits <= 1.max(e.len() / 3))
                .min();
            let right = match nearest {
                Some((_, nearest)) => format!("did you mean `{nearest}`?"),
                None => format!("here go {}", expected.join(", ")),
            };
            (format!("unknown {kind} `{wrong}`"), right)
        }
        Some((missing, _)) if message.starts_with("missing field") => {
            (format!("`{missing}` is missing"), "add it here".to_owned())
        }
        _ => match message.split_once(", expected ") {
            Some((what, expected)) => (what.to_owned(), format!("here goes {expected}")),
            None => (
                message.replace('\n', ", "),
                "docs/configuration.md has every key with an example".to_owned(),
            ),
        },
    }
}

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
    pub(super) default: Option<DefaultTable>,
    #[serde(default, rename = "profile")]
    pub(super) profiles: Vec<Spanned<ProfileTable>>,
    #[serde(default, rename = "node")]
    pub(super) nodes: Vec<NodeTable>,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DhcpTable {
    #[serde(default)]
    pub(super) mode: DhcpMode,
    pub(super) range: Option<Spanned<[Ipv4Addr; 2]>>,
    pub(super) lease_time: Option<Spanned<String>>,
    pub(super) router: Option<Spanned<Ipv4Addr>>,
    #[serde(default)]
    pub(super) dns: OneOrMany<Ipv4Addr>,
    pub(super) domain: Option<Spanned<String>>,
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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ApiTable {
    pub(super) listen: Option<Spanned<SocketAddr>>,
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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct NodeTable {
    pub(super) name: Spanned<String>,
    pub(super) mac: Spanned<String>,
    pub(super) address: Option<Spanned<Ipv4Addr>>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) memory: Option<Spanned<String>>,
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
}
