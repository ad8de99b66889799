use std::time::Duration;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// The end of a file whose transfer began this many seconds ago.
fn file(stage: Stage, began_ago: u64) -> Happened {
    let began_ago = Some(Duration::from_secs(began_ago));
    Happened { began_ago, bytes: Some(7), ..Happened::new(Who::Mac(MAC), stage) }
}

#[test]
fn a_file_told_after_the_machines_own_word_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let stage = |machines: &Machines| machines.get(MAC).and_then(|m| m.stage);
    let machines = Machines::default();
    let timeline = Timeline::open(Store::open(&path).unwrap(), machines.clone()).unwrap();
    for happened in [Stage::Discover, Stage::Stage1, Stage::Workload] {
        timeline.record(Happened::new(Who::Mac(MAC), happened));
    }
    timeline.record(file(Stage::Initrd, 30));
    assert_eq!(stage(&machines), Some(Stage::Workload));
    assert_eq!(timeline.why(MAC).map(|why| (why.stage, why.done)), Some((Some(Stage::Workload), true)));
    timeline.flush();
    let told = timeline.since(0, 9).unwrap();
    assert_eq!(
        told.iter().filter(|e| e.late).map(|e| (e.id, e.stage)).collect::<Vec<_>>(),
        [(4, Stage::Initrd)]
    );

    // Nor after a restart.
    drop(timeline);
    let machines = Machines::default();
    let timeline = Timeline::open(Store::open(&path).unwrap(), machines.clone()).unwrap();
    assert_eq!(stage(&machines), Some(Stage::Workload));

    // A boot whose DISCOVER nobody saw.
    timeline.record(file(Stage::Initrd, 0));
    assert_eq!(stage(&machines), Some(Stage::Initrd));
    timeline.record(file(Stage::Initrd, 30));
    assert_eq!(stage(&machines), Some(Stage::Initrd), "it is at its files");
}

/// The kernel reports the loader's last ACK, while another thread refuses its configuration.
#[test]
fn a_refused_boot_stays_failed_when_its_loader_is_told_late() {
    let dir = tempfile::tempdir().unwrap();
    let machines = Machines::default();
    let timeline = Timeline::open(Store::open(&dir.path().join("db")).unwrap(), machines.clone()).unwrap();
    let stands = || (machines.get(MAC).and_then(|m| m.stage), timeline.why(MAC).map(|why| why.failed));
    timeline.record(Happened::new(Who::Mac(MAC), Stage::Discover));
    timeline.record(Happened::failed(Who::Mac(MAC), "image a could not be brought in: no such image"));
    timeline.record(file(Stage::Loader, 30));
    timeline.record(file(Stage::Config, 30));
    assert_eq!(stands(), (Some(Stage::Failed), Some(true)));
    timeline.record(file(Stage::Kernel, 0));
    assert_eq!(stands(), (Some(Stage::Kernel), Some(false)));
}

/// GRUB's kernel is sent by the kernel programs, which report its end by a ring; its small initrd by the daemon.
#[test]
fn a_file_told_after_the_next_one_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let machines = Machines::default();
    let timeline = Timeline::open(Store::open(&dir.path().join("db")).unwrap(), machines.clone()).unwrap();
    let at = || machines.get(MAC).and_then(|m| m.stage);
    timeline.record(Happened::new(Who::Mac(MAC), Stage::Ack));
    timeline.record(file(Stage::Initrd, 3));
    timeline.record(file(Stage::Kernel, 5));
    assert_eq!(at(), Some(Stage::Initrd));
    // It is loaded once more, after another DISCOVER or without one.
    timeline.record(file(Stage::Kernel, 1));
    assert_eq!(at(), Some(Stage::Kernel));
    timeline.record(Happened::new(Who::Mac(MAC), Stage::Discover));
    timeline.record(file(Stage::Kernel, 1));
    assert_eq!(at(), Some(Stage::Kernel));
}
