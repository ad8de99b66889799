//! Whom nodes and appliance believe, and why: docs/trust.md.
//!
//! [`authority`] has the appliance's own CA.

pub mod authority;

pub use authority::{Authority, AuthorityError, Usage};
