use pxe_common::Mac;

use super::testing::Brake;
use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn event(id: u64) -> Change {
    Change::AddEvent(EventRow { id, mac: MAC, moves: true, body: "{}".into() })
}

fn hold(text: &str) -> Change {
    Change::PutDocument(Document::Hold, MAC, text.into())
}

fn braked(dir: &Path) -> (Store, Brake) {
    let brake = Brake::default();
    (Store::on(brake.on(sqlite::open(&dir.join("db")).unwrap())), brake)
}

#[test]
fn what_queues_while_the_disk_is_busy_is_one_transaction_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (store, brake) = braked(dir.path());
    brake.hold();
    let first = store.write(vec![hold("first")]);
    brake.wait_begun(1);
    let waiting: Vec<Pending> = (0..100).map(|n| store.write(vec![hold(&n.to_string()), event(n)])).collect();
    for id in 100..200 {
        store.post(event(id));
    }
    assert_eq!(store.reader().last_event_id().unwrap(), 0, "readers see whole transactions, and don't wait");
    brake.release();
    first.wait().unwrap();
    waiting.into_iter().for_each(|pending| pending.wait().unwrap());
    store.flush();
    assert_eq!(brake.begun(), 2);
    assert_eq!(store.reader().documents(Document::Hold).unwrap(), [(MAC, "99".to_owned())]);
    assert_eq!(store.reader().last_event_id().unwrap(), 199);
}

#[test]
fn nobody_pays_for_anothers_change() {
    let dir = tempfile::tempdir().unwrap();
    let (store, brake) = braked(dir.path());
    let (id, key) = (
        VolumeKeyId { owner: "n1".into(), plan: "p".into(), volume: "v".into() },
        SealedKey { nonce: vec![1], sealed: vec![2] },
    );
    store.write(vec![Change::AddVolumeKey(id.clone(), key.clone())]).wait().unwrap();
    brake.hold();
    let busy = store.write(vec![hold("busy")]);
    brake.wait_begun(2);
    let other = SealedKey { nonce: vec![3], sealed: vec![4] };
    let before = store.write(vec![hold("before")]);
    let twice = store.write(vec![event(1), Change::AddVolumeKey(id.clone(), other)]);
    let after = store.write(vec![event(2)]);
    brake.release();
    busy.wait().unwrap();
    before.wait().unwrap();
    let error = twice.wait().unwrap_err().to_string();
    assert!(error.contains("the timeline") && error.contains("UNIQUE"), "{error}");
    after.wait().unwrap();
    assert_eq!(store.reader().volume_key(&id).unwrap(), Some(key), "a disk may be encrypted with the first");
    let ids: Vec<u64> = store.reader().events_since(0, 9).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [2], "an order is written whole or not at all");
}

#[test]
fn who_waits_is_told_that_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (store, brake) = braked(dir.path());
    brake.fail(true);
    let error = store.write(vec![hold("once")]).wait().unwrap_err().to_string();
    assert_eq!(error, "writing holds to the database: the disk is full");
    brake.fail(false);
    store.write(vec![hold("once")]).wait().unwrap();
}

#[test]
fn a_disk_that_stands_still_fills_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (store, brake) = braked(dir.path());
    brake.hold();
    store.post(event(1));
    brake.wait_begun(1);
    for id in 2..=writer::QUEUED_MAX as u64 + 1000 {
        store.post(event(id));
    }
    let lease = store.write(vec![hold("kept")]);
    brake.release();
    lease.wait().unwrap();
    store.flush();
    assert_eq!(store.reader().last_event_id().unwrap(), writer::QUEUED_MAX as u64);
    assert_eq!(store.reader().documents(Document::Hold).unwrap().len(), 1);
}
