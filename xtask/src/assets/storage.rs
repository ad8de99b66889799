//! The storage initrd: what stage 1 needs for a profile with a storage plan, and loads for no other. Debian's tools
//! with their libraries, fetched and unpacked, never installed (mdadm's installation makes initrds), and the stock
//! kernel's modules for disks, RAID, encryption and file systems.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use super::kernel::{self, Package, Scratch};
use super::run;

/// Where pxe-init looks for these modules; below `/` are stage 1's, with an index of their own.
const MODULES_ROOT: &str = "storage";

const TOOLS: &[&str] = &[
    "mdadm",
    "cryptsetup",
    "mke2fs",
    "e2fsck",
    "mkfs.xfs",
    "mkfs.btrfs",
    "sfdisk",
    "blkid",
    "wipefs",
    "iscsistart",
    "iscsid",
];

/// The tools' packages, and those of every library that they load.
const PACKAGES: &[&str] = &[
    "mdadm",
    "cryptsetup-bin",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "fdisk",
    "open-iscsi",
    "util-linux",
    "libargon2-1",
    "libblkid1",
    "libc6",
    "libcap2",
    "libcom-err2",
    "libcryptsetup12",
    "libdevmapper1.02.1",
    "libext2fs2",
    "libfdisk1",
    "libgcrypt20",
    "libgpg-error0",
    "libinih1",
    "libisns0",
    "libjson-c5",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "liblzo2-2",
    "libmount1",
    "libopeniscsiusr",
    "libpcre2-8-0",
    "libpopt0",
    "libreadline8",
    "libselinux1",
    "libsmartcols1",
    "libss2",
    "libssl3",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "liburcu8",
    "libuuid1",
    "libzstd1",
    "zlib1g",
];

const DRIVERS: &[&str] = &[
    // disks of virtual machines and clouds
    "virtio_blk",
    "virtio_scsi",
    "virtio_pci",
    "xen_blkfront",
    "vmw_pvscsi",
    "hv_storvsc",
    // NVMe, SATA, SAS and RAID controllers
    "nvme",
    "ahci",
    "ata_piix",
    "mpt3sas",
    "megaraid_sas",
    "aacraid",
    "hpsa",
    "smartpqi",
    "sd_mod",
    // disks and directories of other machines
    "iscsi_tcp",
    "nfs",
    "nfsv3",
    "nfsv4",
    // layers
    "raid0",
    "raid1",
    "raid10",
    "dm_crypt",
    // what the kernel and cryptsetup ask of the crypto API, generic and with AES instructions
    "algif_skcipher",
    "algif_hash",
    "aesni_intel",
    "aes_generic",
    "xts",
    "ecb",
    "essiv",
    "sha256_generic",
    "sha256_ssse3",
    // file systems, and the checksums that they ask for by name
    "ext4",
    "xfs",
    "btrfs",
    "crc32c_generic",
    "crc32c_intel",
    "crct10dif_generic",
    "xxhash_generic",
    "blake2b_generic",
];

pub(super) fn recipe() -> String {
    format!("{} / {} / {}", TOOLS.join(" "), PACKAGES.join(" "), DRIVERS.join(" "))
}

/// Makes `initrd`, and `unpacked`: the bytes that it takes in a node's memory.
pub(super) fn make(into: &Path, kernel: &Package) -> anyhow::Result<()> {
    let scratch = Scratch::new("storage-packages")?;
    let (debs, packages) = (scratch.0.join("debs"), scratch.0.join("packages"));
    fs::create_dir_all(&debs)?;
    eprintln!("set-up: fetching {}", PACKAGES.join(" "));
    run(Command::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
        .args(PACKAGES)
        .current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").args([&deb?.path(), &packages]))?;
    }

    let root = scratch.0.join("root");
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let from = find(&packages, &["sbin", "bin", "usr/sbin", "usr/bin"], tool)?;
        libraries.extend(loaded_by(&packages, &from)?);
        copy(&from, &root.join("usr/sbin").join(tool))?;
    }
    for library in libraries {
        let name = library.file_name().context("a library has a name")?;
        copy(&library, &root.join("usr/lib").join(triplet()).join(name))?;
    }
    copy(&loader(&packages)?, &root.join("lib64/ld-linux-x86-64.so.2"))?;
    kernel.subset(DRIVERS, &root.join(MODULES_ROOT))?;

    let unpacked = pack(&root, &into.join("initrd"))?;
    Ok(fs::write(into.join("unpacked"), unpacked.to_string())?)
}

fn triplet() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

fn find(packages: &Path, directories: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let found = directories.iter().map(|d| packages.join(d).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is in none of the packages of the storage initrd"))
}

fn loader(packages: &Path) -> anyhow::Result<PathBuf> {
    let directory = format!("lib/{}", triplet());
    find(packages, &[&directory, "lib64"], "ld-linux-x86-64.so.2")
}

/// The libraries that the packages' own dynamic loader finds for a program, among the packages alone.
fn loaded_by(packages: &Path, program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directories = ["usr/lib", "lib"].map(|d| packages.join(d).join(triplet()).display().to_string());
    let output = Command::new(loader(packages)?)
        .args(["--inhibit-cache", "--library-path", &directories.join(":"), "--list"])
        .arg(program)
        .output()
        .context("running Debian's dynamic loader")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let mut libraries = Vec::new();
    for (name, path) in text.lines().filter_map(|line| line.trim().split_once(" => ")) {
        let path = PathBuf::from(path.split(" (0x").next().unwrap_or_default());
        if path.starts_with(packages) {
            libraries.push(path);
        } else if !name.starts_with("ld-linux") && !name.contains("/ld-linux") {
            bail!("{} loads {name}, whose package is not on the list", program.display());
        }
    }
    Ok(libraries)
}

/// A cpio archive in a zstd frame, the same for the same files: what Linux unpacks over stage 1. Returns its contents' size.
fn pack(root: &Path, initrd: &Path) -> anyhow::Result<u64> {
    const PACK: &str = "set -eo pipefail; cd \"$1\"; find . -exec touch -hd @0 {} +; \
        find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet | zstd -q -19 -T1 --check -o \"$2\"";
    run(Command::new("bash").args(["-c", PACK, "bash"]).args([root, initrd]))?;
    let sizes = Command::new("du")
        .args(["-s", "--apparent-size", "-B1"])
        .arg(root)
        .stderr(Stdio::inherit())
        .output()?;
    let size = String::from_utf8_lossy(&sizes.stdout);
    size.split_whitespace().next().and_then(|s| s.parse().ok()).context("du told no size")
}

/// Copies what a path leads to: a library's name is a link to its version.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    kernel::copy(from, to)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}
