//! The planner against a model of disks.

use proptest::prelude::*;

use super::*;
use model::{Held, Machine, ModelDisk};
use pxe_contract::storage::{Ids, Target};

#[path = "plan_model.rs"]
mod model;

/// A volume's RAID level, whether it is encrypted, and its format.
type Kind = (Option<u8>, bool, Format);

/// A plan with a set of this many disks for each entry, and its volumes.
fn storage(wipe: Wipe, serials: &[&str], sets: &[(usize, &[Kind])]) -> Storage {
    let mut disks = Vec::new();
    let mut volumes = Vec::new();
    for (s, (count, on_set)) in sets.iter().enumerate() {
        let name = format!("set{s}");
        for (v, (raid, encrypt, format)) in on_set.iter().enumerate() {
            let id = |what: &str| format!("{what}-{s}-{v}");
            let nested = if v == 0 { String::new() } else { "/below".into() };
            volumes.push(Volume {
                name: format!("v{s}{v}"),
                disks: name.clone(),
                size: (v + 1 < on_set.len()).then_some(1 << 30),
                raid: raid.filter(|_| *count > 1),
                encrypt: *encrypt,
                format: *format,
                mount: format!("/data{s}{nested}"),
                options: None,
                ids: Ids {
                    partitions: (0..*count).map(|i| format!("part-{s}-{v}-{i}")).collect(),
                    array: id("array"),
                    luks: id("luks"),
                    filesystem: id("fs"),
                },
            });
        }
        let tables = (0..*count).map(|i| format!("table-{s}-{i}")).collect();
        disks.push(DiskSet {
            name,
            kind: None,
            size: None,
            serials: Vec::new(),
            path: None,
            iscsi: None,
            tables,
        });
    }
    let serials = serials.iter().map(|&s| s.to_owned()).collect();
    Storage { plan: "data".into(), wipe, serials, disks, volumes, mounts: Vec::new() }
}

fn disk(serial: &str, held: Held) -> ModelDisk {
    ModelDisk { serial: Some(serial.into()), size: 64 << 30, kind: DiskKind::Ssd, held, given_up: false }
}

fn machine(disks: Vec<ModelDisk>) -> Machine {
    Machine { disks, ..Machine::default() }
}

const MIRROR: [(usize, &[Kind]); 1] = [(2, &[(Some(1), true, Format::Ext4)])];

#[test]
fn a_mirror_is_made_once_and_found_again() {
    let wanted = storage(Wipe::IfBlank, &[], &MIRROR);
    let mut machine = machine(vec![disk("a", Held::Blank), disk("b", Held::Blank)]);
    let made = machine.settle(&wanted).unwrap();
    assert_eq!(made.iter().filter(|a| matches!(a, Action::CreateTable { .. })).count(), 2, "{made:#?}");
    assert!(matches!(made.last(), Some(Action::Mount { at, .. }) if at == "/data0"));
    machine.power_cycle();
    let found = machine.settle(&wanted).unwrap();
    assert!(
        matches!(found[..], [Action::AssembleArray { .. }, Action::OpenLuks { .. }, Action::Mount { .. }]),
        "{found:#?}"
    );
}

#[test]
fn a_lost_disk_is_done_without_and_a_blank_one_takes_its_place() {
    let wanted = storage(Wipe::IfBlank, &[], &MIRROR);
    let mut machine = machine(vec![disk("a", Held::Blank), disk("b", Held::Blank)]);
    machine.settle(&wanted).unwrap();
    machine.power_cycle();
    let lost = machine.disks.remove(0);
    assert!(machine.settle(&wanted).unwrap().iter().all(|action| !action.makes()));

    machine.power_cycle();
    machine.disks.insert(0, disk("windows", Held::Foreign("ntfs")));
    let beside = machine.settle(&wanted).unwrap();
    assert!(beside.iter().all(|action| !action.makes()), "{beside:#?}");

    machine.power_cycle();
    machine.disks.push(disk("c", Held::Blank));
    let rebuilt = machine.settle(&wanted).unwrap();
    assert!(rebuilt.iter().any(|action| matches!(action, Action::AddMember { .. })), "{rebuilt:#?}");

    machine.power_cycle();
    machine.disks.push(lost);
    let twins = machine.settle(&wanted).unwrap_err();
    assert!(matches!(twins, Refusal::Twins { .. }), "{twins}");
}

#[test]
fn a_stripe_that_lost_a_disk_is_not_made_anew() {
    let wanted = storage(Wipe::IfBlank, &[], &[(2, &[(Some(0), false, Format::Xfs)])]);
    let mut machine = machine(vec![disk("a", Held::Blank), disk("b", Held::Blank)]);
    machine.settle(&wanted).unwrap();
    machine.power_cycle();
    machine.disks[1] = disk("c", Held::Blank);
    let refusal = machine.settle(&wanted).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "volume `v00` of storage plan `data` is RAID 0 over 2 disks, and only 1 of them are there: bring back what is missing"
    );
}

#[test]
fn refusals_name_the_disk_its_serial_and_what_it_holds() {
    let one = [(1, &[(None, false, Format::Ext4)][..])];
    for (wipe, serials, held, words) in [
        (
            Wipe::IfBlank,
            &[][..],
            Held::Foreign("ntfs"),
            "disk /dev/sda (serial a, 65536 MiB) holds ntfs, which storage plan `data` did not make; it is left alone. \
             To give it up for the plan, set wipe = \"always\" with \"a\" among its serials",
        ),
        (Wipe::Always, &["b"], Held::Data, "holds data without a known signature"),
        (Wipe::Always, &[], Held::Foreign("LVM2_member"), "holds LVM2_member"),
        (
            Wipe::Never,
            &[],
            Held::Blank,
            "disk /dev/sda (serial a, 65536 MiB) is blank, and storage plan `data` may make nothing",
        ),
        (
            Wipe::IfBlank,
            &[],
            Held::Table { uuid: "x".into(), partitions: vec![("y".into(), Held::Foreign("ntfs"))] },
            "holds a partition table with 1 partition (ntfs)",
        ),
    ] {
        let refusal = machine(vec![disk("a", held)]).settle(&storage(wipe, serials, &one)).unwrap_err();
        assert!(refusal.to_string().contains(words), "{refusal}");
    }
    let refusal = machine(vec![]).settle(&storage(Wipe::IfBlank, &[], &one)).unwrap_err();
    assert_eq!(refusal.to_string(), "storage plan `data` wants 1 disk for `set0` and finds 0; there is none");
}

/// A file system with a damaged superblock has no known signature: it stays.
#[test]
fn damage_is_not_taken_for_a_blank() {
    let wanted = storage(Wipe::IfBlank, &[], &MIRROR);
    let mut machine = machine(vec![disk("a", Held::Blank), disk("b", Held::Blank)]);
    machine.settle(&wanted).unwrap();
    let Held::Luks { inner, .. } = machine.arrays.get_mut("array-0-0").unwrap() else { panic!() };
    **inner = Held::Data;
    machine.power_cycle();
    let refusal = machine.settle(&wanted).unwrap_err().to_string();
    assert!(refusal.contains("/dev/mapper/bridgehead-v00 for volume `v00`"), "{refusal}");
}

#[test]
fn disks_are_picked_by_what_they_are() {
    let mut wanted = storage(Wipe::IfBlank, &[], &[(1, &[(None, false, Format::Btrfs)])]);
    let mut disks = vec![disk("a", Held::Blank), disk("b", Held::Blank), disk("c", Held::Blank)];
    disks[0].kind = DiskKind::Hdd;
    disks[1].size = 4 << 40;
    let picked = |wanted: &Storage| match &plan(wanted, &machine(disks.clone()).see())?[..] {
        [Action::CreateTable { device, .. }] => Ok(device.clone()),
        other => panic!("{other:#?}"),
    };
    assert_eq!(picked(&wanted).unwrap(), "/dev/sda");
    wanted.disks[0].kind = Some(DiskKind::Ssd);
    assert_eq!(picked(&wanted).unwrap(), "/dev/sdb");
    wanted.disks[0].size = Some((1 << 30, 1 << 40));
    assert_eq!(picked(&wanted).unwrap(), "/dev/sdc");
    wanted.disks[0] =
        DiskSet { kind: None, size: None, serials: vec!["b".into()], ..wanted.disks[0].clone() };
    assert_eq!(picked(&wanted).unwrap(), "/dev/sdb");
    wanted.disks[0] =
        DiskSet { serials: vec![], path: Some("*/0000:00:02.0/*".into()), ..wanted.disks[0].clone() };
    assert_eq!(picked(&wanted).unwrap(), "/dev/sdc");
    wanted.disks[0].kind = Some(DiskKind::Nvme);
    assert!(matches!(picked(&wanted), Err(Refusal::TooFewDisks { .. })));
}

#[test]
fn luns_are_their_targets_sets_and_nobody_elses() {
    let mut wanted = storage(Wipe::IfBlank, &[], &[(1, &[(None, false, Format::Ext4)])]);
    let mut seen = machine(vec![disk("a", Held::Blank), disk("b", Held::Blank)]).see();
    seen.disks[0].target = Some("iqn.2026-01.lab:d1".into());
    let picked = |wanted: &Storage| match &plan(wanted, &seen)?[..] {
        [Action::CreateTable { device, .. }] => Ok(device.clone()),
        other => panic!("{other:#?}"),
    };
    assert_eq!(picked(&wanted).unwrap(), "/dev/sdb");
    let mut target = |name: &str| {
        let target = Target { target: name.into(), portal: "san.lab".into(), port: 3260 };
        wanted.disks[0].iscsi = Some(target);
        picked(&wanted)
    };
    assert_eq!(target("iqn.2026-01.lab:d1").unwrap(), "/dev/sda");
    assert!(matches!(target("iqn.2026-01.lab:d2"), Err(Refusal::TooFewDisks { .. })));
}

fn any_held() -> impl Strategy<Value = Held> {
    let part =
        prop_oneof![Just(Held::Blank), Just(Held::Foreign("ntfs")), Just(Held::Member("other".into()))];
    prop_oneof![
        6 => Just(Held::Blank),
        1 => Just(Held::Data),
        1 => Just(Held::Foreign("zfs_member")),
        1 => Just(Held::Luks { uuid: "other".into(), new: true, inner: Box::new(Held::Data) }),
        // The plan's table, with something else in its partition.
        1 => (0..3usize).prop_map(|i| Held::Table {
            uuid: format!("table-0-{i}"),
            partitions: vec![(format!("part-0-0-{i}"), Held::Foreign("ntfs"))],
        }),
        1 => prop::collection::vec(part, 0..3).prop_map(|parts| Held::Table {
            uuid: "other".into(),
            partitions: parts.into_iter().map(|held| ("other".into(), held)).collect(),
        }),
    ]
}

fn any_machine() -> impl Strategy<Value = Machine> {
    let serial = prop_oneof![3 => "[ab][0-4]".prop_map(Some), 1 => Just(None)];
    prop::collection::vec((serial, any_held()), 0..6).prop_map(|disks| {
        let disk =
            |(serial, held)| ModelDisk { serial, size: 64 << 30, kind: DiskKind::Hdd, held, given_up: false };
        machine(disks.into_iter().map(disk).collect())
    })
}

fn any_storage() -> impl Strategy<Value = Storage> {
    let wipe = prop_oneof![Just(Wipe::Never), Just(Wipe::IfBlank), Just(Wipe::Always)];
    let level = prop_oneof![Just(0), Just(1), Just(10)].prop_map(Some);
    let format = prop_oneof![Just(Format::Ext4), Just(Format::Xfs), Just(Format::Btrfs)];
    let volumes = prop::collection::vec((level, any::<bool>(), format), 1..3);
    let sets = prop::collection::vec((1..4usize, volumes), 1..3);
    (wipe, prop::collection::vec("[ab][0-4]", 0..6), sets).prop_map(|(wipe, serials, sets)| {
        let serials: Vec<&str> = serials.iter().map(String::as_str).collect();
        let sets: Vec<_> = sets.iter().map(|(count, volumes)| (*count, volumes.as_slice())).collect();
        storage(wipe, &serials, &sets)
    })
}

/// The model determines itself which disks the plan gives up.
fn give_up(machine: &mut Machine, wanted: &Storage) {
    for disk in &mut machine.disks {
        let listed = disk.serial.as_ref().is_some_and(|s| wanted.serials.contains(s));
        disk.given_up = wanted.wipe == Wipe::Always && listed;
    }
}

proptest! {
    /// Whatever the disks hold: nothing unknown is overwritten (the model asserts it), later boots
    /// recognise a plan that was carried out, and one that is refused stays refused.
    #[test]
    fn nothing_unknown_is_lost_and_a_second_boot_makes_nothing(
        mut machine in any_machine(),
        wanted in any_storage(),
    ) {
        give_up(&mut machine, &wanted);
        let first = machine.settle(&wanted);
        machine.power_cycle();
        let second = machine.settle(&wanted);
        prop_assert_eq!(first.is_ok(), second.is_ok());
        if let Ok(steps) = second {
            prop_assert!(steps.iter().all(|step| !step.makes()), "{:#?}", steps);
            prop_assert_eq!(machine.mounted.len(), wanted.volumes.len());
        }
        if wanted.wipe == Wipe::Never {
            prop_assert!(first.is_err());
        }
    }

    /// After a power cut at any step the next boot continues from there.
    #[test]
    fn a_power_cut_at_any_step_is_made_good(
        mut machine in any_machine(),
        wanted in any_storage(),
        cuts in prop::collection::vec(0..12usize, 1..4),
    ) {
        give_up(&mut machine, &wanted);
        let whole = machine.clone().settle(&wanted);
        for cut in cuts {
            let _ = machine.settle_within(&wanted, cut);
            machine.power_cycle();
        }
        let end = machine.settle(&wanted);
        prop_assert_eq!(whole.is_ok(), end.is_ok(), "{:?} {:?}", whole, end);
    }
}
