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

    /// Does not compile if one of the types has `Debug`: then both traits fit, and it is not clear which is meant.
    macro_rules! has_no_debug {
        ($($secret:ty),* $(,)?) => {$({
            trait Fits<Which> {
                fn check() {}
            }
            struct WithDebug;
            impl<T: ?Sized> Fits<()> for T {}
            impl<T: ?Sized + std::fmt::Debug> Fits<WithDebug> for T {}
            <$secret as Fits<_>>::check();
        })*};
    }

    #[test]
    fn no_secret_can_be_printed_by_mistake() {
        has_no_debug!(
            crate::nodes::trust::Authority,
            crate::nodes::trust::Identity,
            crate::nodes::trust::Trust,
            crate::provision::storage::Storage,
            crate::provision::storage::keys::Keys,
            crate::operate::access::Code,
            crate::machines::rescue::Rescues,
            crate::api::documents::NewToken,
            crate::api::documents::WayIn,
            pxe_contract::ticket::Ticket,
            pxe_contract::ticket::SessionRequest<pxe_common::Mac>,
            pxe_contract::storage::KeysAnswer,
        );
    }

    /// systemd judges; its threshold is in tenths.
    #[test]
    fn the_unit_leaves_little() {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bridgehead.service");
        let mut analyze = std::process::Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--threshold=30", "--no-pager"]).arg(unit);
        match analyze.output() {
            Ok(judged) => assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout)),
            Err(error) => println!("skipped: systemd-analyze: {error}"),
        }
    }

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
