//! Requests to the appliance: whether there is a round, and which symbols this node lacks.

use pxe_contract::paths;
use pxe_contract::round::{Offer, Reception};

use crate::appliance::Appliance;

/// The appliance's rounds of one image.
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
    pub(super) fn ask(&mut self, reception: &Reception) -> Option<Offer> {
        if self.never {
            return None;
        }
        let reception = serde_json::to_vec(reception).ok()?;
        let (status, body) = self.appliance.exchange(&self.path, &reception).ok()?;
        self.never = (400..500).contains(&status);
        (status == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// Tells the appliance that this node needs nothing more.
    pub(super) fn leave(&mut self) {
        let _ = self.ask(&Reception { done: true, ..Reception::default() });
    }
}
