//! Keeps the daemon's files and memory, which contain keys, from others.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;

use anyhow::Context as _;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

/// The state directory's mode.
const MODE: u32 = 0o700;

/// No file that others can read, no core dump, and no access to the memory by other processes of the same user
/// (ptrace(2), `/proc/PID/mem`).
pub(super) fn process() {
    umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = set_dumpable(false).and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0)) {
        tracing::warn!(%error, "a crash may leave a core dump, with keys in it");
    }
}

/// Creates the state directory, or removes others' permissions from an existing one.
pub(super) fn directory(state: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(MODE).create(state).with_context(|| {
        format!("state-dir {} can't be made: run as root, or name a directory that is yours", state.display())
    })?;
    let mode = std::fs::metadata(state).with_context(|| format!("state-dir {}", state.display()))?.mode();
    if mode & 0o777 != MODE {
        std::fs::set_permissions(state, PermissionsExt::from_mode(MODE)).with_context(|| {
            format!(
                "state-dir {} is open to others, and can't be closed: name a directory that is yours",
                state.display()
            )
        })?;
        tracing::info!(path = %state.display(), "the state directory was open to others, and is closed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_its_owners_alone_from_now_on() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        let new = dir.path().join("a/b");
        directory(&new).unwrap();
        assert_eq!(mode(&new), MODE);
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        directory(&new).unwrap();
        assert_eq!(mode(&new), MODE);
    }
}
