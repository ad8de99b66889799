use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::serve::dhcp::leases::{Aliases, Leases, Pool};
use pxe_common::Mac;

fn commit(store: &LeaseStore, changes: &[Change]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.commit(changes)).unwrap();
}

fn open(path: &Path) -> LeaseStore {
    LeaseStore::new(Store::open(path).unwrap())
}

fn leases(stored: Vec<Lease>) -> Leases {
    let range = Some(("10.77.0.100".parse().unwrap(), "10.77.0.199".parse().unwrap()));
    Leases::new(Pool { range, lease_time: Duration::from_secs(3600), ..Pool::default() }, stored)
}

#[test]
fn leases_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridgehead.db");
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut before = leases(Vec::new());
    let store = open(&path);
    let aliases = Aliases { client_id: Some("0152".into()), uuid: Some("u".into()) };
    let machine = |n| Mac([2, 0, 0, 0, 0, n]);
    let wanted = std::net::Ipv4Addr::UNSPECIFIED;
    for n in 0..4 {
        let (address, changes) = before.offer(machine(n), wanted, &aliases, now).unwrap();
        commit(&store, &changes);
        commit(&store, &before.bind(machine(n), address, &aliases, now).unwrap());
        match n {
            1 => commit(&store, &before.release(machine(n), address, now)),
            2 => commit(&store, &before.decline(machine(n), address, now)),
            _ => {}
        }
    }
    drop(store);

    let stored = open(&path).load().unwrap();
    for (was, is) in before.iter().zip(&stored) {
        let expires = is.durable_until;
        assert_eq!(*is, Lease { expires, ..was.clone() });
        assert!(is.expires >= was.expires, "never earlier than what the client was told");
    }
    assert_eq!(stored.len(), 4);
    let mut after = leases(stored);
    assert_eq!(after.of(machine(0)).map(|l| l.address), before.of(machine(0)).map(|l| l.address));
    let declined = after.iter().find(|l| l.state == LeaseState::Declined).unwrap().address;
    let (given, changes) = after.offer(machine(2), declined, &aliases, now).unwrap();
    assert_ne!(given, declined);
    assert!(!changes.is_empty());
}

#[test]
fn a_removed_row_stays_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridgehead.db");
    let mut leases = leases(Vec::new());
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let (address, changes) = leases.offer(Mac([2; 6]), [0; 4].into(), &Aliases::default(), now).unwrap();
    let store = open(&path);
    commit(&store, &changes);
    commit(&store, &[Change::Remove(address)]);
    assert_eq!(store.load().unwrap(), []);
}

#[test]
fn a_row_that_makes_no_sense_is_an_error_not_a_guess() {
    for row in [
        "('10.77.0.300', '02:00:00:00:00:01', 'bound', '2026-01-01T00:00:00Z', '', NULL)",
        "('10.77.0.100', '02:00:00:00:00:01', 'lent', '2026-01-01T00:00:00Z', '', NULL)",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridgehead.db");
        let store = open(&path);
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute(&format!("INSERT INTO lease VALUES {row}"), []).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("leases") && error.contains("bridgehead.db"), "{error}");
    }
}
