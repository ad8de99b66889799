//! Boots that stopped, because they failed or are held: how somebody can log in, and what the node reports meanwhile.

use alloc::string::String;
use core::fmt::Display;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// `/rescue.json`: how root logs in by SSH, once.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Login {
    /// In the format of /etc/shadow.
    pub password_hash: String,
}

/// The body of `POST /node/held` and `POST /node/failed`. `M` is a MAC address as its holder keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Standing<M> {
    /// Of the SSH server, if there is one: `SHA256:…`, as ssh shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Whether somebody has logged in, if there is a server: then the password is no longer valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logged_in: Option<bool>,
    /// The machine that has stopped.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
}
