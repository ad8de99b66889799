//! What any room may use, and what knows of no room.

pub(crate) mod clock;
pub(crate) mod lock;
pub mod secret_file;
pub(crate) mod table;
pub mod text;
