//! What launches have machines boot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use pxe_common::Mac;

use crate::base::lock::Unpoisoned as _;
use crate::config::nodes::Launched;
use crate::store::{Change, LaunchedRow, ReadError, Store};

/// The pins. Cloning it is cheap.
#[derive(Clone)]
pub(super) struct AllLaunched(Arc<Mutex<HashMap<Mac, Launched>>>);

impl AllLaunched {
    /// Those that are stored. One that can't be read is left alone, and the log says so.
    pub(super) fn open(store: Store) -> Result<Self, ReadError> {
        let known = store.reader().launched()?.into_iter().filter_map(|LaunchedRow { mac, body }| {
            match serde_json::from_str(&body) {
                Ok(pin) => Some((mac, pin)),
                Err(error) => {
                    tracing::warn!(%mac, %error, "a pin in the database that can't be read: left alone");
                    None
                }
            }
        });
        Ok(Self(Arc::new(Mutex::new(known.collect()))))
    }

    pub(super) fn all(&self) -> HashMap<Mac, Launched> {
        self.0.lock().unpoisoned().clone()
    }

    /// They are stored: they count from now on.
    pub(super) fn put(&self, pins: Vec<(Mac, Option<Launched>)>) {
        let mut all = self.0.lock().unpoisoned();
        for (mac, pin) in pins {
            match pin {
                Some(pin) => drop(all.insert(mac, pin)),
                None => drop(all.remove(&mac)),
            }
        }
    }
}

/// How they are stored.
pub(super) fn changes(pins: &[(Mac, Option<Launched>)]) -> impl Iterator<Item = Change> {
    pins.iter().map(|(mac, pin)| match pin {
        Some(pin) => {
            let body = serde_json::to_string(pin).expect("it has only text keys");
            Change::PutLaunched(LaunchedRow { mac: *mac, body })
        }
        None => Change::RemoveLaunched(*mac),
    })
}
