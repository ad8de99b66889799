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

/// F9: `nodes` shows what `why` says, also after a restart.
#[test]
fn a_failed_boot_stays_failed_while_its_loader_goes_round() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut machines = Machines::default();
    let mut timeline = Timeline::open(Store::open(&path).unwrap(), machines.clone()).unwrap();
    let stands = |machines: &Machines, timeline: &Timeline| {
        (machines.get(MAC).and_then(|m| m.stage), timeline.why(MAC).map(|why| why.failed))
    };
    for stage in [Stage::Discover, Stage::Config] {
        timeline.record(Happened::new(Who::Mac(MAC), stage));
    }
    for round in 0..3 {
        timeline.refused(MAC, "profile core: cmdline can't pass it on".into());
        timeline.record(file(Stage::Config, 0));
        assert_eq!(stands(&machines, &timeline), (Some(Stage::Failed), Some(true)), "{round}");
        if round == 1 {
            timeline.flush();
            drop(timeline);
            machines = Machines::default();
            timeline = Timeline::open(Store::open(&path).unwrap(), machines.clone()).unwrap();
            assert_eq!(stands(&machines, &timeline), (Some(Stage::Failed), Some(true)), "after a restart");
        }
    }
    timeline.flush();
    let failed = timeline.since(0, 20).unwrap().iter().filter(|e| e.stage == Stage::Failed).count();
    assert_eq!(failed, 1, "one event for one cause");
    // Another one is another event.
    timeline.refused(MAC, "image a could not be brought in".into());
    timeline.record(file(Stage::Kernel, 0));
    assert_eq!(stands(&machines, &timeline), (Some(Stage::Kernel), Some(false)));
    timeline.flush();
    let failed = timeline.since(0, 20).unwrap().iter().filter(|e| e.stage == Stage::Failed).count();
    assert_eq!(failed, 2);
}

/// GRUB's kernel comes from the kernel, which tells its end by a ring; its small initrd comes from the daemon.
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
