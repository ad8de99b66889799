//! Kernel modules: which ones the devices ask for, and loading them with what they need. The
//! tables are depmod's (modules.dep(5), modprobe.d(5) for soft dependencies).

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::say;
use crate::storage;

/// MODULE_INIT_COMPRESSED_FILE (linux/module.h): the kernel unpacks a .ko.xz or .ko.zst itself.
const COMPRESSED_FILE: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// The modules below one root, as depmod indexed them.
pub(crate) struct Modules {
    dir: PathBuf,
    /// Patterns over device names, in depmod's order, and the modules that want them.
    aliases: Vec<(String, String)>,
    files: HashMap<String, Dependencies>,
    /// Modules to load first, if they exist.
    soft: HashMap<String, Vec<String>>,
    /// Results for devices that were looked up already, because there are thousands of patterns.
    known: HashMap<String, Vec<String>>,
    /// Modules that were loaded or refused, and are not tried again.
    tried: HashSet<String>,
}

/// Which devices drivers are loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// Disks take time to be found, and most boots have no use for them.
    AllButDisks,
    All,
}

/// Where the drivers of disks are.
const DISKS: [&str; 4] =
    ["kernel/drivers/ata", "kernel/drivers/block", "kernel/drivers/nvme", "kernel/drivers/scsi"];

struct Dependencies {
    file: PathBuf,
    needs: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("no module provides {0}")]
    Unknown(String),
    #[error("module {name} ({file}): {source}")]
    Refused { name: String, file: PathBuf, source: io::Error },
}

impl Modules {
    /// The modules for the running kernel below `root`.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        Self::read(&root.join("lib/modules").join(release.trim()))
    }

    fn read(dir: &Path) -> io::Result<Self> {
        let optional = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
        Ok(Self {
            dir: dir.to_owned(),
            files: dependencies(&fs::read_to_string(dir.join("modules.dep"))?),
            aliases: aliases(&optional("modules.alias")),
            soft: soft_dependencies(&optional("modules.softdep")),
            known: HashMap::new(),
            tried: HashSet::new(),
        })
    }

    /// Loads the modules for the devices below `/sys/bus`. A driver that brings up a bus makes more
    /// devices appear: call it again when the kernel announces some.
    pub(crate) fn load_for_devices(&mut self, devices: Devices) {
        for device in device_names(Path::new("/sys/bus")) {
            if !self.known.contains_key(&device) {
                self.known.insert(device.clone(), self.wanted_by(&device));
            }
            for module in self.known[&device].clone() {
                if devices == Devices::AllButDisks && self.is_for_disks(&module) {
                    continue;
                }
                if let Err(error) = self.load(&module) {
                    say!("{error}");
                }
            }
        }
    }

    /// Loads a module by its name or an alias (`net-pf-17`, a device's name).
    pub(crate) fn load_by_alias(&mut self, name: &str) -> Result<(), LoadError> {
        let names = if self.files.contains_key(&canonical(name)) {
            vec![canonical(name)]
        } else {
            self.wanted_by(name)
        };
        if names.is_empty() {
            return Err(LoadError::Unknown(name.to_owned()));
        }
        names.iter().try_for_each(|n| self.load(n))
    }

    /// Loads the drivers of disks, and of what appears behind their controllers. The kernel has found
    /// the disks when a driver is loaded: finit_module(2) waits for what it probes.
    pub(crate) fn load_for_disks(&mut self) {
        loop {
            let before = self.tried.len();
            self.load_for_devices(Devices::All);
            if self.tried.len() == before {
                return;
            }
        }
    }

    fn is_for_disks(&self, module: &str) -> bool {
        let below = |file: &Path| DISKS.iter().any(|directory| file.starts_with(directory));
        self.files.get(module).is_some_and(|module| below(&module.file))
    }

    fn wanted_by(&self, device: &str) -> Vec<String> {
        self.aliases.iter().filter(|(p, _)| matches(p, device)).map(|(_, module)| module.clone()).collect()
    }

    fn load(&mut self, name: &str) -> Result<(), LoadError> {
        self.load_with(name, c"")
    }

    /// Loads a module by its name, with `NAME=VALUE` parameters for it, but not for its dependencies.
    pub(crate) fn load_with(&mut self, name: &str, parameters: &CStr) -> Result<(), LoadError> {
        if !self.tried.insert(name.to_owned()) {
            return Ok(());
        }
        for first in self.soft.get(name).cloned().unwrap_or_default() {
            // A soft dependency, which stage 1's subset of modules may not have.
            let _ = self.load_by_alias(&first);
        }
        let Some(Dependencies { file, needs }) = self.files.get(name) else {
            return Err(LoadError::Unknown(name.to_owned()));
        };
        let file = self.dir.join(file);
        for needed in needs.clone() {
            self.load(&needed)?;
        }
        let refused = |source| LoadError::Refused { name: name.to_owned(), file: file.clone(), source };
        let flags = if file.extension().is_some_and(|e| e == "ko") {
            ModuleInitFlags::empty()
        } else {
            COMPRESSED_FILE
        };
        let module = File::open(&file).map_err(refused)?;
        match finit_module(&module, parameters, flags) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(refused(errno.into())),
        }
    }
}

/// Runs as the kernel's modprobe, when the kernel itself needs a module: a PHY's driver, a packet family, mlx4's Ethernet
/// half, a file system. The modules of stage 1 come first, then those of the storage initrd, then the image's.
pub fn load_as_modprobe(name: &str) -> ExitCode {
    let load = |root: &str| Modules::open(Path::new(root)).is_ok_and(|mut m| m.load_by_alias(name).is_ok());
    if load("/") || load(storage::MODULES) || load("/image") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Names, in the kernel's `modalias` form, of every device on every bus.
fn device_names(buses: &Path) -> Vec<String> {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries(buses.to_owned())
        .flat_map(|bus| entries(bus.path().join("devices")))
        .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
        .map(|name| name.trim_end().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// One name for a module: the kernel takes `-` and `_` for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/drivers/net/e1000.ko: kernel/…` by module.
fn dependencies(modules_dep: &str) -> HashMap<String, Dependencies> {
    let name =
        |file: &str| canonical(file.rsplit('/').next().and_then(|f| f.split('.').next()).unwrap_or(file));
    modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        // depmod lists the nearest dependency first; loading follows each one's own needs.
        .map(|(file, needs)| {
            let needs = needs.split_whitespace().map(name).collect();
            (name(file), Dependencies { file: file.into(), needs })
        })
        .collect()
}

/// `alias pci:v00008086d… e1000` by pattern.
fn aliases(modules_alias: &str) -> Vec<(String, String)> {
    let parse = |line: &str| {
        let mut words = line.strip_prefix("alias ")?.split_whitespace();
        Some((words.next()?.to_owned(), canonical(words.next()?)))
    };
    modules_alias.lines().filter_map(parse).collect()
}

/// `softdep r8169 pre: realtek post: …` by module; only what comes before matters to us.
fn soft_dependencies(modules_softdep: &str) -> HashMap<String, Vec<String>> {
    let parse = |line: &str| {
        let (module, rest) = line.strip_prefix("softdep ")?.split_once(' ')?;
        let before = rest.split_once("pre:")?.1.split("post:").next()?;
        Some((canonical(module), before.split_whitespace().map(str::to_owned).collect()))
    };
    modules_softdep.lines().filter_map(parse).collect()
}

/// Shell matching as modprobe does it (fnmatch(3)): `*`, `?` and `[…]`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // The position of the last `*`, and how much it has matched; everything before it is decided.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if n == name.len() && p == pattern.len() {
            return true;
        }
        match name.get(n).and_then(|c| one(&pattern[p..], *c)) {
            Some(used) => (p, n) = (p + used, n + 1),
            None => match star {
                Some((after, taken)) if taken < name.len() => {
                    star = Some((after, taken + 1));
                    (p, n) = (after, taken + 1);
                }
                _ => return false,
            },
        }
    }
}

/// Whether the pattern's first element accepts `c`, and how long that element is.
fn one(pattern: &[u8], c: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|b| *b == b']')?;
            let (set, negated) = match &pattern[1..end] {
                [b'!', set @ ..] => (set, true),
                set => (set, false),
            };
            (in_set(set, c) != negated).then_some(end + 1)
        }
        literal => (literal == c).then_some(1),
    }
}

fn in_set(mut set: &[u8], c: u8) -> bool {
    while let [low, rest @ ..] = set {
        match rest {
            [b'-', high, rest @ ..] => {
                if (*low..=*high).contains(&c) {
                    return true;
                }
                set = rest;
            }
            _ if *low == c => return true,
            _ => set = rest,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_fnmatch_does() {
        let e1000 = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00";
        for (pattern, name, expected) in [
            ("pci:v00008086d0000100Esv*sd*bc*sc*i*", e1000, true),
            ("pci:v00008086d0000100Fsv*sd*bc*sc*i*", e1000, false),
            ("pci:v*d*sv*sd*bc02sc00i*", e1000, true),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000011v00001AF4", false),
            ("a[0-9]b", "a7b", true),
            ("a[!0-9]b", "a7b", false),
            ("a[x7]b", "a7b", true),
            ("a?b", "ab", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
            ("*ab", "aaab", true),
            ("a[", "a[", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn reads_the_tables_of_depmod() {
        let dep = dependencies(
            "kernel/d/r8169.ko: kernel/d/libphy.ko kernel/d/mdio-devres.ko\nkernel/d/libphy.ko:\n",
        );
        assert_eq!(dep["r8169"].needs, ["libphy", "mdio_devres"]);
        assert_eq!(dep["libphy"].file, Path::new("kernel/d/libphy.ko"));
        let compressed = dependencies("kernel/d/snd-hda.ko.zst:\n");
        assert!(compressed.contains_key("snd_hda"));

        let alias = aliases("# Aliases\nalias pci:v1d2* r8169\nalias net-pf-17 af-packet\n");
        assert_eq!(alias[1], ("net-pf-17".to_owned(), "af_packet".to_owned()));

        let soft = soft_dependencies("softdep r8169 pre: realtek\nsoftdep vfio post: vfio_iommu_type1\n");
        assert_eq!(soft["r8169"], ["realtek"]);
        assert!(!soft.contains_key("vfio"));
    }

    #[test]
    fn a_missing_index_is_an_error_and_an_unknown_name_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Modules::read(dir.path()).is_err());
        fs::write(dir.path().join("modules.dep"), "").unwrap();
        let error = Modules::read(dir.path()).unwrap().load_by_alias("nothing").unwrap_err();
        assert_eq!(error.to_string(), "no module provides nothing");
    }
}
