//! Who was promised which address on the wire, and until when.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Instant;

/// The machine to which an address was last promised, and the promise's end.
#[derive(Default)]
pub(super) struct Promises(HashMap<Ipv4Addr, (u32, Instant)>);

impl Promises {
    /// The present holder of the address, if it is another one than `machine`.
    pub(super) fn rival(&self, address: Ipv4Addr, machine: u32, now: Instant) -> Option<u32> {
        self.0
            .get(&address)
            .filter(|(holder, until)| *holder != machine && *until > now)
            .map(|(holder, _)| *holder)
    }

    pub(super) fn promise(&mut self, address: Ipv4Addr, machine: u32, until: Instant) {
        self.0.insert(address, (machine, until));
    }

    /// The end of the promise to this machine, if it is live.
    pub(super) fn live(&self, address: Ipv4Addr, machine: u32, now: Instant) -> Option<Instant> {
        self.0
            .get(&address)
            .filter(|(holder, until)| *holder == machine && *until > now)
            .map(|(_, until)| *until)
    }

    /// The machine gives the address back.
    pub(super) fn end(&mut self, address: Ipv4Addr, machine: u32) {
        if self.0.get(&address).is_some_and(|(holder, _)| *holder == machine) {
            self.0.remove(&address);
        }
    }

    /// The machine that answers ARP requests for the address.
    pub(super) fn holder(&self, address: Ipv4Addr) -> Option<u32> {
        self.0.get(&address).map(|(machine, _)| *machine)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_is_one_machines_until_it_ends() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let address = Ipv4Addr::new(10, 77, 16, 1);
        let mut promises = Promises::default();
        promises.promise(address, 1, later(30));
        assert_eq!(promises.rival(address, 1, later(29)), None);
        assert_eq!(promises.rival(address, 2, later(29)), Some(1));
        assert_eq!(promises.rival(address, 2, later(30)), None, "the promise has ended");
        assert_eq!(promises.live(address, 1, later(30)), None);
        promises.end(address, 2);
        assert_eq!(promises.rival(address, 2, later(29)), Some(1), "not the other one's to give back");
        promises.end(address, 1);
        assert_eq!(promises.rival(address, 2, later(29)), None);
    }
}
