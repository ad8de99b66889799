//! `/storage.json`: what a node's disks are to hold, as the appliance wrote it for one boot; and the keys of its
//! encrypted volumes (`POST /node/storage-keys`). See docs/storage.md.
//!
//! The plan is the only document in which an unknown field is an error: a node that ignored part of what is to be done
//! to a disk would do something else than was wanted.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Storage {
    /// The plan's name, for messages.
    pub plan: String,
    /// When something may be made on a disk.
    pub wipe: Wipe,
    /// The only disks that [`Wipe::Always`] means.
    pub serials: Vec<String>,
    /// The sets of disks that are partitioned alike.
    pub disks: Vec<DiskSet>,
    /// The volumes on them.
    pub volumes: Vec<Volume>,
    /// Directories of NFS servers.
    #[serde(default)]
    pub mounts: Vec<NfsMount>,
}

/// When a node may make something on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wipe {
    /// Never: what the plan made before is mounted.
    Never,
    /// Only where there is nothing but zeros.
    #[default]
    IfBlank,
    /// Also on disks whose serial is listed, whatever they hold.
    Always,
}

/// Disks that are partitioned alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskSet {
    /// The name by which volumes refer to the set.
    pub name: String,
    /// Only disks of this kind; `None` means any.
    #[serde(rename = "type")]
    pub kind: Option<DiskKind>,
    /// Least and most bytes, both included.
    pub size: Option<(u64, u64)>,
    /// Only disks with one of these; empty means any.
    pub serials: Vec<String>,
    /// A shell pattern for the disk's path below /sys.
    pub path: Option<String>,
    /// The target whose LUNs they are; `None` if they are in the machine.
    #[serde(default)]
    pub iscsi: Option<Target>,
    /// The identity of each disk's partition table, and so the number of disks.
    pub tables: Vec<String>,
}

/// An iSCSI target, whose LUNs are disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name: `iqn.…`.
    pub target: String,
    /// A name or an address.
    pub portal: String,
    /// TCP's.
    pub port: u16,
}

/// A directory of an NFS server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NfsMount {
    /// A name or an address.
    pub server: String,
    /// The directory on the server.
    pub path: String,
    /// The place, in the image.
    pub mount: String,
    /// nfs(5)'s.
    pub options: Option<String>,
}

/// The kind of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// It rotates.
    Hdd,
    /// It does not.
    Ssd,
    /// By NVM Express.
    Nvme,
}

/// A file system on a partition of every disk of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Volume {
    /// For messages, and for its key.
    pub name: String,
    /// The set's name.
    pub disks: String,
    /// Size of the partition on each disk, in bytes; `None` means the remaining space.
    pub size: Option<u64>,
    /// The RAID level, if there is an array.
    pub raid: Option<u8>,
    /// Whether the volume is encrypted with LUKS.
    pub encrypt: bool,
    /// The file system.
    pub format: Format,
    /// The place, in the image.
    pub mount: String,
    /// mount(8)'s `-o`.
    pub options: Option<String>,
    /// The identities of its parts.
    pub ids: Ids,
}

/// The UUIDs by which a later boot recognises what an earlier one made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ids {
    /// One for each disk of the set.
    pub partitions: Vec<String>,
    /// Of the array, if there is one.
    pub array: String,
    /// Of the LUKS header, if there is one.
    pub luks: String,
    /// Of the file system.
    pub filesystem: String,
}

/// A file system's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// ext4(5).
    #[default]
    Ext4,
    /// xfs(5).
    Xfs,
    /// btrfs(5).
    Btrfs,
}

impl Format {
    /// As mount(2) and blkid(8) call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// The body of `POST /node/storage-keys`. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeysRequest<M> {
    /// Whose volumes.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
}

/// The answer. It has no `Debug`: these are secrets.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeysAnswer {
    /// Hexadecimal, by volume.
    pub keys: BTreeMap<String, String>,
}
