//! What a machine loads: [`plan`] decides, [`grub`] and [`ipxe`] write it in the loader's language. Pure: the same
//! machine, profile and image give the same text.
//!
//! Paths here are those of [`crate::serve::files::Catalog`], by TFTP and by HTTP alike.

pub mod grub;
pub mod ipxe;
pub mod plan;

#[cfg(test)]
mod tests;

use pxe_common::Mac;

pub use plan::{Appliance, Choice, CmdlineError, ImageFacts, KernelFacts, Part, Plan, Refusal};

/// A path that the daemon answers itself, parsed.
pub type Generated = pxe_contract::paths::Generated<Mac>;
