//! Debian's kernel and the modules that stage 1 needs: for the network, for stage 2, for a disk that caches it. The
//! package is fetched and unpacked, never installed: installing it would run the hooks that make initrds and edit boot
//! loaders on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use pxe_contract::modules;

use super::run;
use crate::paths;

/// Drivers of network cards in stage 1: for virtual machines, for clouds, and for the cards of most servers since
/// about 2008. The modules that they depend on are added. They take about 5 MB of initrd when compressed; `mlx5_core`
/// and `ice` are a quarter of that. Other cards need an image with a kernel of its own.
const NETWORK: &[&str] = &[
    // virtual: KVM, Xen and older QEMU models, VMware, Hyper-V, Amazon, Google
    "virtio_net",
    "virtio_pci",
    "virtio_mmio",
    "e1000",
    "8139cp",
    "8139too",
    "pcnet32",
    "xen_netfront",
    "vmxnet3",
    "hv_netvsc",
    "ena",
    "gve",
    // Intel, and its virtual functions
    "e1000e",
    "igb",
    "igbvf",
    "igc",
    "ixgbe",
    "ixgbevf",
    "i40e",
    "iavf",
    "ice",
    // Broadcom
    "tg3",
    "bnx2",
    "bnxt_en",
    // Realtek and others on desktop boards, with the transceivers that they ask for
    "r8169",
    "realtek",
    "sky2",
    "forcedeth",
    "alx",
    "atl1c",
    "atlantic",
    // NVIDIA
    "mlx4_en",
    "mlx5_core",
    // a DHCP client needs packet sockets; built in here, modular elsewhere
    "af_packet",
];

/// Every driver in stage 1.
fn drivers() -> Vec<&'static str> {
    [NETWORK, &[modules::LAST_WORDS], &modules::STAGE2, &modules::DISK].concat()
}

/// What the directory is made from, except for the version of Debian's kernel: its security updates don't make working
/// assets stale.
pub(super) fn recipe() -> String {
    drivers().join(" ")
}

/// Debian's current kernel, unpacked.
pub(super) struct Package {
    scratch: Scratch,
    version: String,
}

impl Package {
    pub(super) fn fetch() -> anyhow::Result<Self> {
        let scratch = Scratch::new("kernel-package")?;
        let package = current_package()?;
        eprintln!("set-up: fetching {package}");
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(&scratch.0))?;
        let deb = only_entry(&scratch.0)?;
        let tree = scratch.0.join("tree");
        run(Command::new("dpkg-deb").arg("-x").args([&deb, &tree]))?;
        let modules = only_entry(&tree.join("lib/modules"))?;
        let version = modules.file_name().and_then(|n| n.to_str()).context("a kernel version")?.to_owned();
        depmod(&tree, &version)?;
        Ok(Self { scratch, version })
    }

    fn tree(&self) -> PathBuf {
        self.scratch.0.join("tree")
    }

    /// Copies `drivers` and what they depend on below `root`, with an index of their own.
    pub(super) fn subset(&self, drivers: &[&str], root: &Path) -> anyhow::Result<()> {
        let below = Path::new("lib/modules").join(&self.version);
        let (modules, subset) = (self.tree().join(&below), root.join(&below));
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            copy(&modules.join(name), &subset.join(name))?;
        }
        for module in closure(&fs::read_to_string(modules.join("modules.dep"))?, drivers) {
            copy(&modules.join(&module), &subset.join(&module))?;
        }
        depmod(root, &self.version)
    }
}

pub(super) fn make(into: &Path, package: &Package) -> anyhow::Result<()> {
    let version = &package.version;
    copy(&package.tree().join(format!("boot/vmlinuz-{version}")), &into.join("vmlinuz"))?;
    package.subset(&drivers(), &into.join("modules"))?;
    fs::write(into.join("version"), format!("{version}\n"))?;
    Ok(())
}

/// The package that Debian's metapackage depends on today.
fn current_package() -> anyhow::Result<String> {
    let output = Command::new("apt-cache")
        .args(["--no-all-versions", "show", "linux-image-amd64"])
        .output()
        .context("running apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let depends = text.lines().find_map(|l| l.strip_prefix("Depends: "));
    let package = depends.and_then(|d| d.split([' ', ',']).find(|p| p.starts_with("linux-image-")));
    package
        .map(str::to_owned)
        .context("apt knows no linux-image-amd64: is this Debian on x86-64, and did `apt-get update` run?")
}

/// The files of `drivers` and of everything that they depend on, from modules.dep. A driver that this kernel has built
/// in, or lacks, is no error.
fn closure(modules_dep: &str, drivers: &[&str]) -> BTreeSet<String> {
    let wanted = |file: &str| {
        let stem = file.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or_default();
        drivers.iter().any(|d| d.replace('-', "_") == stem.replace('-', "_"))
    };
    modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(file, _)| wanted(file))
        .flat_map(|(file, needs)| std::iter::once(file).chain(needs.split_whitespace()))
        .map(str::to_owned)
        .collect()
}

fn depmod(root: &Path, version: &str) -> anyhow::Result<()> {
    run(Command::new(crate::setup::program("depmod").context("depmod is not installed")?)
        .arg("-b")
        .arg(root)
        .arg(version))
}

fn only_entry(dir: &Path) -> anyhow::Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir)
        .and_then(|d| d.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
        .with_context(|| format!("reading {}", dir.display()))?;
    ensure!(entries.len() == 1, "{} has {} entries, not one", dir.display(), entries.len());
    Ok(entries[0].clone())
}

pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// A directory below `target` that is removed when this is dropped: the unpacked package takes 450 MB.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let path = paths::target(&format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_cards_that_an_images_kernel_gives_are_the_stock_kernels_too() {
        let canonical = |name: &str| name.replace('-', "_");
        for module in modules::NETWORK {
            assert!(NETWORK.iter().any(|name| canonical(name) == canonical(module)), "{module}");
        }
    }

    #[test]
    fn dependencies_come_along_and_names_match_with_either_dash() {
        let dep = "kernel/a/virtio-net.ko: kernel/b/virtio.ko kernel/c/failover.ko\n\
                   kernel/b/virtio.ko:\nkernel/x/other.ko: kernel/b/virtio.ko\n";
        let got: Vec<_> = closure(dep, &["virtio_net", "absent"]).into_iter().collect();
        assert_eq!(got, ["kernel/a/virtio-net.ko", "kernel/b/virtio.ko", "kernel/c/failover.ko"]);
    }
}
