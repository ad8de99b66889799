//! What every module may use, and what depends on none of them.

pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod lock;
pub mod sealing;
pub mod secret_file;
pub(crate) mod table;
pub mod text;
