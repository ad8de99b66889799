//! Powers for tests: on the loopback, with short waits.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;

use super::credentials::Credentials;
use super::pins::Pins;
use super::{Heard, Limits, Link, Powers};
use crate::base::lock::Unpoisoned as _;
use crate::host::net::BridgeInfo;
use crate::store::Store;

/// What tests say was heard.
#[derive(Clone, Default)]
pub(crate) struct Said(pub(crate) Arc<Mutex<Option<Timestamp>>>);

impl Heard for Said {
    fn heard(&self, _: Mac) -> Option<Timestamp> {
        *self.0.lock().unpoisoned()
    }
}

pub(crate) fn bridge() -> BridgeInfo {
    BridgeInfo {
        name: "lo".into(),
        index: 1,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address: "127.0.0.1/8".parse().unwrap(),
        mtu: 1500,
    }
}

/// Waits that are short where a test waits for their end, and long where it does not.
pub(crate) fn limits() -> Limits {
    Limits {
        again_after: Duration::from_millis(10),
        look_every: Duration::from_millis(100),
        ..Limits::default()
    }
}

pub(crate) fn powers(state: &Path, store: Store) -> Powers {
    with(state, store, Said::default(), limits())
}

pub(crate) fn with(state: &Path, store: Store, heard: Said, limits: Limits) -> Powers {
    let pins = Pins::open(store.clone()).unwrap();
    Powers::new(Credentials::new(state, store), pins, Link::of(&bridge()), heard, limits)
}
