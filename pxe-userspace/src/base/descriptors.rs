//! Shares of the process's file descriptors, so that no single use takes all of them.

use nix::sys::resource::{Resource, getrlimit};

/// Descriptors that machines may make the daemon hold open. The rest is for the API, the database, leases and images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Files that are sent by TFTP.
    pub(crate) transfers: usize,
    /// Connections to the boot listeners.
    pub(crate) connections: usize,
}

/// The shares of the process's current limit.
pub(crate) fn shares() -> Shares {
    // If the limit can't be read, that of most systems.
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    of(usize::try_from(limit).unwrap_or(usize::MAX))
}

fn of(limit: usize) -> Shares {
    let share = limit / 8 * 3;
    Shares { transfers: share, connections: share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_left() {
        for limit in [64, 600, 1024, 8192, 65_536, usize::MAX] {
            let Shares { transfers, connections } = of(limit);
            assert!(transfers > 0 && transfers + connections <= limit / 4 * 3, "{limit}");
        }
    }
}
