//! What is said to the appliance: is there a round, and this is what I lack.

use std::net::SocketAddrV4;

use pxe_contract::paths;
use serde::{Deserialize, Serialize};

use crate::appliance::Appliance;

/// How a round goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// After the highest sequence number that came.
    pub(super) sequence: u32,
    /// Packets that came.
    pub(super) came: u64,
    pub(super) lacks: Vec<Lack>,
    /// Nothing more is wanted of the round.
    pub(super) done: bool,
}

/// Blocks, both included, of which so many symbols are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Lack {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) symbols: u32,
}

/// Where and how a round is to be received.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Offer {
    pub(super) group: SocketAddrV4,
    pub(super) symbol_size: u16,
    pub(super) block_symbols: u16,
    /// Milliseconds between reports.
    pub(super) report_every: u64,
    /// Bytes a second that HTTP would bring.
    pub(super) http_rate: u64,
}

/// The rounds of one image, as the appliance has them.
#[derive(Clone)]
pub(super) struct Rounds {
    appliance: Appliance,
    path: String,
    /// The appliance knows no rounds, or none of this image.
    never: bool,
}

impl Rounds {
    pub(super) fn of(sha256: &str, appliance: Appliance) -> Self {
        Self { appliance, path: paths::round(sha256), never: false }
    }

    /// The round to listen to, if there is one. No answer means that there is none.
    pub(super) fn ask(&mut self, report: &Report) -> Option<Offer> {
        if self.never {
            return None;
        }
        let report = serde_json::to_vec(report).ok()?;
        let (status, body) = self.appliance.exchange(&self.path, &report).ok()?;
        self.never = (400..500).contains(&status);
        (status == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// Nothing more is wanted.
    pub(super) fn leave(&mut self) {
        let _ = self.ask(&Report { done: true, ..Report::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_those_that_the_appliance_knows() {
        let example: serde_json::Value = serde_json::from_str(include_str!("example.json")).unwrap();
        let lacks =
            vec![Lack { first: 3, last: 3, symbols: 12 }, Lack { first: 5, last: 140, symbols: 1024 }];
        let report = Report { sequence: 7000, came: 6900, lacks, done: false };
        assert_eq!(serde_json::to_value(report).unwrap(), example["report"]);
        let offer: Offer = serde_json::from_value(example["offer"].clone()).unwrap();
        let group = "239.255.77.1:7477".parse().unwrap();
        assert_eq!((offer.group, offer.symbol_size, offer.block_symbols), (group, 1408, 1024));
        assert_eq!((offer.report_every, offer.http_rate), (640, 195_000));
    }
}
