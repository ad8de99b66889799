//! The kernel modules that stage 1 needs, beside the drivers of network cards: set-up takes them for the stock kernel, the
//! appliance out of an image's, and pxe-init loads them.

/// Network cards of virtual machines, whose drivers are not with the others.
pub const NETWORK: [&str; 4] = ["virtio_net", "vmxnet3", "hv_netvsc", "xen-netfront"];

/// What mounts an image's SquashFS under a layer in memory.
pub const STAGE2: [&str; 3] = ["loop", "squashfs", "overlay"];

/// The disk that may hold the image already, and its file system with the checksums that it asks for by name.
pub const DISK: [&str; 8] =
    ["virtio_blk", "virtio_scsi", "nvme", "ahci", "sd_mod", "ext4", "crc32c_generic", "crct10dif_generic"];

/// What a kernel says when it dies.
pub const LAST_WORDS: &str = "netconsole";

/// Where the drivers of network cards are in a distribution's module tree, and what they come with.
const DIRECTORIES: [&str; 5] = [
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/virtio/",
    "kernel/net/packet/",
];

/// Whether stage 1 needs a module, by its path below `/lib/modules/VERSION`. What such a module depends on, it needs,
/// too.
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
