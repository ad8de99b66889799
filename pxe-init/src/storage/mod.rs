//! The node's disks, as its profile's storage plan wants them: docs/storage.md.

mod description;
mod plan;
