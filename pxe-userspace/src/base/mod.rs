//! What any room may use, and what knows of no room.

pub(crate) mod lock;
