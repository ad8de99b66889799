//! How far a machine is.

use serde::{Deserialize, Serialize};

/// The order is the order of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Discover,
    Offer,
    Request,
    Ack,
    /// The first-stage file was sent whole.
    Loader,
    /// grub.cfg or an iPXE script was sent.
    Config,
    Kernel,
    Initrd,
    /// pxe-init runs.
    Stage1,
    /// The root file system is there and verified.
    Image,
    Workload,
    /// The boot ended early; the event's `cause` says why.
    Failed,
    /// No stage: something about the machine that somebody should look at.
    Warning,
}
