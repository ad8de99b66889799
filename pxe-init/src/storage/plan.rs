//! From a declared plan and the present contents of the disks to the next steps, or to the reason why there are none.
//! Pure.
//!
//! The contents of a layer that is not open yet can't be seen, so [`plan`] is called again after its steps were
//! performed, until there are no more. Everything that a plan creates has a UUID that the appliance chose for this
//! node, and is recognised by it, never by a name or a path.
//!
//! The rule behind all of this: what the plan did not create is never overwritten, unless the plan says
//! `wipe = "always"` and names the disk's serial.

use pxe_contract::storage::{DiskKind, DiskSet, Format, Storage, Volume, Wipe};

use super::seen::{Content, Disk, NEW, Partition, Seen, count, list};
use crate::modules;

/// blkid(8)'s names.
const RAID_MEMBER: &str = "linux_raid_member";
const LUKS: &str = "crypto_LUKS";

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Removes every signature.
    Wipe {
        device: String,
    },
    CreateTable {
        device: String,
        uuid: String,
        partitions: Vec<NewPartition>,
    },
    CreateArray {
        volume: String,
        device: String,
        uuid: String,
        level: u8,
        members: Vec<String>,
    },
    AssembleArray {
        volume: String,
        device: String,
        uuid: String,
        members: Vec<String>,
    },
    /// Adds a blank member to an array that lacks one.
    AddMember {
        array: String,
        member: String,
    },
    FormatLuks {
        volume: String,
        device: String,
        uuid: String,
    },
    OpenLuks {
        volume: String,
        device: String,
        name: String,
    },
    /// `luks` is the device of the LUKS volume around it, which is not new any more afterwards.
    MakeFilesystem {
        device: String,
        format: Format,
        uuid: String,
        luks: Option<String>,
    },
    Mount {
        volume: String,
        device: String,
        format: Format,
        at: String,
        options: Option<String>,
    },
}

impl Action {
    /// Whether it overwrites something.
    #[cfg(test)]
    pub(crate) fn makes(&self) -> bool {
        !matches!(self, Self::AssembleArray { .. } | Self::OpenLuks { .. } | Self::Mount { .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewPartition {
    /// The volume's.
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) size: Option<u64>,
}

/// Why the plan can't be carried out. Nothing was written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{disk} holds {holds}, which storage plan `{plan}` did not make; it is left alone. {remedy}")]
    Foreign { plan: String, disk: String, holds: String, remedy: String },
    #[error("{disk} is blank, and storage plan `{plan}` may make nothing (wipe = \"never\")")]
    Blank { plan: String, disk: String },
    #[error("storage plan `{plan}` wants {wanted} for `{set}` and finds {found}; there is {present}")]
    TooFewDisks { plan: String, set: String, wanted: String, found: usize, present: String },
    #[error(
        "{first} and {second} both carry the identity of the same disk of storage plan `{plan}`: \
         one is a copy, take it out"
    )]
    Twins { plan: String, first: String, second: String },
    #[error(
        "{disk} was divided by storage plan `{plan}` before it had volume `{volume}`: \
         give the volume disks of its own, or empty the disk"
    )]
    NoPartition { plan: String, disk: String, volume: String },
    #[error(
        "volume `{volume}` of storage plan `{plan}` is RAID {level} over {of} disks, and only {have} of them \
         are there: bring back what is missing"
    )]
    Incomplete { plan: String, volume: String, level: u8, of: usize, have: usize },
}

/// The next steps; empty when every volume is mounted.
pub(crate) fn plan(wanted: &Storage, seen: &Seen) -> Result<Vec<Action>, Refusal> {
    let assigned = assign(wanted, seen)?;
    let mut actions = Vec::new();
    for (set, slots) in wanted.disks.iter().zip(&assigned) {
        for (index, slot) in slots.iter().enumerate() {
            let Slot::Fresh(disk) = slot else { continue };
            if disk.content != Content::Blank {
                actions.push(Action::Wipe { device: disk.device.clone() });
            }
            actions.push(Action::CreateTable {
                device: disk.device.clone(),
                uuid: set.tables[index].clone(),
                partitions: new_partitions(wanted, set, index),
            });
        }
    }
    // A directory before what is mounted in it.
    let mut volumes: Vec<(usize, &Volume)> = wanted.volumes.iter().enumerate().collect();
    volumes.sort_by(|(_, a), (_, b)| a.mount.cmp(&b.mount));
    let mut waiting: Vec<&str> = Vec::new();
    for (index, volume) in volumes {
        let slots = wanted.disks.iter().position(|set| set.name == volume.disks).map(|i| &assigned[i]);
        let steps = Layers { wanted, seen, volume, slots: slots.map_or(&[], Vec::as_slice), index }.next()?;
        let mounts = steps.iter().any(|step| matches!(step, Action::Mount { .. }));
        if mounts && waiting.iter().any(|above| is_below(&volume.mount, above)) {
            waiting.push(&volume.mount);
            continue;
        }
        if !mounts && !seen.mounted.contains(&volume.name) {
            waiting.push(&volume.mount);
        }
        actions.extend(steps);
    }
    Ok(actions)
}

/// Whether every disk that the plan ever partitioned is there.
pub(crate) fn is_complete(wanted: &Storage, seen: &Seen) -> bool {
    let mut tables = wanted.disks.iter().flat_map(|set| &set.tables);
    tables.all(|uuid| seen.disks.iter().any(|disk| disk.has_table(uuid)))
}

/// The array device of volume number `index`.
pub(crate) fn array_device(index: usize) -> String {
    format!("/dev/md{index}")
}

/// The name below /dev/mapper.
pub(crate) fn mapping(volume: &str) -> String {
    format!("bridgehead-{volume}")
}

/// One disk's place in a set.
enum Slot<'a> {
    /// It has the plan's table.
    Ours(&'a Disk),
    /// It may have it.
    Fresh(&'a Disk),
    Missing,
}

/// Assigns disks to the plan's places. Disks with the plan's tables are recognised by them, wherever they are
/// connected; other places get disks that match: blank ones first, in the order of their paths.
fn assign<'a>(wanted: &Storage, seen: &'a Seen) -> Result<Vec<Vec<Slot<'a>>>, Refusal> {
    let plan = || wanted.plan.clone();
    let mut assigned = Vec::new();
    let mut taken: Vec<&Disk> = Vec::new();
    for set in &wanted.disks {
        let mut slots = Vec::new();
        for uuid in &set.tables {
            let mut found = seen.disks.iter().filter(|disk| disk.has_table(uuid));
            let slot = found.next();
            if let (Some(first), Some(second)) = (slot, found.next()) {
                let (first, second) = (first.to_string(), second.to_string());
                return Err(Refusal::Twins { plan: plan(), first, second });
            }
            slots.push(slot.map_or(Slot::Missing, Slot::Ours));
        }
        assigned.push(slots);
    }
    for (set, slots) in wanted.disks.iter().zip(&mut assigned) {
        let known = slots.iter().any(|slot| matches!(slot, Slot::Ours(_)));
        let free = |disk: &&Disk| {
            let ours = wanted.disks.iter().flat_map(|set| &set.tables).any(|uuid| disk.has_table(uuid));
            !ours && matches(set, disk)
        };
        let mut candidates: Vec<&Disk> = seen.disks.iter().filter(free).collect();
        candidates.retain(|disk| taken.iter().all(|t| t.device != disk.device));
        candidates.sort_by(|a, b| {
            (a.content != Content::Blank, &a.path).cmp(&(b.content != Content::Blank, &b.path))
        });
        let mut usable = candidates.iter().filter(|disk| may_make_on(wanted, &disk.content, &[disk]));
        for slot in slots.iter_mut().filter(|slot| matches!(slot, Slot::Missing)) {
            if let Some(disk) = usable.next() {
                taken.push(disk);
                *slot = Slot::Fresh(disk);
            }
        }
        let lacking = slots.iter().filter(|slot| matches!(slot, Slot::Missing)).count();
        // A known set may lack a disk: its arrays decide whether they work without it.
        if lacking == 0 || known {
            continue;
        }
        if let Some(disk) = candidates.iter().find(|disk| !may_make_on(wanted, &disk.content, &[disk])) {
            return Err(refuse(wanted, &disk.content, &[disk], &disk.to_string()));
        }
        return Err(Refusal::TooFewDisks {
            plan: plan(),
            set: set.name.clone(),
            wanted: count(set.tables.len(), "disk"),
            found: set.tables.len() - lacking,
            present: list(seen.disks.iter().map(Disk::to_string)),
        });
    }
    Ok(assigned)
}

fn new_partitions(wanted: &Storage, set: &DiskSet, index: usize) -> Vec<NewPartition> {
    let on_set = wanted.volumes.iter().filter(|volume| volume.disks == set.name);
    on_set
        .filter_map(|volume| {
            let uuid = volume.ids.partitions.get(index)?.clone();
            Some(NewPartition { name: volume.name.clone(), uuid, size: volume.size })
        })
        .collect()
}

/// A volume, from its partitions up.
struct Layers<'a> {
    wanted: &'a Storage,
    seen: &'a Seen,
    volume: &'a Volume,
    slots: &'a [Slot<'a>],
    index: usize,
}

/// A device, and its contents as far as they can be seen.
struct Layer<'a> {
    device: String,
    content: &'a Content,
}

impl Layers<'_> {
    fn next(&self) -> Result<Vec<Action>, Refusal> {
        let volume = self.volume;
        // Its partitions come first.
        let divided = !self.slots.iter().any(|slot| matches!(slot, Slot::Fresh(_)));
        if self.seen.mounted.contains(&volume.name) || !divided {
            return Ok(Vec::new());
        }
        let partitions = self.partitions()?;
        let mut steps = Vec::new();
        let base = match volume.raid {
            None => partitions.first().map(|p| Layer { device: p.device.clone(), content: &p.content }),
            Some(level) => self.array(level, &partitions, &mut steps)?,
        };
        let Some(mut layer) = base else { return Ok(steps) };
        let mut around = None;
        if volume.encrypt {
            match self.opened(&layer, &mut steps)? {
                None => return Ok(steps),
                Some((inner, new)) => {
                    around = new.then(|| layer.device.clone());
                    layer = inner;
                }
            }
        }
        let (format, uuid) = (volume.format, volume.ids.filesystem.clone());
        let device = layer.device.clone();
        if around.is_none() && layer.content.is(format.name(), &uuid) {
            let (at, options) = (volume.mount.clone(), volume.options.clone());
            steps.push(Action::Mount { volume: volume.name.clone(), device, format, at, options });
        } else {
            // A new LUKS volume has nothing to lose, whatever its contents look like.
            if around.is_none() {
                self.clear(&layer, &mut steps)?;
            }
            steps.push(Action::MakeFilesystem { device, format, uuid, luks: around });
        }
        Ok(steps)
    }

    /// The volume's partition on each disk that is there.
    fn partitions(&self) -> Result<Vec<&Partition>, Refusal> {
        let mut found = Vec::new();
        for (slot, uuid) in self.slots.iter().zip(&self.volume.ids.partitions) {
            let Slot::Ours(disk) = slot else { continue };
            let Content::Table { partitions, .. } = &disk.content else { continue };
            let partition = partitions.iter().find(|p| p.uuid.eq_ignore_ascii_case(uuid));
            found.push(partition.ok_or_else(|| Refusal::NoPartition {
                plan: self.wanted.plan.clone(),
                disk: disk.to_string(),
                volume: self.volume.name.clone(),
            })?);
        }
        Ok(found)
    }

    /// The array, when it runs.
    fn array(
        &self,
        level: u8,
        partitions: &[&Partition],
        steps: &mut Vec<Action>,
    ) -> Result<Option<Layer<'_>>, Refusal> {
        let device = array_device(self.index);
        let volume = self.volume.name.clone();
        let uuid = self.volume.ids.array.clone();
        let is_member = |p: &&&Partition| p.content.is(RAID_MEMBER, &uuid);
        if let Some(array) = self.seen.arrays.get(&volume) {
            let new = partitions.iter().filter(|p| !array.members.contains(&p.device) && !is_member(p));
            for partition in new {
                let layer = Layer { device: partition.device.clone(), content: &partition.content };
                self.clear(&layer, steps)?;
                let member = partition.device.clone();
                steps.push(Action::AddMember { array: device.clone(), member });
            }
            return Ok(Some(Layer { device, content: &array.content }));
        }
        let members: Vec<String> = partitions.iter().filter(is_member).map(|p| p.device.clone()).collect();
        let incomplete = |have| Refusal::Incomplete {
            plan: self.wanted.plan.clone(),
            volume: volume.clone(),
            level,
            of: self.slots.len(),
            have,
        };
        if members.is_empty() {
            if partitions.len() < self.slots.len() {
                return Err(incomplete(partitions.len()));
            }
            for partition in partitions {
                let layer = Layer { device: partition.device.clone(), content: &partition.content };
                self.clear(&layer, steps)?;
            }
            let members = partitions.iter().map(|p| p.device.clone()).collect();
            steps.push(Action::CreateArray { volume, device, uuid, level, members });
        } else if members.len() < least(level, self.slots.len()) {
            return Err(incomplete(members.len()));
        } else {
            steps.push(Action::AssembleArray { volume, device, uuid, members });
        }
        Ok(None)
    }

    /// The opened LUKS volume, and whether it is new.
    fn opened(
        &self,
        layer: &Layer<'_>,
        steps: &mut Vec<Action>,
    ) -> Result<Option<(Layer<'_>, bool)>, Refusal> {
        let volume = self.volume.name.clone();
        let device = layer.device.clone();
        let name = mapping(&volume);
        let new = match layer.content {
            Content::Superblock(s) if layer.content.is(LUKS, &self.volume.ids.luks) => s.subsystem == NEW,
            _ => {
                self.clear(layer, steps)?;
                steps.push(Action::FormatLuks { volume, device, uuid: self.volume.ids.luks.clone() });
                return Ok(None);
            }
        };
        let Some(content) = self.seen.opened.get(&volume) else {
            steps.push(Action::OpenLuks { volume, device, name });
            return Ok(None);
        };
        Ok(Some((Layer { device: format!("/dev/mapper/{name}"), content }, new)))
    }

    /// Clears a layer, if the plan may.
    fn clear(&self, layer: &Layer<'_>, steps: &mut Vec<Action>) -> Result<(), Refusal> {
        let disks: Vec<&Disk> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Ours(disk) => Some(*disk),
                Slot::Fresh(_) | Slot::Missing => None,
            })
            .collect();
        // For a partition, its own disk counts; for an array, every disk below it.
        let own = |disk: &&Disk| match &disk.content {
            Content::Table { partitions, .. } => partitions.iter().any(|p| p.device == layer.device),
            _ => false,
        };
        let own_disk: Vec<&Disk> = disks.iter().copied().filter(own).collect();
        let disks = if own_disk.is_empty() { disks } else { own_disk };
        if !may_make_on(self.wanted, layer.content, &disks) {
            let place = format!(
                "{} for volume `{}` on {}",
                layer.device,
                self.volume.name,
                list(disks.iter().map(|d| d.to_string()))
            );
            return Err(refuse(self.wanted, layer.content, &disks, &place));
        }
        if matches!(layer.content, Content::Table { .. } | Content::Superblock(_)) {
            steps.push(Action::Wipe { device: layer.device.clone() });
        }
        Ok(())
    }
}

/// Whether something may be made in place of `content`, which is on `disks`.
fn may_make_on(wanted: &Storage, content: &Content, disks: &[&Disk]) -> bool {
    let listed = |disk: &&Disk| disk.serial.as_ref().is_some_and(|serial| wanted.serials.contains(serial));
    match wanted.wipe {
        Wipe::Never => false,
        Wipe::IfBlank => *content == Content::Blank,
        Wipe::Always => *content == Content::Blank || (!disks.is_empty() && disks.iter().all(listed)),
    }
}

fn refuse(wanted: &Storage, content: &Content, disks: &[&Disk], place: &str) -> Refusal {
    let (plan, disk) = (wanted.plan.clone(), place.to_owned());
    if *content == Content::Blank {
        return Refusal::Blank { plan, disk };
    }
    let serials: Vec<&str> = disks.iter().filter_map(|disk| disk.serial.as_deref()).collect();
    let remedy = if serials.len() == disks.len() {
        let serials = list(serials.iter().map(|serial| format!("{serial:?}")));
        format!("To give it up for the plan, set wipe = \"always\" with {serials} among its serials")
    } else {
        "It tells no serial by which the plan could name it: empty it by hand".to_owned()
    };
    Refusal::Foreign { plan, disk, holds: content.to_string(), remedy }
}

/// Whether a disk matches the set's criteria.
fn matches(set: &DiskSet, disk: &Disk) -> bool {
    let kind = match set.kind {
        None => true,
        // Everything that does not rotate, on any bus.
        Some(DiskKind::Ssd) => disk.kind != DiskKind::Hdd,
        Some(kind) => disk.kind == kind,
    };
    let size = set.size.is_none_or(|(least, most)| (least..=most).contains(&disk.size));
    let serial = set.serials.is_empty() || disk.serial.as_ref().is_some_and(|s| set.serials.contains(s));
    let path = set.path.as_ref().is_none_or(|pattern| modules::matches(pattern, &disk.path));
    let place = set.iscsi.as_ref().map(|iscsi| &iscsi.target) == disk.target.as_ref();
    kind && size && serial && path && place
}

/// Members without which an array of `of` disks has lost data.
fn least(level: u8, of: usize) -> usize {
    match level {
        1 => 1,
        // One of each pair; md knows which.
        10 => of.div_ceil(2),
        _ => of,
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
