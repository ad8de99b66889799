//! app

use std::path::Path;

use crate::config::Config;

/// Runs the appliance until it is told to stop.
pub fn serve(_config: Config, _file: &Path) -> anyhow::Result<()> {
    anyhow::bail!("serve is wired elsewhere")
}
