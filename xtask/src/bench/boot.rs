//! The boot benchmark.
use ::lab::world::World;
use anyhow::Result;
pub(crate) fn boot(_world: &World, _pairs: u32) -> Result<()> {
    anyhow::bail!("not yet")
}
