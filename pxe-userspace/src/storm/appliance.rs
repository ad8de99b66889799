//! The appliance's own description, from its API, before any frame is sent to it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::StormError;
use super::engine::is_ours;
use crate::api::client::{AskError, Client, Place};
use crate::api::documents::{Lease, LeaseState, Profile, Status};
use crate::machines::Machine;

/// The daemon takes this long at most to see a new port and attach its programs.
const PORT_WITHIN: Duration = Duration::from_secs(5);

/// An appliance whose API answers.
pub(super) struct Appliance {
    client: Client,
    pub(super) status: Status,
}

impl Appliance {
    pub(super) fn ask(api: &Place) -> Result<Self, AskError> {
        let client = Client::new(api);
        let status = client.document(client.get("/api/status")?)?;
        Ok(Self { client, status })
    }

    /// Whether the appliance's bridge is one of this host's.
    pub(super) fn is_here(&self) -> bool {
        let bridge = &self.status.bridge;
        let path = format!("/sys/class/net/{}/address", bridge.name);
        std::fs::read_to_string(path).is_ok_and(|mac| mac.trim() == bridge.mac.to_string())
    }

    /// The profile exists, and can be booted.
    pub(super) fn check_profile(&self, name: &str) -> Result<(), StormError> {
        let profiles: Vec<Profile> = self.client.document(self.client.get("/api/profiles")?)?;
        let Some(profile) = profiles.iter().find(|p| p.name == name) else {
            let names = profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(StormError::NoProfile { name: name.to_owned(), names });
        };
        match (profile.ready, &profile.problem) {
            (true, _) => Ok(()),
            (false, problem) => Err(StormError::NotReady {
                name: name.to_owned(),
                problem: problem.clone().unwrap_or_else(|| "it is being brought in".to_owned()),
            }),
        }
    }

    /// What the machine with this address boots.
    pub(super) fn profile_of(&self, mac: &str) -> Result<Option<String>, StormError> {
        let machine: Machine = self.client.document(self.client.get(&format!("/api/nodes/{mac}"))?)?;
        Ok(machine.profile)
    }

    /// Addresses for our machines; `None` where the daemon hands out none.
    pub(super) fn free_addresses(&self) -> Result<Option<u32>, StormError> {
        let Some([first, last]) = self.status.pool else { return Ok(None) };
        let leases: Vec<Lease> = self.client.document(self.client.get("/api/leases")?)?;
        let size = last.to_bits().saturating_sub(first.to_bits()) + 1;
        let in_pool = |address: Ipv4Addr| (first..=last).contains(&address);
        let taken = leases.iter().filter(|lease| {
            let held = matches!(lease.state, LeaseState::Bound | LeaseState::Offered | LeaseState::Declined);
            held && in_pool(lease.address) && !is_ours(lease.mac)
        });
        Ok(Some(size.saturating_sub(taken.count().try_into().unwrap_or(u32::MAX))))
    }

    /// Waits until the daemon serves `port` as one of its own.
    pub(super) fn wait_for_port(&mut self, port: &str) -> Result<(), StormError> {
        let end = Instant::now() + PORT_WITHIN;
        while !self.status.ports.iter().any(|p| p.name == port) {
            if Instant::now() > end {
                return Err(StormError::PortUnseen { port: port.to_owned() });
            }
            std::thread::sleep(Duration::from_millis(50));
            self.status = self.client.document(self.client.get("/api/status")?)?;
        }
        Ok(())
    }
}
