//! The node's disks, as its profile's storage plan wants them: docs/storage.md. [`plan`] decides, `probe` examines
//! the disks, `apply` performs; step by step, until every volume is mounted below the image's root.

mod apply;
pub(crate) mod keys;
mod plan;
mod probe;
mod remote;
mod seen;
mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::umount;

use crate::appliance::Told;
use crate::image::Image;
use crate::modules::{Devices, Modules};
use crate::say;
use apply::{ApplyError, Applying};
use keys::Keys;
use plan::Refusal;
use probe::ProbeError;
pub(crate) use probe::{is_disk, serial};
use pxe_contract::paths::file;
use pxe_contract::settings::Settings;
use pxe_contract::storage::{Storage, Volume};
use remote::RemoteError;

/// Where the appliance puts the plan, and the root of the modules that come with the tools.
const PLAN: &str = file::STORAGE;
pub(crate) const MODULES: &str = "/storage";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error("{PLAN}: {0}")]
    Read(io::Error),
    #[error("{PLAN}: {0}; this pxe-init and the appliance are of different versions")]
    Invalid(serde_json::Error),
    #[error("storage: {0}")]
    Refused(#[from] Refusal),
    #[error("storage: {0}")]
    Probe(#[from] ProbeError),
    #[error("storage: {0}")]
    Remote(#[from] RemoteError),
    #[error("storage: {0}")]
    Apply(#[from] ApplyError),
    #[error("storage: the plan comes to no end after {0} rounds, which is a bug")]
    Endless(usize),
}

/// If no disk appears for this long, all disks are there. Controllers detect disks in the background, and
/// what an absent disk already holds must not be made on a blank one.
const SETTLED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// The most rounds: each makes at least one layer of table, array, LUKS, its opening, file system, mount.
const ROUNDS: usize = 16;

/// Carries out the node's plan, if it has one. Returns the mounts as text.
pub(crate) fn bring_up(image: &Image, told: &Told) -> Result<Option<String>, StorageError> {
    let text = match fs::read(PLAN) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StorageError::Read(e)),
    };
    let wanted: Storage = serde_json::from_slice(&text).map_err(StorageError::Invalid)?;
    let settings = &told.settings;
    bring_disks(&wanted, settings)?;
    let keys = Keys::new(told);
    let mut applying = Applying { image, keys, new: BTreeSet::new(), mounted: BTreeSet::new() };
    for _ in 0..ROUNDS {
        let seen = probe::look(&wanted, &applying.mounted)?;
        let actions = plan::plan(&wanted, &seen)?;
        if actions.is_empty() {
            for mount in &wanted.mounts {
                remote::mount_nfs(mount, image, settings)?;
            }
            return Ok(Some(summary(&wanted)));
        }
        for action in &actions {
            applying.apply(action)?;
        }
    }
    Err(StorageError::Endless(ROUNDS))
}

/// Loads drivers, and logs in to targets, until every disk of the plan is there or no more appear.
fn bring_disks(wanted: &Storage, settings: &Settings) -> Result<(), StorageError> {
    // The drivers for a kernel of the image's own are in the image.
    let modules = [MODULES, "/image"].iter().find_map(|root| Modules::open(Path::new(root)).ok());
    let mut modules = modules.or_else(|| {
        say!("storage: there are no drivers for this kernel; it needs those of its disks built in");
        None
    });
    if let Some(modules) = &mut modules {
        remote::load(modules, wanted);
    }
    remote::log_in(wanted, settings)?;
    if wanted.disks.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let mut names = BTreeSet::new();
    let mut changed = start;
    loop {
        if let Some(modules) = &mut modules {
            modules.load_for_devices(Devices::All);
        }
        let now = probe::disk_names();
        if now != names {
            (names, changed) = (now, Instant::now());
            if plan::is_complete(wanted, &probe::look(wanted, &BTreeSet::new())?) {
                return Ok(());
            }
        }
        if changed.elapsed() >= SETTLED || start.elapsed() >= PATIENCE {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Unmounts the volumes, once nothing runs any more that could use them: a clean file system and a clean array
/// need no recovery at the next boot.
pub(crate) fn put_away() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The last one mounted is on top.
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (device, at) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kind = words.next().unwrap_or_default();
        if !at.starts_with("/image/") {
            continue;
        }
        if device.starts_with("/dev/") && umount(at).is_err() {
            say!("{at} could not be unmounted; its journal will be replayed");
        } else if kind.starts_with("nfs") {
            remote::unmount(at);
        }
    }
}

fn summary(wanted: &Storage) -> String {
    let volume = |(index, volume): (usize, &Volume)| {
        let mut words = format!("{} at {}", volume.name, volume.mount);
        if volume.raid.is_some() {
            let device = plan::array_device(index);
            let missing = fs::read_to_string(format!("/sys/block/{}/md/degraded", &device[5..]));
            let missing: u32 = missing.ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
            if missing > 0 {
                words += &format!(" (its array lacks {missing} of its disks)");
            }
        }
        words
    };
    let volumes = wanted.volumes.iter().enumerate().map(volume);
    let mounts = wanted.mounts.iter().map(|m| format!("{}:{} at {}", m.server, m.path, m.mount));
    let all: Vec<String> = volumes.chain(mounts).collect();
    format!("storage {}: {}", wanted.plan, all.join(", "))
}
