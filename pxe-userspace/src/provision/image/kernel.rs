//! The kernel that a machine runs with an image: the image's own, or else the stock one.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::io::{self, Read as _};

use pxe_contract::modules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tree::{Content, InodeId, Kind, Tree};

/// What was chosen, and why. Stored in the image's record and shown to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KernelChoice {
    /// As `uname -r` prints it.
    pub version: String,
    pub source: KernelSource,
    /// Its path in the image, or below the assets directory.
    pub path: String,
    pub reason: String,
    /// Whether modules of this version were found next to it.
    pub modules: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KernelSource {
    Image,
    Assets,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "the image has no kernel (nothing like /boot/vmlinuz-VERSION), and there is no stock kernel in {assets}. \
         Install one in the image (Debian: `RUN apt-get install -y linux-image-amd64`), \
         or run `cargo xtask setup` for the stock kernel"
    )]
    None { assets: String },
    #[error(
        "{path} is not a Linux kernel for x86 PCs (no bzImage header). Remove it, or put a bzImage there"
    )]
    NotAKernel { path: String },
    #[error("reading {path}: {source}")]
    Read { path: String, source: io::Error },
}

/// A kernel and its modules' directory in the tree that it came from.
pub(super) struct Kernel {
    pub(super) choice: KernelChoice,
    pub(super) file: Content,
    /// Memory that it needs to unpack itself and start.
    pub(super) memory: u64,
    pub(super) modules: Option<InodeId>,
}

/// The kernel of an image's tree, in any place where distributions keep it. A kernel with modules is preferred to one
/// without, then the highest version. `None` if there is no kernel.
pub(super) fn of_image(tree: &Tree) -> Result<Option<Kernel>, KernelError> {
    let mut kernels = Vec::new();
    let mut seen = HashSet::new();
    let mut not_a_kernel = None;
    for path in places(tree) {
        let (Some(inode), Some(file)) = (tree.find(&path), tree.file(&path)) else { continue };
        if !seen.insert(inode) {
            continue;
        }
        match at(tree, &path, file.clone()) {
            Ok(kernel) => kernels.push(kernel),
            Err(error @ KernelError::NotAKernel { .. }) => {
                not_a_kernel.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let versions: HashSet<&String> = kernels.iter().map(|kernel| &kernel.choice.version).collect();
    let some_without = kernels.iter().any(|kernel| !kernel.choice.modules);
    let count = versions.len();
    kernels.sort_by(|a, b| {
        let rank = |kernel: &Kernel| (kernel.choice.modules, is_version(&kernel.choice.version));
        rank(a).cmp(&rank(b)).then_with(|| natural_order(&a.choice.version, &b.choice.version))
    });
    match (kernels.pop(), not_a_kernel) {
        (Some(mut kernel), _) => {
            kernel.choice.reason = if count == 1 {
                "the image's only kernel".to_owned()
            } else if kernel.choice.modules && some_without {
                format!("the highest version that has its modules, of {count} kernels in the image")
            } else {
                format!("the highest version of {count} kernels in the image")
            };
            Ok(Some(kernel))
        }
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Where distributions keep kernels; of equal kernels, the last place is named to people. Fedora, bootc and SUSE keep
/// them beside the modules, and everybody in /boot: Debian, Fedora and SUSE by version, Alpine and Arch by flavour
/// (`vmlinuz-lts`), Gentoo as `kernel-VERSION`, by hand `vmlinuz` or `bzImage`.
fn places(tree: &Tree) -> Vec<String> {
    let names = |directory: &str| -> Vec<String> {
        let names = tree.find(directory).and_then(|id| tree.names(id));
        names.into_iter().flatten().filter_map(|(name, _)| String::from_utf8(name.clone()).ok()).collect()
    };
    let mut places: Vec<String> = MODULES
        .iter()
        .flat_map(|modules| names(modules).into_iter().map(move |v| format!("{modules}/{v}/vmlinuz")))
        .collect();
    // Backups, as Debian and Fedora keep them, or files that belong to a kernel but are none.
    let aside = |name: &str| {
        name.contains("rescue") || [".old", ".bak", ".sig", ".hmac"].iter().any(|end| name.ends_with(end))
    };
    let is_a_kernels = |name: &str| match name.split_once('-') {
        None => matches!(name, "vmlinuz" | "bzImage"),
        Some((stem, _)) => matches!(stem, "vmlinuz" | "bzImage" | "kernel"),
    };
    let in_boot = names("boot").into_iter().filter(|name| !aside(name) && is_a_kernels(name));
    let (by_version, plain): (Vec<_>, Vec<_>) = in_boot.partition(|name| name.contains('-'));
    places.extend(plain.into_iter().chain(by_version).map(|name| format!("boot/{name}")));
    places
}

/// Module directories below the root.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// The kernel at `path`. Its version is that in its header, as `uname -r` prints it. If there are no modules of that
/// version, the version is taken from its path.
fn at(tree: &Tree, path: &str, file: Content) -> Result<Kernel, KernelError> {
    let header = Header::read(&file, path)?;
    let modules_of = |version: &str| {
        let mut found = MODULES.iter().filter_map(|modules| tree.find(&format!("{modules}/{version}")));
        found.find(|id| tree.names(*id).is_some())
    };
    // After the file's own name, or as the name of its directory.
    let (directory, name) = path.rsplit_once('/').unwrap_or_default();
    let behind = name.split_once('-').map(|(_, version)| version);
    let named = behind.or_else(|| directory.rsplit('/').next()).filter(|version| is_version(version));
    let (version, modules) = match (modules_of(&header.version), named) {
        (None, Some(named)) => (named.to_owned(), modules_of(named)),
        (modules, _) => (header.version, modules),
    };
    let choice = KernelChoice {
        version,
        source: KernelSource::Image,
        path: format!("/{path}"),
        reason: String::new(),
        modules: modules.is_some(),
    };
    Ok(Kernel { choice, file, memory: header.memory, modules })
}

/// Linux's versions begin with a digit.
fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// The stock kernel of the assets directory (`kernel/vmlinuz`, `kernel/version`,
/// `kernel/modules/lib/modules/VERSION`).
pub(super) fn of_assets(assets: &Tree) -> Result<Option<Kernel>, KernelError> {
    let path = "kernel/vmlinuz";
    let Some(file) = assets.file(path).cloned() else { return Ok(None) };
    let header = Header::read(&file, path)?;
    let version = match assets.file("kernel/version").map(Content::read).transpose() {
        Ok(text) => text.map_or(header.version, |t| String::from_utf8_lossy(&t).trim().to_owned()),
        Err(source) => return Err(KernelError::Read { path: "kernel/version".into(), source }),
    };
    let modules = assets
        .find(&format!("kernel/modules/lib/modules/{version}"))
        .filter(|id| assets.names(*id).is_some());
    let choice = KernelChoice {
        version,
        source: KernelSource::Assets,
        path: path.into(),
        reason: "the image has none in /boot, so the stock one".into(),
        modules: modules.is_some(),
    };
    Ok(Some(Kernel { choice, file, memory: header.memory, modules }))
}

/// The names below `directory`, restricted to modules that a network boot needs and their dependencies.
///
/// A distribution's whole module tree is hundreds of megabytes; the drivers of network cards and their dependencies are
/// a tenth of that.
pub(super) fn needed_modules(tree: &Tree, directory: InodeId) -> io::Result<Vec<String>> {
    let in_directory = |name: &str| match tree.names(directory)?.get(name.as_bytes()) {
        Some(found) => match &tree.inode(found.inode).kind {
            Kind::File(content) => Some(content.clone()),
            _ => None,
        },
        None => None,
    };
    // Without depmod's index no module can be loaded by name or device.
    let Some(index) = in_directory("modules.dep") else { return Ok(Vec::new()) };
    let index = String::from_utf8_lossy(&index.read()?).into_owned();
    let dependencies: std::collections::BTreeMap<&str, Vec<&str>> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module.trim(), needs.split_whitespace().collect()))
        .collect();
    let mut needed = std::collections::BTreeSet::new();
    for (module, needs) in &dependencies {
        if modules::is_needed(module) {
            // modules.dep also lists indirect dependencies (modules.dep(5)).
            needed.insert(*module);
            needed.extend(needs);
        }
    }
    let index_files = ["modules.dep", "modules.alias", "modules.softdep", "modules.builtin", "modules.order"];
    let index_files = index_files.iter().filter(|name| in_directory(name).is_some());
    Ok(needed.iter().chain(index_files).map(|path| path.to_string()).collect())
}

/// Fields of a bzImage's header (Linux, Documentation/arch/x86/boot.rst).
struct Header {
    version: String,
    memory: u64,
}

impl Header {
    fn read(file: &Content, path: &str) -> Result<Self, KernelError> {
        let mut start = Vec::new();
        let read = file.reader().take(0x10000).read_to_end(&mut start);
        read.map_err(|source| KernelError::Read { path: path.into(), source })?;
        Self::parse(&start).ok_or_else(|| KernelError::NotAKernel { path: path.into() })
    }

    fn parse(start: &[u8]) -> Option<Self> {
        if start.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        // `kernel_version`, minus 0x200, points to text that begins with the version.
        let pointer = usize::from(u16::from_le_bytes(start.get(0x20e..0x210)?.try_into().ok()?));
        let text = start.get(pointer + 0x200..)?;
        let end = text.iter().position(|b| *b == 0 || *b == b' ')?;
        // `init_size`: the memory it needs from its load address.
        let memory = u32::from_le_bytes(start.get(0x260..0x264)?.try_into().ok()?);
        Some(Self { version: String::from_utf8(text[..end].to_vec()).ok()?, memory: memory.into() })
    }
}

/// Compares numbers in the text as numbers: 6.1.0-9 comes before 6.1.0-10.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (digits_a, digits_b) = (digits(a), digits(b));
        let order = if !digits_a.is_empty() && !digits_b.is_empty() {
            let (x, y) = (without_zeros(digits_a), without_zeros(digits_b));
            (a, b) = (&a[digits_a.len()..], &b[digits_b.len()..]);
            x.len().cmp(&y.len()).then_with(|| x.cmp(y)).then(digits_a.len().cmp(&digits_b.len()))
        } else {
            match (a.split_first(), b.split_first()) {
                (Some((x, rest_a)), Some((y, rest_b))) => {
                    (a, b) = (rest_a, rest_b);
                    x.cmp(y)
                }
                (x, y) => return x.is_some().cmp(&y.is_some()),
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn digits(text: &[u8]) -> &[u8] {
    &text[..text.iter().take_while(|b| b.is_ascii_digit()).count()]
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().take_while(|b| **b == b'0').count()..]
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
