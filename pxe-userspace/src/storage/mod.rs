//! Storage of nodes, the appliance's side: the plan as a node is told it ([`document`]), the keys of its
//! encrypted volumes ([`keys`]), and the tokens that a boot gets them for ([`tokens`]). What is done with
//! the disks, pxe-init decides on the node: docs/storage.md.

pub mod document;
pub mod keys;
pub mod tokens;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pxe_common::Mac;

use crate::config::StoragePlan;
use crate::config::storage::ReleaseKeys;
use crate::database::DatabaseError;
use crate::machines::Machine;
use crate::text::hex;
use keys::{KeyError, Keys};
use tokens::{Scope, Spent, Tokens};

/// Cloning it is cheap.
#[derive(Clone)]
pub struct Storage(Arc<Mutex<Inner>>);

struct Inner {
    keys: Keys,
    tokens: Tokens,
}

/// Why no keys are given.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error(transparent)]
    Token(#[from] Spent),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Storage {
    pub fn open(state_dir: &Path, database: &Path) -> Result<Self, DatabaseError> {
        let keys = Keys::open(state_dir, database)?;
        Ok(Self(Arc::new(Mutex::new(Inner { keys, tokens: Tokens::default() }))))
    }

    /// `/storage.json` for one boot of a machine, which asks from `client`. Where the plan has encrypted
    /// volumes and releases their keys, and it is the machine itself that asks, there is a token in it.
    pub fn document(&self, machine: &Machine, plan: &StoragePlan, client: Ipv4Addr, now: Instant) -> String {
        let owner = machine.label();
        let encrypted = plan.volumes.iter().filter(|volume| volume.encrypt);
        let volumes: Vec<String> = encrypted.map(|volume| volume.name.clone()).collect();
        let itself = machine.address == Some(client);
        let releases = plan.release_keys == ReleaseKeys::BootSegment && !volumes.is_empty();
        let token = (releases && itself).then(|| {
            let scope = Scope {
                mac: machine.mac,
                address: client,
                owner: owner.clone(),
                plan: plan.name.clone(),
                volumes,
            };
            self.inner().tokens.issue(scope, now)
        });
        document::text(plan, &owner, token)
    }

    /// The keys that a token stands for, by volume, in hexadecimal. A token is good for one answer.
    pub fn release(
        &self,
        mac: Mac,
        address: Ipv4Addr,
        token: &str,
        now: Instant,
    ) -> Result<BTreeMap<String, String>, ReleaseError> {
        let mut inner = self.inner();
        let scope = inner.tokens.spend(mac, address, token, now)?;
        let mut keys = BTreeMap::new();
        for volume in scope.volumes {
            let key = inner.keys.of(&scope.owner, &scope.plan, &volume)?;
            keys.insert(volume, hex(&key));
        }
        Ok(keys)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
