//! A model of a node with disks, for the planner's tests: what each step does to them. It shares nothing with the
//! planner, and fails when a step overwrites what it must not.

use std::collections::BTreeMap;

use pxe_contract::storage::{DiskKind, Storage};

use crate::storage::plan::{Action, Refusal, plan};
use crate::storage::seen::{Array, Content, Disk, NEW, Partition, Seen, Superblock};

/// What something holds, all layers down.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Held {
    Blank,
    Data,
    Foreign(&'static str),
    Table {
        uuid: String,
        partitions: Vec<(String, Held)>,
    },
    /// Of the array with this identity.
    Member(String),
    Luks {
        uuid: String,
        new: bool,
        inner: Box<Held>,
    },
    Filesystem {
        kind: &'static str,
        uuid: String,
    },
}

#[derive(Clone, Debug)]
pub(super) struct ModelDisk {
    pub(super) serial: Option<String>,
    pub(super) size: u64,
    pub(super) kind: DiskKind,
    pub(super) held: Held,
    /// Whether the plan may overwrite the contents.
    pub(super) given_up: bool,
}

/// A node with disks.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) disks: Vec<ModelDisk>,
    /// By identity: what each array holds.
    pub(super) arrays: BTreeMap<String, Held>,
    /// What a power cut ends: running arrays by device with volume, identity and members; opened
    /// volumes by name; mounts.
    pub(super) running: BTreeMap<String, (String, String, Vec<String>)>,
    pub(super) opened: BTreeMap<String, String>,
    /// Mount points by volume.
    pub(super) mounted: BTreeMap<String, String>,
}

fn disk_device(i: usize) -> String {
    format!("/dev/sd{}", (b'a' + i as u8) as char)
}

impl Machine {
    pub(super) fn see(&self) -> Seen {
        let disk = |(i, disk): (usize, &ModelDisk)| Disk {
            device: disk_device(i),
            serial: disk.serial.clone(),
            path: format!("/devices/pci0000:00/0000:00:{i:02x}.0/block"),
            target: None,
            size: disk.size,
            kind: disk.kind,
            content: content(&disk.held, &disk_device(i)),
        };
        let arrays = self.running.iter().map(|(device, (volume, uuid, members))| {
            let content = content(&self.arrays[uuid], device);
            (volume.clone(), Array { members: members.clone(), content })
        });
        let opened = self.opened.iter().map(|(name, below)| {
            let Held::Luks { inner, .. } = self.held(below) else { panic!("{below} is not LUKS") };
            let volume = name.strip_prefix("bridgehead-").unwrap().to_owned();
            (volume, content(inner, name))
        });
        Seen {
            disks: self.disks.iter().enumerate().map(disk).collect(),
            arrays: arrays.collect(),
            opened: opened.collect(),
            mounted: self.mounted.keys().cloned().collect(),
        }
    }

    fn held(&self, device: &str) -> &Held {
        self.find(device).unwrap_or_else(|| panic!("there is no {device}"))
    }

    fn find(&self, device: &str) -> Option<&Held> {
        if let Some(name) = device.strip_prefix("/dev/mapper/") {
            let Held::Luks { inner, .. } = self.find(self.opened.get(name)?)? else { return None };
            return Some(inner);
        }
        if let Some((_, uuid, _)) = self.running.get(device) {
            return self.arrays.get(uuid);
        }
        self.disks.iter().enumerate().find_map(|(i, disk)| {
            let whole = disk_device(i);
            match (device.strip_prefix(&whole)?, &disk.held) {
                ("", held) => Some(held),
                (n, Held::Table { partitions, .. }) => {
                    Some(&partitions.get(n.parse::<usize>().ok()?.checked_sub(1)?)?.1)
                }
                _ => None,
            }
        })
    }

    fn find_mut(&mut self, device: &str) -> &mut Held {
        if let Some(name) = device.strip_prefix("/dev/mapper/") {
            let below = self.opened[name].clone();
            let Held::Luks { inner, .. } = self.find_mut(&below) else { panic!("{below} is not LUKS") };
            return inner;
        }
        if let Some((_, uuid, _)) = self.running.get(device) {
            let uuid = uuid.clone();
            return self.arrays.get_mut(&uuid).unwrap();
        }
        for (i, disk) in self.disks.iter_mut().enumerate() {
            match (device.strip_prefix(&disk_device(i)), &mut disk.held) {
                (Some(""), held) => return held,
                (Some(n), Held::Table { partitions, .. }) => {
                    return &mut partitions[n.parse::<usize>().unwrap() - 1].1;
                }
                _ => {}
            }
        }
        panic!("there is no {device}")
    }

    /// Whether every disk below the device was given up.
    fn given_up(&self, device: &str) -> bool {
        if let Some(name) = device.strip_prefix("/dev/mapper/") {
            return self.given_up(&self.opened[name]);
        }
        if let Some((_, _, members)) = self.running.get(device) {
            return members.iter().all(|member| self.given_up(member));
        }
        let on = |(i, _): &(usize, &ModelDisk)| device.starts_with(&disk_device(*i));
        self.disks.iter().enumerate().find(on).unwrap().1.given_up
    }

    /// Overwrites the contents: allowed if there is nothing, or if they were given up.
    fn put(&mut self, device: &str, held: Held) {
        let was = self.held(device).clone();
        assert!(
            was == Held::Blank || self.given_up(device),
            "{device} held {was:?} and would be written over with {held:?}"
        );
        *self.find_mut(device) = held;
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Wipe { device } => {
                // Signatures are removed, the data behind them stays.
                self.put(device, Held::Data);
            }
            Action::CreateTable { device, uuid, partitions } => {
                // Leftovers of an earlier use of the disk may appear in a partition.
                let left =
                    if *self.held(device) == Held::Blank { Held::Blank } else { Held::Foreign("ext3") };
                let partitions = partitions.iter().map(|p| (p.uuid.clone(), left.clone())).collect();
                self.put(device, Held::Table { uuid: uuid.clone(), partitions });
            }
            Action::CreateArray { volume, device, uuid, members, .. } => {
                let blank = members.iter().all(|member| *self.held(member) == Held::Blank);
                for member in members {
                    self.put(member, Held::Member(uuid.clone()));
                }
                self.arrays.insert(uuid.clone(), if blank { Held::Blank } else { Held::Data });
                self.running.insert(device.clone(), (volume.clone(), uuid.clone(), members.clone()));
            }
            Action::AssembleArray { volume, device, uuid, members } => {
                assert!(members.iter().all(|member| *self.held(member) == Held::Member(uuid.clone())));
                self.running.insert(device.clone(), (volume.clone(), uuid.clone(), members.clone()));
            }
            Action::AddMember { array, member } => {
                let uuid = self.running[array].1.clone();
                self.put(member, Held::Member(uuid));
                self.running.get_mut(array).unwrap().2.push(member.clone());
            }
            Action::FormatLuks { device, uuid, .. } => {
                let inner = Box::new(Held::Data);
                self.put(device, Held::Luks { uuid: uuid.clone(), new: true, inner });
            }
            Action::OpenLuks { device, name, .. } => {
                assert!(matches!(self.held(device), Held::Luks { .. }));
                self.opened.insert(name.clone(), device.clone());
            }
            Action::MakeFilesystem { device, format, uuid, luks } => {
                let made = Held::Filesystem { kind: format.name(), uuid: uuid.clone() };
                match luks {
                    None => self.put(device, made),
                    Some(around) => {
                        let Held::Luks { new, inner, .. } = self.find_mut(around) else { panic!("{around}") };
                        assert!(*new, "a used volume would be made anew");
                        (*new, **inner) = (false, made);
                    }
                }
            }
            Action::Mount { volume, device, format, at, .. } => {
                assert!(matches!(self.held(device), Held::Filesystem { kind, .. } if *kind == format.name()));
                let hidden = self.mounted.values().find(|mounted| mounted.starts_with(&format!("{at}/")));
                assert_eq!(hidden, None, "{at} would hide it");
                assert_eq!(self.mounted.insert(volume.clone(), at.clone()), None);
            }
        }
    }

    /// Plans and applies until there is nothing left to do, and returns all steps.
    pub(super) fn settle(&mut self, wanted: &Storage) -> Result<Vec<Action>, Refusal> {
        self.settle_within(wanted, usize::MAX)
    }

    /// The same, up to a power cut after `limit` steps.
    pub(super) fn settle_within(&mut self, wanted: &Storage, limit: usize) -> Result<Vec<Action>, Refusal> {
        let mut done = Vec::new();
        for _round in 0..16 {
            let steps = plan(wanted, &self.see())?;
            if steps.is_empty() {
                return Ok(done);
            }
            for step in steps {
                if done.len() == limit {
                    return Ok(done);
                }
                self.apply(&step);
                done.push(step);
            }
        }
        panic!("no end after {done:#?}")
    }

    pub(super) fn power_cycle(&mut self) {
        self.running.clear();
        self.opened.clear();
        self.mounted.clear();
    }
}

fn content(held: &Held, device: &str) -> Content {
    let superblock = |kind: &str, uuid: &str, subsystem: &str| {
        let (kind, uuid, subsystem) = (kind.to_owned(), uuid.to_owned(), subsystem.to_owned());
        Content::Superblock(Superblock { kind, uuid, subsystem, label: String::new() })
    };
    match held {
        Held::Blank => Content::Blank,
        Held::Data => Content::Data,
        Held::Foreign(kind) => superblock(kind, "f0", ""),
        Held::Member(uuid) => superblock("linux_raid_member", uuid, ""),
        Held::Luks { uuid, new, .. } => superblock("crypto_LUKS", uuid, if *new { NEW } else { "" }),
        Held::Filesystem { kind, uuid } => superblock(kind, uuid, ""),
        Held::Table { uuid, partitions } => {
            let partition = |(n, (uuid, held)): (usize, &(String, Held))| {
                let device = format!("{device}{}", n + 1);
                Partition { uuid: uuid.clone(), content: content(held, &device), device }
            };
            Content::Table {
                uuid: uuid.clone(),
                partitions: partitions.iter().enumerate().map(partition).collect(),
            }
        }
    }
}
