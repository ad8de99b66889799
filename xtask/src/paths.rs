//! Paths in the working copy.

use std::path::{Path, PathBuf};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// `target/NAME`: everything that is built is stored there, whatever `CARGO_TARGET_DIR` is, because the daemon's build
/// script and default configuration look there.
pub(crate) fn target(name: &str) -> PathBuf {
    root().join("target").join(name)
}
