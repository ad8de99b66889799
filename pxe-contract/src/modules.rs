//! The kernel modules that stage 1 needs, beside the drivers of network cards: set-up selects them for the stock kernel,
//! the appliance from an image's modules, and pxe-init loads them.

/// Network cards of virtual machines, whose drivers are not with the others.
pub const NETWORK: [&str; 4] = ["virtio_net", "vmxnet3", "hv_netvsc", "xen-netfront"];

/// What mounts an image's SquashFS under a layer in memory.
pub const STAGE2: [&str; 3] = ["loop", "squashfs", "overlay"];

/// For a disk with cached images: the drivers, and the file system with the checksums that it requests by name.
pub const DISK: [&str; 8] =
    ["virtio_blk", "virtio_scsi", "nvme", "ahci", "sd_mod", "ext4", "crc32c_generic", "crct10dif_generic"];

/// For the messages of a crashing kernel.
pub const LAST_WORDS: &str = "netconsole";

/// Where the drivers of network cards, and their helpers, are in a distribution's module tree.
const DIRECTORIES: [&str; 5] = [
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/virtio/",
    "kernel/net/packet/",
];

/// Whether stage 1 needs a module, by its path below `/lib/modules/VERSION`. It also needs the dependencies of such a
/// module.
pub fn is_needed(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.split(".ko").next().unwrap_or(name);
    DIRECTORIES.iter().any(|directory| path.starts_with(directory))
        || name == LAST_WORDS
        || [&NETWORK[..], &STAGE2, &DISK].iter().any(|modules| modules.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_second_stage_disk_and_last_words_are_needed() {
        for path in [
            "kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
            "kernel/drivers/net/virtio_net.ko.xz",
            "kernel/fs/squashfs/squashfs.ko.zst",
            "kernel/drivers/nvme/host/nvme.ko",
            "kernel/drivers/net/netconsole.ko",
        ] {
            assert!(is_needed(path), "{path}");
        }
        for path in [
            "kernel/drivers/net/wireless/x.ko",
            "kernel/fs/xfs/xfs.ko",
            "kernel/drivers/nvme/host/nvme-core.ko",
        ] {
            assert!(!is_needed(path), "{path}");
        }
    }
}
