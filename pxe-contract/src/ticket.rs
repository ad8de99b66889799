//! A node's identity for one boot, and its proof: `/bridgehead.json` in the machine's own initrd, and the session for
//! which its token is traded, once, by `POST /node/session` over TLS. See docs/trust.md.
//!
//! Types with a secret have no `Debug`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::net::SocketAddrV4;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// `/bridgehead.json`.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ticket {
    /// As on a kernel's command line, over which they take precedence ([`crate::settings`]).
    pub settings: Vec<String>,
    /// The name of the profile, for people.
    #[serde(default)]
    pub profile: String,
    /// Where the appliance answers over TLS.
    pub appliance: SocketAddrV4,
    /// Its CA's certificate, in PEM.
    pub ca: String,
    /// Valid for one session, for some minutes.
    pub token: String,
    /// Seconds since 1970, when this was made: the node's own clock may never have been set.
    pub time: u64,
}

/// The body of `POST /node/session`. `M` is a MAC address as its holder keeps it.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionRequest<M> {
    /// Whose boot.
    #[serde(
        with = "crate::text",
        bound(serialize = "M: Display", deserialize = "M: FromStr, M::Err: Display")
    )]
    pub mac: M,
    /// A PKCS #10 request in DER, in hexadecimal.
    pub request: String,
    /// The ticket's.
    pub token: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionAnswer {
    /// For the key of the request, in PEM. The node authenticates with it from then on.
    pub certificate: String,
}
