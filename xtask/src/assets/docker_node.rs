//! The image of nodes that run containers: a Docker engine from Debian's packages, fetched and unpacked, never
//! installed, and the stock kernel's modules for containers' networks. It is written as by `docker save`, so that the
//! daemon imports it like any image.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::kernel::{Package, Scratch};
use super::programs::{Packages, copy, triplet};
use super::{BUSYBOX, run};

/// The name by which the daemon knows the image.
const REFERENCE: &str = "bridgehead/docker-node:latest";

const START: &str = include_str!("docker_node.sh");

const PROGRAMS: &[&str] = &[
    "dockerd",
    "docker-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    // with nf_tables, as Debian's engine uses it
    "xtables-nft-multi",
];

/// Links and their targets.
const LINKS: &[(&str, &str)] = &[
    ("usr/sbin/iptables", "xtables-nft-multi"),
    ("usr/sbin/iptables-save", "xtables-nft-multi"),
    ("usr/sbin/iptables-restore", "xtables-nft-multi"),
    ("usr/sbin/ip6tables", "xtables-nft-multi"),
    ("usr/sbin/modprobe", "../bin/busybox"),
    ("usr/bin/sh", "busybox"),
    ("usr/bin/mount", "busybox"),
    ("usr/bin/grep", "busybox"),
    ("usr/bin/ps", "busybox"),
    // Debian's merged /usr
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("var/run", "/run"),
];

const DIRECTORIES: &[&str] = &[
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "var/lib/docker",
    "etc/ssl/certs",
];

/// The programs' packages, and those of every library that they load.
const PACKAGES: &[&str] = &[
    "docker.io",
    "containerd",
    "runc",
    "tini",
    "iptables",
    "ca-certificates",
    "libc6",
    "libcap2",
    "libdevmapper1.02.1",
    "libgcrypt20",
    "libgpg-error0",
    "libip4tc2",
    "libip6tc2",
    "liblz4-1",
    "liblzma5",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libsystemd0",
    "libudev1",
    "libxtables12",
    "libzstd1",
];

const DRIVERS: &[&str] = &[
    // containers' layers and links
    "overlay",
    "bridge",
    "br_netfilter",
    "veth",
    "macvlan",
    "ipvlan",
    // the engine's rules, which iptables writes for nf_tables
    "nf_tables",
    "nfnetlink",
    "nft_compat",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nf_conntrack_netlink",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_REDIRECT",
    "xt_tcpudp",
    "ipt_REJECT",
    "xfrm_user",
    "nf_nat",
];

pub(super) fn recipe() -> String {
    let lists = [PROGRAMS, PACKAGES, DRIVERS, DIRECTORIES].map(|list| list.join(" "));
    format!("{}\n{LINKS:?}\n{START}", lists.join(" / "))
}

/// Makes `image.tar`.
pub(super) fn make(into: &Path, kernel: &Package) -> anyhow::Result<()> {
    let packages = Packages::fetch(PACKAGES, "docker-node-packages")?;
    fill(&packages, kernel)?;
    let scratch = Scratch::new("docker-node-image")?;
    let layer = scratch.0.join("layer.tar");
    archive(&packages.root(), &layer)?;
    let config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": { "Entrypoint": ["/start"], "StopSignal": "SIGTERM" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [REFERENCE], "Layers": ["layer.tar"] }]);
    fs::write(scratch.0.join("config.json"), config.to_string())?;
    fs::write(scratch.0.join("manifest.json"), manifest.to_string())?;
    archive(&scratch.0, &into.join("image.tar"))
}

fn fill(packages: &Packages, kernel: &Package) -> anyhow::Result<()> {
    let (tree, root) = (packages.tree(), packages.root());
    for directory in DIRECTORIES {
        fs::create_dir_all(root.join(directory))?;
    }
    for (link, to) in LINKS {
        symlink(to, root.join(link)).with_context(|| format!("making the link {link}"))?;
    }
    packages.install(PROGRAMS)?;
    // The static build, because it is put into containers, which have libraries of their own or none.
    copy(&tree.join("usr/bin/tini-static"), &root.join("usr/sbin/docker-init"))?;
    copy(Path::new(BUSYBOX), &root.join("usr/bin/busybox"))?;
    // iptables' matches and targets, which it loads by name.
    let extensions = Path::new("usr/lib").join(triplet()).join("xtables");
    let entries = fs::read_dir(tree.join(&extensions)).context("iptables' extensions")?;
    for extension in entries {
        let extension = extension?;
        copy(&extension.path(), &root.join(&extensions).join(extension.file_name()))?;
    }
    kernel.subset(DRIVERS, &root.join("usr"))?;

    fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), authorities(&tree)?)?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("start"), START)?;
    Ok(fs::set_permissions(root.join("start"), fs::Permissions::from_mode(0o755))?)
}

/// Mozilla's authorities in one file, as update-ca-certificates(8) writes it.
fn authorities(packages: &Path) -> anyhow::Result<String> {
    let directory = packages.join("usr/share/ca-certificates/mozilla");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let files: BTreeSet<_> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.iter().map(|file| Ok(fs::read_to_string(file)?)).collect()
}

/// A tar archive of a directory. The same files give the same bytes.
fn archive(directory: &Path, file: &Path) -> anyhow::Result<()> {
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0", "-C"])
        .arg(directory)
        .arg("-cf")
        .arg(file)
        .arg("."))
}

fn sha256(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "sha256sum failed");
    let line = String::from_utf8_lossy(&output.stdout);
    Ok(line.split_whitespace().next().context("sha256sum told no sum")?.to_owned())
}
