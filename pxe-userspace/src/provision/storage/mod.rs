//! Storage of nodes, on the appliance's side: the plan as it is sent to a node ([`document`]), and the keys of its
//! encrypted volumes ([`keys`]). What is done with the disks is decided by pxe-init on the node: docs/storage.md.

pub mod document;
pub mod keys;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use zeroize::Zeroizing;

use crate::base::lock::Unpoisoned as _;
use crate::base::text::hex;
use crate::config::StoragePlan;
use crate::config::storage::ReleaseKeys;
use crate::machines::Machine;
use crate::nodes::trust::Scope;
use crate::store::Store;
use keys::{KeyError, Keys};

/// Cloning it is cheap.
#[derive(Clone)]
pub struct Storage(Arc<Mutex<Keys>>);

impl Storage {
    pub fn new(state_dir: &Path, store: Store) -> Self {
        Self(Arc::new(Mutex::new(Keys::new(state_dir, store))))
    }

    /// The keys of a boot's encrypted volumes, by volume name, in hexadecimal.
    pub fn release(&self, scope: &Scope) -> Result<BTreeMap<String, Zeroizing<String>>, KeyError> {
        let mut keys = self.keys();
        let key = |volume: &String| {
            let key = keys.of(&scope.owner, &scope.plan, volume)?;
            Ok((volume.clone(), Zeroizing::new(hex(&*key))))
        };
        scope.volumes.iter().map(key).collect()
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unpoisoned()
    }
}

/// The plan's keys that a boot of the machine may get, if any.
pub fn keys_for(machine: &Machine, plan: &StoragePlan) -> Option<Scope> {
    let encrypted = plan.volumes.iter().filter(|volume| volume.encrypt);
    let volumes: Vec<String> = encrypted.map(|volume| volume.name.clone()).collect();
    let releases = plan.release_keys == ReleaseKeys::BootSegment && !volumes.is_empty();
    releases.then(|| Scope { owner: machine.label(), plan: plan.name.clone(), volumes })
}
