//! The kernel with which each machine booted last, and the trial of a new one: if a machine failed twice to reach stage
//! 1 with a kernel, it does not get that a third time, provided that another one has worked. Kept in the store.
//!
//! The evidence is the machine's requests. Its loader asks for a configuration, then for the kernel. If a machine asks
//! for a configuration again after it was sent the kernel, without a report from stage 1, the kernel has failed. So it
//! makes no difference whether the firmware restarts or GRUB returns to its loop.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use pxe_common::Mac;
use serde::{Deserialize, Serialize};

use crate::base::lock::Unpoisoned as _;
use crate::provision::boot::KernelFacts;
use crate::store::{Change, Document, ReadError, Store};

/// How often a machine gets a kernel with which it does not reach stage 1.
const CHANCES: u8 = 2;

/// The history of one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct History {
    /// The last kernel with which it reached stage 1.
    good: Option<KernelFacts>,
    /// The kernel that it was last told to boot.
    given: Option<KernelFacts>,
    /// A kernel other than the last good one, which it should boot.
    trial: Option<Trial>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Trial {
    /// [`KernelFacts::id`].
    kernel: String,
    /// It asked for the file.
    sent: bool,
    failures: u8,
}

impl History {
    /// The machine asks what to boot, and it should be `wanted`. Returns the last good kernel if that is to be sent
    /// instead.
    fn asked(&mut self, wanted: &KernelFacts) -> Option<KernelFacts> {
        let instead = match &self.good {
            Some(good) if good.id() == wanted.id() => {
                self.trial = None;
                None
            }
            good => {
                let trial = self.trial.take_if(|trial| trial.kernel == wanted.id());
                let mut trial = trial.unwrap_or(Trial { kernel: wanted.id(), sent: false, failures: 0 });
                trial.failures = trial.failures.saturating_add(u8::from(trial.sent));
                trial.sent = false;
                let instead = good.clone().filter(|_| trial.failures >= CHANCES);
                self.trial = Some(trial);
                instead
            }
        };
        self.given = Some(instead.clone().unwrap_or_else(|| wanted.clone()));
        instead
    }

    /// The machine fetches a kernel's file.
    fn fetches(&mut self, sha256: &str) {
        let given = self.given.as_ref().filter(|given| given.kernel.sha256 == sha256).map(KernelFacts::id);
        if let Some(trial) = self.trial.as_mut().filter(|trial| Some(&trial.kernel) == given.as_ref()) {
            trial.sent = true;
        }
    }

    /// The machine is in stage 1.
    fn came_up(&mut self) {
        let Some(given) = &self.given else { return };
        self.trial.take_if(|trial| trial.kernel == given.id());
        self.good = Some(given.clone());
    }
}

/// A handle on the trials. Cloning it is cheap. Nothing here waits for the disk, and nothing is written for a machine
/// that boots its last good kernel again.
#[derive(Clone)]
pub struct Trials(Arc<Mutex<Inner>>);

struct Inner {
    store: Store,
    machines: HashMap<Mac, History>,
}

impl Trials {
    /// Continues the stored trials.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let rows = store.reader().documents(Document::KernelTrial)?;
        let machines = rows.into_iter().filter_map(|(mac, history)| {
            let read = serde_json::from_str(&history).ok();
            if read.is_none() {
                tracing::warn!(%mac, "which kernel this machine came up with can't be read, and is forgotten");
            }
            Some((mac, read?))
        });
        let machines = machines.collect();
        Ok(Self(Arc::new(Mutex::new(Inner { store, machines }))))
    }

    /// The kernel to send instead of `wanted`: the machine's last good one, if `wanted` has failed too often.
    pub fn asked(&self, mac: Mac, wanted: &KernelFacts) -> Option<KernelFacts> {
        self.inner().change(mac, |history| history.asked(wanted))
    }

    pub fn fetches(&self, mac: Mac, sha256: &str) {
        self.inner().change(mac, |history| history.fetches(sha256));
    }

    pub fn came_up(&self, mac: Mac) {
        self.inner().change(mac, History::came_up);
    }

    /// Every machine tries this kernel again.
    pub fn try_again(&self, kernel: &KernelFacts) {
        let mut inner = self.inner();
        let tried = |history: &History| history.trial.as_ref().is_some_and(|t| t.kernel == kernel.id());
        let machines: Vec<Mac> =
            inner.machines.iter().filter(|(_, history)| tried(history)).map(|(mac, _)| *mac).collect();
        for mac in machines {
            inner.change(mac, |history| history.trial = None);
        }
    }

    /// The blobs that a machine may need for its last good kernel.
    pub fn blobs(&self) -> BTreeSet<String> {
        let inner = self.inner();
        let kernels = inner.machines.values().flat_map(|history| [&history.good, &history.given]);
        kernels.flatten().flat_map(|k| [k.kernel.sha256.clone(), k.stage1.sha256.clone()]).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unpoisoned()
    }
}

impl Inner {
    fn change<T>(&mut self, mac: Mac, change: impl FnOnce(&mut History) -> T) -> T {
        let history = self.machines.entry(mac).or_default();
        let before = history.clone();
        let done = change(history);
        if *history != before {
            let text = serde_json::to_string(history).expect("a history has only text keys");
            self.store.post(Change::PutDocument(Document::KernelTrial, mac, text));
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::boot::Part;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn kernel(name: &str) -> KernelFacts {
        let part = |what: &str| Part { sha256: format!("{name}-{what}"), len: 1, unpacked: 1 };
        KernelFacts { name: name.into(), kernel: part("kernel"), stage1: part("stage1"), two_stages: true }
    }

    /// A boot of a machine that asks twice for its configuration, as GRUB does. Returns the name of the kernel that it
    /// was sent.
    fn boot(history: &mut History, wanted: &KernelFacts, comes_up: bool) -> String {
        let first = history.asked(wanted);
        let second = history.asked(wanted);
        assert_eq!(first, second, "asking twice is no failure");
        let sent = second.unwrap_or_else(|| wanted.clone());
        history.fetches(&sent.kernel.sha256);
        if comes_up {
            history.came_up();
        }
        sent.name
    }

    #[test]
    fn a_kernel_that_fails_twice_gives_way_to_the_last_good_one() {
        let (old, new) = (kernel("old"), kernel("new"));
        let mut history = History::default();
        assert_eq!(boot(&mut history, &old, true), "old");
        assert_eq!(boot(&mut history, &new, false), "new");
        assert_eq!(boot(&mut history, &new, false), "new");
        assert_eq!(boot(&mut history, &new, true), "old");
        assert_eq!(boot(&mut history, &new, true), "old", "and stays away");
        let newer = kernel("newer");
        assert_eq!(boot(&mut history, &newer, true), "newer", "another one is tried");
        assert_eq!(boot(&mut history, &newer, true), "newer");
    }

    #[test]
    fn one_failure_is_forgiven_and_a_success_counts_for_good() {
        let (old, new) = (kernel("old"), kernel("new"));
        let mut history = History::default();
        boot(&mut history, &old, true);
        boot(&mut history, &new, false);
        assert_eq!(boot(&mut history, &new, true), "new");
        for _ in 0..5 {
            // The machine has booted with this once: a later failure is not the kernel's.
            assert_eq!(boot(&mut history, &new, false), "new");
        }
    }

    #[test]
    fn without_a_good_one_there_is_nothing_else_to_send() {
        let mut history = History::default();
        for _ in 0..5 {
            assert_eq!(boot(&mut history, &kernel("new"), false), "new");
        }
    }

    #[test]
    fn who_never_fetches_the_kernel_has_not_failed_with_it() {
        let (old, new) = (kernel("old"), kernel("new"));
        let mut history = History::default();
        boot(&mut history, &old, true);
        for _ in 0..5 {
            assert_eq!(history.asked(&new), None);
            history.fetches("something else");
        }
    }

    #[test]
    fn it_outlives_the_daemon_and_can_be_told_to_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Trials::open(Store::open(&dir.path().join("db")).unwrap()).unwrap();
        let close = |trials: Trials| trials.inner().store.flush();
        let (old, new) = (kernel("old"), kernel("new"));
        let trials = open();
        trials.asked(MAC, &old);
        trials.came_up(MAC);
        close(trials);
        for _ in 0..2 {
            let trials = open();
            assert_eq!(trials.asked(MAC, &new), None);
            trials.fetches(MAC, "new-kernel");
            close(trials);
        }
        let trials = open();
        assert_eq!(trials.asked(MAC, &new), Some(old));
        assert!(trials.blobs().contains("old-kernel") && trials.blobs().contains("old-stage1"));
        trials.try_again(&new);
        close(trials);
        assert_eq!(open().asked(MAC, &new), None);
    }
}
