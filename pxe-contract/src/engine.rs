//! Certificates for the Docker engine of a node: `POST /node/engine`. Nothing in it is secret.

use alloc::string::String;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The body. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PapersRequest<M> {
    /// Whose engine.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
    /// A PKCS #10 request in DER, in hexadecimal.
    pub request: String,
}

/// The answer, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PapersAnswer {
    /// The CA whose clients the engine is to obey.
    pub authority: String,
    /// For the key of the request.
    pub certificate: String,
}
