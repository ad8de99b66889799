//! `/bridgehead.json` in a machine's own initrd: who the node is for this boot, and how it proves that. Read by
//! pxe-init's `session`.

use std::net::SocketAddrV4;

use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Document<'a> {
    /// As on a kernel's command line, and in place of what is there.
    pub settings: &'a [String],
    pub profile: &'a str,
    /// Where the appliance answers by TLS.
    pub appliance: SocketAddrV4,
    /// Its CA's certificate, in PEM.
    pub ca: &'a str,
    pub token: &'a str,
    /// Seconds since 1970: the node's own clock may never have been set.
    pub time: i64,
}

impl Document<'_> {
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("it has only text keys")
    }
}
