//! The status of each workload, for people.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::container::Spec;
use crate::base::lock::Unpoisoned as _;
use crate::base::text;
use crate::config::Workload;

/// A workload, and the node that runs it; `None` is the appliance.
pub(super) type Key = (String, Option<String>);

/// One workload, as `bridgehead workloads --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct WorkloadStatus {
    pub name: String,
    /// `None` is the appliance or, in state `waiting`, means that no node runs it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    pub image: String,
    pub state: WorkloadState,
    /// The result of its image's health check, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<Health>,
    /// Its address on the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Published on the appliance's address or the node's: `HOST:CONTAINER/PROTOCOL`.
    pub ports: Vec<String>,
    pub restarts: u64,
    /// The exit code of its last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// When it entered this state.
    #[serde(serialize_with = "text::micros")]
    pub since: Timestamp,
    /// Why it is not running, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    Starting,
    Running,
    /// It exited or failed, and is restarted after a pause.
    Waiting,
    /// It exited, and its restart policy does not restart it.
    Exited,
    Stopping,
}

/// The result of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Starting,
    Healthy,
    Unhealthy,
}

pub(super) fn status_of(spec: &Spec) -> WorkloadStatus {
    WorkloadStatus {
        node: spec.node().cloned(),
        address: spec.address(),
        ports: spec.ports(),
        ..WorkloadStatus::new(&spec.workload, WorkloadState::Starting)
    }
}

/// A workload that runs on too few nodes.
pub(super) fn short_of(workload: &Workload, why: String) -> WorkloadStatus {
    WorkloadStatus { error: Some(why), ..WorkloadStatus::new(workload, WorkloadState::Waiting) }
}

impl WorkloadStatus {
    /// Not running anywhere yet.
    fn new(workload: &Workload, state: WorkloadState) -> Self {
        Self {
            name: workload.name.clone(),
            node: None,
            image: workload.image.clone(),
            state,
            health: None,
            address: None,
            ports: Vec::new(),
            restarts: 0,
            exit_code: None,
            since: Timestamp::now(),
            error: None,
        }
    }

    pub(super) fn set(&mut self, state: WorkloadState) {
        if self.state != state {
            (self.state, self.since) = (state, Timestamp::now());
        }
        self.error = None;
        self.health = None;
    }
}

/// The workloads' tasks write their status here.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Mutex<BTreeMap<Key, WorkloadStatus>>>);

impl Board {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, WorkloadStatus>> {
        self.0.lock().unpoisoned()
    }

    pub(super) fn update(&self, key: &Key, change: impl FnOnce(&mut WorkloadStatus)) {
        if let Some(status) = self.lock().get_mut(key) {
            change(status);
        }
    }
}
