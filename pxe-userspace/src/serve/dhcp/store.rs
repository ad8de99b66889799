//! Leases on disk.
//!
//! The stored end of each lease is never before the one that the client was told (design invariant 1), so that after
//! a power cut no address is given to two machines.

use super::leases::{Change, Lease, LeaseState};
use crate::store::{self, LeaseRow, ReadError, Store, WriteError};

/// Leases could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}; nothing is offered until this works again")]
pub struct CommitError(#[from] WriteError);

/// The leases' part of the store. Cloning it is cheap.
#[derive(Clone)]
pub struct LeaseStore(Store);

impl LeaseStore {
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Every lease, by address. The more precise end in memory is lost: a lease runs to its durable end.
    pub fn load(&self) -> Result<Vec<Lease>, ReadError> {
        let reader = self.0.reader();
        let mut leases =
            reader.leases()?.into_iter().map(|row| lease(row, reader)).collect::<Result<Vec<_>, _>>()?;
        leases.sort_unstable_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// Writes `changes` in order, in one transaction. When this returns, they survive a power cut.
    pub async fn commit(&self, changes: &[Change]) -> Result<(), CommitError> {
        if changes.is_empty() {
            return Ok(());
        }
        Ok(self.0.written(changes.iter().map(row).collect()).await?)
    }
}

const STATES: [(LeaseState, &str); 4] = [
    (LeaseState::Offered, "offered"),
    (LeaseState::Bound, "bound"),
    (LeaseState::Released, "released"),
    (LeaseState::Declined, "declined"),
];

fn state_name(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Offered => STATES[0].1,
        LeaseState::Bound => STATES[1].1,
        LeaseState::Released => STATES[2].1,
        LeaseState::Declined => STATES[3].1,
    }
}

fn row(change: &Change) -> store::Change {
    match change {
        Change::Put(lease) => store::Change::PutLease(LeaseRow {
            address: lease.address,
            mac: lease.mac,
            state: state_name(lease.state).to_owned(),
            durable_until: lease.durable_until,
            client_ids: lease.client_ids.clone(),
            uuid: lease.uuid.clone(),
        }),
        Change::Remove(address) => store::Change::RemoveLease(*address),
    }
}

fn lease(row: LeaseRow, reader: &dyn store::Reader) -> Result<Lease, ReadError> {
    let LeaseRow { address, mac, state, durable_until, client_ids, uuid } = row;
    let Some((state, _)) = STATES.iter().find(|(_, name)| *name == state) else {
        let source = format!("{address} has the state {state:?}, which none is").into();
        return Err(ReadError { what: "leases", place: reader.place(), source });
    };
    Ok(Lease { address, mac, state: *state, expires: durable_until, durable_until, client_ids, uuid })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
