//! How each workload is, for people.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::container::Spec;
use crate::base::lock::Unpoisoned as _;
use crate::base::text;
use crate::config::Workload;

/// A workload, and the node that runs it; none is the appliance.
pub(super) type Key = (String, Option<String>);

/// One workload, as `bridgehead workloads --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WorkloadStatus {
    pub name: String,
    /// None is the appliance, or, in state `waiting`, that no node runs it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    pub image: String,
    pub state: WorkloadState,
    /// What its image's health check found, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<Health>,
    /// On the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// On the appliance's address or the node's: `HOST:CONTAINER/PROTOCOL`.
    pub ports: Vec<String>,
    pub restarts: u64,
    /// Of its last end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// When it came into this state.
    #[serde(serialize_with = "text::micros")]
    pub since: Timestamp,
    /// Why it does not run, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    Starting,
    Running,
    /// It ended or failed, and is started again after a pause.
    Waiting,
    /// It ended, and its restart policy leaves it at that.
    Exited,
    Stopping,
}

/// What a health check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A workload that too few nodes run.
pub(super) fn short_of(workload: &Workload, why: String) -> WorkloadStatus {
    WorkloadStatus { error: Some(why), ..WorkloadStatus::new(workload, WorkloadState::Waiting) }
}

impl WorkloadStatus {
    /// Nowhere yet.
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

/// Where the workloads' tasks write how they are.
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
