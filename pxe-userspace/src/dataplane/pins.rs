//! What stays when the daemon is killed: maps and links, pinned on a bpffs.
//!
//! ```text
//! /sys/fs/bpf/bridgehead-HASH/    the hash of the state directory's path
//!     v3/SESSIONS, ..             the maps, by the version of their layout
//!     links/tc-7, xdp-7           the links of the port with index 7
//! ```

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aya::pin::PinError;
use aya::programs::links::{FdLink, PinnedLink};
use pxe_common::map::LAYOUT_VERSION;
use pxe_common::verdict::Hook;
use sha2::{Digest as _, Sha256};

const BPFFS: &str = "/sys/fs/bpf";

/// One daemon's directory on the bpffs.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// The directory for the daemon with this state directory. Nothing is created yet.
    pub fn of(state_dir: &Path) -> Self {
        let path = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
        let hash = crate::base::text::hex(&Sha256::digest(path.as_os_str().as_bytes())[..8]);
        Self(Path::new(BPFFS).join(format!("bridgehead-{hash}")))
    }

    /// Removes everything. That detaches links and frees maps that nobody holds open.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Creates the directories, and removes maps of other layouts. Programs that still use those
    /// hold them until they are replaced.
    pub(super) fn set_up(&self) -> io::Result<()> {
        fs::create_dir_all(self.maps())?;
        fs::create_dir_all(self.links())?;
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path != self.maps() && path != self.links() {
                tracing::info!(path = %path.display(), "maps of another layout: their transfers begin again");
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// Where the map `name` is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The link that an earlier daemon left on the port with this index.
    pub(super) fn left(&self, hook: Hook, port: u32) -> Option<FdLink> {
        PinnedLink::from_pin(self.link(hook, port)).ok().map(FdLink::from)
    }

    /// Pins a link, which then stays attached without us.
    pub(super) fn keep(&self, hook: Hook, port: u32, link: FdLink) -> Result<FdLink, PinError> {
        self.forget(hook, port);
        Ok(link.pin(self.link(hook, port))?.into())
    }

    /// Detaches what an earlier daemon left on ports other than these.
    pub(super) fn keep_only(&self, ports: &[u32]) -> io::Result<()> {
        for entry in fs::read_dir(self.links())? {
            let path = entry?.path();
            if !ports
                .iter()
                .any(|port| path == self.link(Hook::Tc, *port) || path == self.link(Hook::Xdp, *port))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Unpins the link of a port; it is detached when nobody holds it.
    pub(super) fn forget(&self, hook: Hook, port: u32) {
        // Missing if it was never pinned.
        let _ = fs::remove_file(self.link(hook, port));
    }

    fn maps(&self) -> PathBuf {
        self.0.join(format!("v{LAYOUT_VERSION}"))
    }

    fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    fn link(&self, hook: Hook, port: u32) -> PathBuf {
        self.links().join(format!("{}-{port}", hook.name()))
    }
}
