use pxe_contract::facts::{Disk, Memory, Neighbour, System};

use super::*;

const A: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn facts(serial: &str, gib: u64) -> Facts {
    Facts {
        system: System { serial: Some(serial.into()), ..System::default() },
        memory: Memory { installed: Some(gib << 30), ..Memory::default() },
        ..Facts::default()
    }
}

fn now() -> Timestamp {
    "2026-01-05T10:00:00Z".parse().unwrap()
}

#[test]
fn facts_are_kept_and_what_is_different_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let machines = Machines::default();
        (Known::open(Store::open(&dir.path().join("db")).unwrap(), machines.clone()).unwrap(), machines)
    };
    let (known, machines) = open();
    assert_eq!(known.said(A).unwrap(), None);
    let told = Facts { neighbours: Some(vec![Neighbour::default()]), ..facts("S1", 16) };
    assert_eq!(known.take(A, told, now()).unwrap(), [""; 0], "the first time nothing is different");
    assert_eq!(machines.get(A).and_then(|m| m.facts.as_ref()?.memory), Some(16 << 30));
    drop((known, machines));

    let (known, machines) = open();
    assert_eq!(machines.get(A).and_then(|m| m.facts.as_ref()?.serial.clone()).as_deref(), Some("S1"));
    let changes = known.take(A, facts("S1", 12), now()).unwrap();
    assert_eq!(changes, ["4.0 GiB less memory than last time: 12.0 GiB"]);
    assert_eq!(known.take(A, facts("S1", 12), now()).unwrap(), [""; 0]);
    let said = known.said(A).unwrap().unwrap();
    assert_eq!(
        said.facts.neighbours.map(|n| n.len()),
        Some(1),
        "before it has listened, the last ones count"
    );
}

#[test]
fn nothing_of_a_node_disturbs_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let known = Known::open(Store::open(&dir.path().join("db")).unwrap(), Machines::default()).unwrap();
    let disk = Disk { name: "sda\u{1b}[2J".into(), serial: Some("\u{202e}x".repeat(100)), ..Disk::default() };
    let evil = Facts { disks: vec![disk; 1000], ..facts("a\nb", 1) };
    known.take(A, evil, now()).unwrap();
    let said = known.said(A).unwrap().unwrap().facts;
    assert_eq!(said.system.serial.as_deref(), Some("a b"));
    assert_eq!((said.disks.len(), &*said.disks[0].name), (pxe_contract::facts::LIST_MAX, "sda [2J"));
    let serial = said.disks[0].serial.as_deref().unwrap();
    assert!(serial.len() <= pxe_contract::facts::TEXT_MAX && !serial.contains('\u{202e}'), "{serial}");
}

#[tokio::test]
async fn whoever_names_machines_hears_of_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let known = Known::open(Store::open(&dir.path().join("db")).unwrap(), Machines::default()).unwrap();
    known.take(A, facts("S1", 16), now()).unwrap();
    assert_eq!(known.news().await, [A].into());
    known.take(A, facts("S1", 16), now()).unwrap();
    known.take(A, facts("S2", 16), now()).unwrap();
    assert_eq!(known.news().await, [A].into());
    assert!(known.0.news.lock().unwrap().is_empty(), "the same again was no news");
}

#[test]
fn the_oldest_that_nobody_declared_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let machines = Machines::default();
    let known = Known::open(Store::open(&dir.path().join("db")).unwrap(), machines.clone()).unwrap();
    let mac = |n: usize| {
        let [.., b, c, d] = (n as u32).to_be_bytes();
        Mac([6, 0, 0, b, c, d])
    };
    let at = |n: usize| Timestamp::from_second(n as i64).unwrap();
    known.told().extend((0..KEPT_MAX).map(|n| (mac(n), at(n))));
    assert_eq!(known.make_room(A, at(KEPT_MAX)), Some(mac(0)));
    assert_eq!(known.make_room(A, at(KEPT_MAX)), None, "it has its room");
}
