//! Machines' power: opened with what the appliance knows of machines.

use std::path::Path;
use std::sync::Mutex;

use jiff::Timestamp;
use pxe_common::Mac;

use crate::base::lock::Unpoisoned as _;
use crate::host::net::{BridgeInfo, Stations};
use crate::machines::Machines;
use crate::operate::power::credentials::Credentials;
use crate::operate::power::pins::Pins;
use crate::operate::power::{Heard, Limits, Link, Powers};
use crate::store::{ReadError, Store};

pub(super) fn open(
    state_dir: &Path,
    store: &Store,
    bridge: &BridgeInfo,
    machines: &Machines,
) -> Result<Powers, ReadError> {
    let stations = Mutex::new(Stations::of(bridge));
    let heard = Known { machines: machines.clone(), stations };
    let credentials = Credentials::new(state_dir, store.clone());
    Ok(Powers::new(credentials, Pins::open(store.clone())?, Link::of(bridge), heard, Limits::default()))
}

/// The steps of machines' boots, and the bridge, which learns from every frame that passes it.
struct Known {
    machines: Machines,
    stations: Mutex<Stations>,
}

impl Heard for Known {
    fn heard(&self, mac: Mac) -> Option<Timestamp> {
        let boot = self.machines.get(mac).and_then(|machine| machine.since);
        let frame = self.stations.lock().unpoisoned().heard_ago(mac);
        let frame = frame.and_then(|ago| Timestamp::now().checked_sub(ago).ok());
        boot.max(frame)
    }
}
