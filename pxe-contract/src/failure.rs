//! Why a request could not be served: the body of every answer that is an error.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// The body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDocument {
    /// What is wrong.
    pub error: String,
    /// What to do.
    #[serde(default)]
    pub hint: String,
}
