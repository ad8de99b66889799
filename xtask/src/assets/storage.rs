//! The storage initrd, which stage 1 loads only for a profile with a storage plan. It has Debian's tools with their
//! libraries (never installed: mdadm's installation makes initrds), and the stock kernel's modules for disks, RAID,
//! encryption and file systems.

use std::path::Path;

use super::kernel::Package;
use super::programs::Packages;

/// Where pxe-init looks for these modules. Stage 1's own are below `/`, with an index of their own.
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
    let packages = Packages::fetch(PACKAGES, "storage-packages")?;
    packages.install(TOOLS)?;
    kernel.subset(DRIVERS, &packages.root().join(MODULES_ROOT))?;
    packages.pack(into)
}
