//! Machines that people declare while the daemon runs, and that are kept in the database.
//!
//! What is kept says the same of a machine as a `[[node]]` of the file does. The configuration has both
//! ([`config::nodes`](crate::config::nodes)), so that whoever asks for a machine asks in one place. [`Order`] is what
//! people want of those that are kept, [`selector`] how they name several, [`table`] the same as CSV. [`Names`] has
//! the machines that rules took.

mod named;
mod orders;
pub mod selector;
pub mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::base::lock::Unpoisoned as _;
use crate::config::{Config, Node};
use crate::store::{Change, NodeRow, ReadError, Store};

pub use named::{Names, says_more};
pub use orders::{Declared, Done, Order, OrderError, Patch};

/// Machines that are kept at most.
pub const NODES_MAX: usize = 32_768;

/// The machines by name, in small letters.
type ByName = BTreeMap<String, Arc<Node>>;

/// The machines that are kept. Cloning it is cheap.
#[derive(Clone)]
pub struct Kept(Arc<Inner>);

struct Inner {
    store: Store,
    by_name: Mutex<ByName>,
}

impl Kept {
    /// Those that are stored. One that can't be read is left alone, and the log says so.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let rows = store.reader().nodes()?;
        let known = rows.into_iter().filter_map(|row| match serde_json::from_str::<Node>(&row.body) {
            Ok(node) => Some((row.name, Arc::new(node))),
            Err(error) => {
                tracing::warn!(name = row.name, %error, "a machine in the database that can't be read: left alone");
                None
            }
        });
        let by_name = Mutex::new(known.collect());
        Ok(Self(Arc::new(Inner { store, by_name })))
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.0.by_name.lock().unpoisoned().values().cloned().collect()
    }

    /// Does what is ordered, all of it or nothing. It is on disk when this returns, which blocks. `config` is what the
    /// daemon goes by, with those that are kept now.
    pub fn order(&self, config: &Config, order: Order) -> Result<Done, OrderError> {
        let mut by_name = self.0.by_name.lock().unpoisoned();
        let (changed, done) = orders::plan(config, &by_name, order)?;
        self.0.store.write(changes(&by_name, &changed)).wait()?;
        *by_name = changed;
        Ok(done)
    }
}

/// From one to the other.
fn changes(old: &ByName, new: &ByName) -> Vec<Change> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let gone = gone.map(|name| Change::RemoveNode(name.clone()));
    let put = new.iter().filter(|(name, node)| old.get(*name) != Some(node)).map(|(name, node)| {
        let body = serde_json::to_string(&**node).expect("it has only text keys");
        Change::PutNode(NodeRow { name: name.clone(), mac: node.mac, body })
    });
    gone.chain(put).collect()
}
