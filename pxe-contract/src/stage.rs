//! The stages of a machine's boot.

use serde::{Deserialize, Serialize};

/// The order is the order of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The machine asks for an address.
    Discover,
    /// It was offered one.
    Offer,
    /// It requests the one that it was offered.
    Request,
    /// It got the address.
    Ack,
    /// The first-stage file was sent whole.
    Loader,
    /// grub.cfg or an iPXE script was sent.
    Config,
    /// The kernel was sent whole.
    Kernel,
    /// An initrd was sent whole.
    Initrd,
    /// pxe-init runs.
    Stage1,
    /// The root file system is available and verified.
    Image,
    /// The image's program runs.
    Workload,
    /// The boot ended early; the event's `cause` says why.
    Failed,
    /// Not a stage: something about the machine that needs attention.
    Warning,
}

impl Stage {
    /// In order.
    pub const ALL: [Self; 13] = [
        Self::Discover,
        Self::Offer,
        Self::Request,
        Self::Ack,
        Self::Loader,
        Self::Config,
        Self::Kernel,
        Self::Initrd,
        Self::Stage1,
        Self::Image,
        Self::Workload,
        Self::Failed,
        Self::Warning,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_in_order() {
        assert!(Stage::ALL.is_sorted());
        assert!(Stage::ALL.iter().enumerate().all(|(n, stage)| *stage as usize == n));
        assert_eq!(Stage::ALL.last(), Some(&Stage::Warning), "the last one that there is");
    }
}
