//! Set-up: what must be installed for which command.

use anyhow::Result;

/// What a command needs installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Build,
    /// Build, and QEMU, firmware, a Docker engine.
    Lab,
    /// Lab, and the clients and judges of the tests.
    Test,
    /// Lab, and the peers of the benchmarks.
    Bench,
    All,
}

/// Installs what is missing.
pub(crate) fn setup(_needs: Needs) -> Result<()> {
    Ok(())
}
