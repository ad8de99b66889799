//! One daemon per state directory.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held while the daemon runs; the kernel releases it however the daemon ends.
pub(super) fn take(state: &Path) -> anyhow::Result<Flock<File>> {
    let path = state.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "another `bridgehead serve` uses {}: stop it, or give this one a state-dir of its own",
            state.display()
        ),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}
