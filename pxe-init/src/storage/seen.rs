//! The contents of the node's disks, for the planner and for messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pxe_contract::storage::DiskKind;

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) disks: Vec<Disk>,
    /// Running arrays, by volume.
    pub(crate) arrays: BTreeMap<String, Array>,
    /// What opened LUKS volumes hold, by volume.
    pub(crate) opened: BTreeMap<String, Content>,
    /// Volumes.
    pub(crate) mounted: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Disk {
    /// `/dev/sda`
    pub(crate) device: String,
    pub(crate) serial: Option<String>,
    /// The path below /sys, which says where it is connected.
    pub(crate) path: String,
    /// The iSCSI target that it is a LUN of.
    pub(crate) target: Option<String>,
    pub(crate) size: u64,
    pub(crate) kind: DiskKind,
    pub(crate) content: Content,
}

/// What a disk, a partition, an array or an opened volume holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Zeros.
    Blank,
    /// Something without a known signature.
    Data,
    /// A GPT.
    Table {
        uuid: String,
        partitions: Vec<Partition>,
    },
    Superblock(Superblock),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Partition {
    pub(crate) device: String,
    pub(crate) uuid: String,
    pub(crate) content: Content,
}

/// A signature, in blkid(8)'s words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Superblock {
    pub(crate) kind: String,
    pub(crate) uuid: String,
    pub(crate) label: String,
    /// LUKS2: [`NEW`] until the file system in it is complete.
    pub(crate) subsystem: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) members: Vec<String>,
    pub(crate) content: Content,
}

/// The LUKS2 subsystem of a volume that was never used. Encrypted zeros look like noise, and noise may
/// be data: only this label says that there is none.
pub(crate) const NEW: &str = "bridgehead-new";

impl Disk {
    pub(super) fn has_table(&self, wanted: &str) -> bool {
        matches!(&self.content, Content::Table { uuid, .. } if uuid.eq_ignore_ascii_case(wanted))
    }
}

impl Content {
    pub(super) fn is(&self, kind: &str, uuid: &str) -> bool {
        matches!(self, Self::Superblock(s) if s.kind == kind && s.uuid.eq_ignore_ascii_case(uuid))
    }
}

pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, serial, size, .. } = self;
        match serial {
            Some(serial) => write!(f, "disk {device} (serial {serial}, {} MiB)", size >> 20),
            None => write!(f, "disk {device} (no serial, {} MiB)", size >> 20),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::Data => f.write_str("data without a known signature"),
            Self::Table { partitions, .. } => {
                let held = list(partitions.iter().map(|p| p.content.to_string()));
                write!(f, "a partition table with {} ({held})", count(partitions.len(), "partition"))
            }
            Self::Superblock(Superblock { kind, label, .. }) if label.is_empty() => f.write_str(kind),
            Self::Superblock(Superblock { kind, label, .. }) => write!(f, "{kind} {label:?}"),
        }
    }
}
