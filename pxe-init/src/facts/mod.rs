//! What this machine is made of, told to the appliance in each boot: docs/machines.md.
//!
//! A thread looks and tells, and no boot waits for it. It tells once as soon as the disks are known, and once more when it
//! knows who is at the other end of the link. [`smbios`] and [`lldp`] read what firmware and switches say, `sysfs` asks
//! the kernel.

mod listen;
pub mod lldp;
pub mod smbios;
mod sysfs;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pxe_contract::backoff::Backoff;
use pxe_contract::facts::{Facts, Told};
use pxe_contract::paths::node;

use crate::appliance::{Appliance, words};
use crate::lock::Unpoisoned as _;
use crate::modules::Modules;
use crate::say;
use listen::Listening;

/// The telling of this boot's facts. Cloning it is cheap.
#[derive(Clone)]
pub(crate) struct Telling(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    /// The facts, once they were told without the neighbours.
    told: Option<Facts>,
    /// All is told that will be.
    over: bool,
}

impl Telling {
    /// Begins. Without an appliance nothing is told.
    pub(crate) fn start(appliance: Option<Appliance>, mac: &str) -> Self {
        let look = || {
            // Disks that hold no image are of no use to the boot, so nobody may have looked for them.
            if let Ok(mut modules) = Modules::open(Path::new("/")) {
                modules.load_for_disks();
            }
            sysfs::collect(Path::new("/"))
        };
        Self::begin(appliance, mac, look)
    }

    /// Goes on in another process, which has the facts and no way to look: only the neighbours are missing.
    pub(crate) fn go_on(appliance: Appliance, mac: &str, facts: Facts) -> Self {
        Self::begin(Some(appliance), mac, move || facts)
    }

    fn begin(appliance: Option<Appliance>, mac: &str, look: impl FnOnce() -> Facts + Send + 'static) -> Self {
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let telling = Self(state);
        let Some(appliance) = appliance else {
            telling.set(|state| state.over = true);
            return telling;
        };
        // From now on, so that no frame is missed.
        let listening = Listening::start();
        let (its, mac) = (telling.clone(), mac.to_owned());
        let run = move || its.run(&appliance, mac, listening, look);
        if let Err(error) = std::thread::Builder::new().name("facts".into()).spawn(run) {
            say!("the machine's facts are not told: {error}");
            telling.set(|state| state.over = true);
        }
        telling
    }

    fn run(
        &self,
        appliance: &Appliance,
        mac: String,
        listening: std::io::Result<Listening>,
        look: impl FnOnce() -> Facts,
    ) {
        let mut told = Told { mac, facts: look() };
        let taken = tell(appliance, &told);
        self.set(|state| state.told = Some(told.facts.clone()));
        match listening {
            Ok(listening) if taken => {
                told.facts.neighbours = Some(listening.whole_interval());
                told.facts.bound();
                tell(appliance, &told);
            }
            Ok(_) => {}
            Err(error) => say!("neighbours are not heard: {error}"),
        }
        self.set(|state| state.over = true);
    }

    /// Waits until they are told, for a limited time; neighbours may be heard later. The facts, if they were told.
    pub(crate) fn told(&self, at_most: Duration) -> Option<Facts> {
        let state = self.0.0.lock().unpoisoned();
        let waits = |state: &mut State| state.told.is_none() && !state.over;
        let Ok((state, _)) = self.0.1.wait_timeout_while(state, at_most, waits) else { return None };
        state.told.clone()
    }

    /// Whether nothing more will be told.
    pub(crate) fn is_over(&self) -> bool {
        self.0.0.lock().unpoisoned().over
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unpoisoned());
        self.0.1.notify_all();
    }
}

/// How long an appliance that can't be reached is tried.
const PATIENCE: Duration = Duration::from_secs(600);

/// Sends the facts until the appliance accepts them, or refuses them for good. Whether it took them.
fn tell(appliance: &Appliance, told: &Told<String>) -> bool {
    let body = serde_json::to_vec(told).expect("facts have only text keys");
    let (started, mut pauses) =
        (Instant::now(), Backoff::new(Duration::from_millis(100), Duration::from_secs(5)));
    loop {
        match appliance.exchange(node::FACTS, &body) {
            Ok((200..=299, _)) => return true,
            // An appliance of an earlier version.
            Ok((404, _)) => return false,
            // Too many at once.
            Ok((429 | 500..=599, _)) | Err(_) if started.elapsed() < PATIENCE => {
                std::thread::sleep(pauses.pause());
            }
            Ok((status, answer)) => {
                say!("the appliance refused the machine's facts: {}", words(status, &answer));
                return false;
            }
            Err(error) => {
                say!("the machine's facts were not told: {error}");
                return false;
            }
        }
    }
}
