//! A storage plan, as it is sent to a node: `/storage.json`.
//!
//! Each object that the node creates gets its UUID from here, derived from the machine's name (or its MAC, if it has
//! none), the plan's name, and the object's role. So no state is needed to recognise it, disks may be moved between
//! bays, and a declared machine whose network card was replaced still finds its data.

use pxe_contract::storage::{DiskSet, Ids, Storage, Volume};
use sha2::{Digest as _, Sha256};

use crate::config::StoragePlan;

/// The plan for the machine named `owner`.
pub fn text(plan: &StoragePlan, owner: &str) -> String {
    let id = |what: &[&str]| identity(&[&["bridgehead storage", owner, &plan.name], what].concat());
    let numbered = |count: usize, what: &[&str]| -> Vec<String> {
        (0..count).map(|n| id(&[what, &[n.to_string().as_str()]].concat())).collect()
    };
    let disks = plan.disks.iter().map(|set| DiskSet {
        name: set.name.clone(),
        kind: set.kind,
        size: set.size,
        serials: set.serials.clone(),
        path: set.path.clone(),
        iscsi: set.iscsi.clone(),
        tables: numbered(set.count, &["table", &set.name]),
    });
    let volumes = plan.volumes.iter().map(|volume| {
        let count = plan.disks.iter().find(|set| set.name == volume.disks).map_or(0, |set| set.count);
        Volume {
            name: volume.name.clone(),
            disks: volume.disks.clone(),
            size: volume.size,
            raid: volume.raid,
            encrypt: volume.encrypt,
            format: volume.format,
            mount: volume.mount.clone(),
            options: volume.options.clone(),
            ids: Ids {
                partitions: numbered(count, &["partition", &volume.name]),
                array: id(&["array", &volume.name]),
                luks: id(&["luks", &volume.name]),
                filesystem: id(&["filesystem", &volume.name]),
            },
        }
    });
    let document = Storage {
        plan: plan.name.clone(),
        wipe: plan.wipe,
        serials: plan.serials.clone(),
        disks: disks.collect(),
        volumes: volumes.collect(),
        mounts: plan.mounts.clone(),
    };
    serde_json::to_string_pretty(&document).expect("it has only text keys")
}

/// A UUID of version 8 (RFC 9562, section 5.8): the first bits of a digest.
fn identity(words: &[&str]) -> String {
    let mut hash = Sha256::new();
    for word in words {
        // With lengths, because otherwise `a`, `bc` would equal `ab`, `c`.
        hash.update((word.len() as u64).to_be_bytes());
        hash.update(word);
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use pxe_contract::storage::{DiskKind, Format, NfsMount, Target, Wipe};

    use super::*;
    use crate::config::storage::{Disks, ReleaseKeys};

    fn plan() -> StoragePlan {
        let volume = crate::config::storage::Volume {
            name: "db".into(),
            disks: "pair".into(),
            size: None,
            raid: Some(1),
            encrypt: true,
            format: Format::Ext4,
            mount: "/data".into(),
            options: Some("noatime".into()),
        };
        StoragePlan {
            name: "data".into(),
            wipe: Wipe::Always,
            serials: vec!["D1".into(), "D2".into()],
            release_keys: ReleaseKeys::BootSegment,
            disks: vec![Disks {
                name: "pair".into(),
                count: 2,
                kind: Some(DiskKind::Ssd),
                size: Some((64 << 20, 2 << 40)),
                serials: vec![],
                path: Some("*/0000:00:*".into()),
                iscsi: Some(Target {
                    target: "iqn.2026-01.lab:d".into(),
                    portal: "san.lab".into(),
                    port: 3260,
                }),
            }],
            volumes: vec![volume],
            mounts: vec![NfsMount {
                server: "files.lab".into(),
                path: "/export".into(),
                mount: "/shared".into(),
                options: Some("ro".into()),
            }],
        }
    }

    /// The contract's tests read the same file. If an identity changes here, nodes no longer find their data.
    #[test]
    fn writes_what_a_node_reads() {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let example = include_str!("../../../../pxe-contract/golden/0.1.0/storage.json");
        assert_eq!(read(&text(&plan(), "n1")), read(example));
    }

    #[test]
    fn identities_are_uuids_and_each_things_own() {
        let id = identity(&["a", "b"]);
        assert_eq!((id.len(), &id[14..15]), (36, "8"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_eq!(id, identity(&["a", "b"]));
        // The UUID on existing disks.
        assert_eq!(identity(&["n1", "array", "data"]), "da227c59-1bee-86c2-a194-22c6bf506dad");
        assert_ne!(id, identity(&["ab", ""]));
        assert_ne!(text(&plan(), "n1"), text(&plan(), "n2"));
    }
}
