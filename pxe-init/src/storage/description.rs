//! `/storage.json`: the storage plan of this node, as the appliance wrote it for this boot.

use serde::Deserialize;

/// What the node's disks are to hold.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Storage {
    /// The plan's name, for messages.
    pub(crate) plan: String,
    pub(crate) wipe: Wipe,
    /// The only disks that `wipe = "always"` means.
    pub(crate) serials: Vec<String>,
    pub(crate) disks: Vec<DiskSet>,
    pub(crate) volumes: Vec<Volume>,
    #[serde(default)]
    pub(crate) mounts: Vec<NfsMount>,
    /// What the appliance gives the volumes' keys for, once.
    #[serde(default)]
    pub(crate) token: Option<String>,
}

/// When something may be made on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wipe {
    /// Never: what the plan made before is mounted.
    Never,
    /// Where there is nothing but zeros.
    IfBlank,
    /// Whatever else a disk holds, if its serial is listed.
    Always,
}

/// Disks that are divided alike.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiskSet {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: Option<DiskKind>,
    /// Bytes, both included.
    pub(crate) size: Option<(u64, u64)>,
    /// Any of these; empty means whichever.
    pub(crate) serials: Vec<String>,
    /// A shell pattern over the disk's path below /sys.
    pub(crate) path: Option<String>,
    /// Where they are, unless in the machine.
    #[serde(default)]
    pub(crate) iscsi: Option<Target>,
    /// The identity of each disk's partition table, and by that the number of disks.
    pub(crate) tables: Vec<String>,
}

/// An iSCSI target. Its portal is a name or an address.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Target {
    pub(crate) target: String,
    pub(crate) portal: String,
    pub(crate) port: u16,
}

/// A directory of an NFS server, which is a name or an address.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct NfsMount {
    pub(crate) server: String,
    pub(crate) path: String,
    /// In the image.
    pub(crate) mount: String,
    /// nfs(5)'s.
    pub(crate) options: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiskKind {
    Hdd,
    Ssd,
    Nvme,
}

/// A file system on a partition of every disk of a set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Volume {
    pub(crate) name: String,
    /// The set's name.
    pub(crate) disks: String,
    /// Of the partition on each disk, in bytes; none is what is left.
    pub(crate) size: Option<u64>,
    pub(crate) raid: Option<u8>,
    pub(crate) encrypt: bool,
    pub(crate) format: Format,
    /// In the image.
    pub(crate) mount: String,
    /// mount(8)'s `-o`.
    pub(crate) options: Option<String>,
    pub(crate) ids: Ids,
}

/// By these a later boot knows what an earlier one made.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Ids {
    /// One for each disk of the set.
    pub(crate) partitions: Vec<String>,
    pub(crate) array: String,
    pub(crate) luks: String,
    pub(crate) filesystem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    Ext4,
    Xfs,
    Btrfs,
}

impl Format {
    /// As mount(2) and blkid(8) call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The appliance's tests compare what it writes with the same file.
    #[test]
    fn reads_what_the_appliance_writes() {
        let storage: Storage = serde_json::from_str(include_str!("example.json")).unwrap();
        assert_eq!((storage.plan.as_str(), storage.wipe), ("data", Wipe::Always));
        assert_eq!(storage.disks[0].kind, Some(DiskKind::Ssd));
        assert_eq!(storage.disks[0].size, Some((64 << 20, 2 << 40)));
        assert_eq!(storage.disks[0].tables.len(), storage.volumes[0].ids.partitions.len());
        let volume = &storage.volumes[0];
        assert_eq!((volume.raid, volume.encrypt, volume.format), (Some(1), true, Format::Ext4));
        let target = storage.disks[0].iscsi.as_ref().unwrap();
        assert_eq!((target.portal.as_str(), target.port), ("san.lab", 3260));
        assert_eq!(
            (storage.mounts[0].server.as_str(), storage.mounts[0].mount.as_str()),
            ("files.lab", "/shared")
        );
        assert!(storage.token.is_some());
    }
}
