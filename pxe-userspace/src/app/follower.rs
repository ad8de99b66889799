//! The parts that depend on the progress of boots, in the order in which they must be notified.

use std::net::Ipv4Addr;

use pxe_common::Mac;
use pxe_contract::paths::ImagePart;

use crate::api::Connections;
use crate::machines::holds::Holds;
use crate::machines::rescue::Rescues;
use crate::machines::timeline::{Event, Follower, Stage};
use crate::nodes::trust::Trust;
use crate::operate::launch::Launches;
use crate::provision::boot::Generated;
use crate::provision::trials::Trials;
use crate::serve::dhcp::Dhcp;

/// The parts with state about a machine's present boot, or that wait for its end. Cloning it is cheap.
#[derive(Clone)]
pub(super) struct Boots {
    pub(super) connections: Connections,
    pub(super) holds: Holds,
    pub(super) rescues: Rescues,
    pub(super) trials: Trials,
    pub(super) trust: Trust,
    pub(super) dhcp: Dhcp,
    pub(super) launches: Launches,
}

impl Follower for Boots {
    fn began(&self, mac: Mac, address: Option<Ipv4Addr>) {
        // The machine has lost its connections, and GRUB will reuse their ports.
        if let Some(address) = address {
            self.connections.forget(address.into());
        }
        self.trust.restarted(mac);
        self.rescues.restarted(mac);
        self.holds.restarted(mac);
    }

    fn reached(&self, mac: Mac, stage: Stage, detail: Option<&str>) {
        if stage == Stage::Kernel
            // The kernel was sent completely.
            && let Some(path) = detail
            && let Some(Generated::Image { digest, part: ImagePart::Kernel }) =
                Generated::parse(path.trim_start_matches('/'))
        {
            self.trials.fetches(mac, &digest);
        }
        if stage == Stage::Stage1 {
            self.trials.came_up(mac);
        }
        self.dhcp.reached(mac, stage);
    }

    fn happened(&self, event: &Event) {
        self.launches.happened(event);
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
