//! Hears LLDP frames on the links that are up.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nameindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, recvfrom};
use pxe_contract::facts::{NICS_MAX, Neighbour};

use super::lldp;
use crate::system;

/// Senders repeat themselves every 30 s (IEEE 802.1AB-2016, `msgTxInterval`); a little more, because nobody's clock is
/// exact.
const INTERVAL: Duration = Duration::from_secs(31);

/// Neighbours of one link: behind a hub, or a bridge that forwards what it should not.
const PER_LINK: usize = 4;

/// A socket on which frames queue from the start.
pub(super) struct Listening {
    socket: OwnedFd,
    until: Instant,
    links: Vec<(u32, String)>,
}

impl Listening {
    pub(super) fn start() -> io::Result<Self> {
        let socket = system::packet_socket(lldp::ETHERTYPE)?;
        let mut links = Vec::new();
        for link in &if_nameindex()? {
            let name = link.name().to_string_lossy().into_owned();
            if name == "lo" || !is_up(&name) {
                continue;
            }
            for group in lldp::GROUPS {
                // A card without a filter receives them all the same.
                let _ = system::join_group(&socket, link.index(), group);
            }
            links.push((link.index(), name));
        }
        Ok(Self { socket, until: Instant::now() + INTERVAL, links })
    }

    /// Who was heard within an interval. Ends as soon as every link has one.
    pub(super) fn whole_interval(self) -> Vec<Neighbour> {
        let mut heard: Vec<Neighbour> = Vec::new();
        loop {
            let is_heard = |name: &String| heard.iter().any(|neighbour| neighbour.nic == *name);
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.links.is_empty() || self.links.iter().all(|(_, name)| is_heard(name)) {
                return heard;
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout);
            while let Ok((len, index)) = self.receive() {
                let Some((_, name)) = self.links.iter().find(|(link, _)| *link == index) else { continue };
                if let Some(neighbour) = lldp::parse(&len) {
                    enter(&mut heard, Neighbour { nic: name.clone(), ..neighbour });
                }
            }
        }
    }

    /// A frame, and the link that it came by.
    fn receive(&self) -> Result<(Vec<u8>, u32), Errno> {
        // An LLDPDU is no longer than a frame.
        let mut frame = vec![0; 1600];
        let (len, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame)?;
        frame.truncate(len);
        Ok((frame, from.map_or(0, |from| from.ifindex() as u32)))
    }
}

/// The newest of each sender, and few of them: anybody can send such frames.
fn enter(heard: &mut Vec<Neighbour>, neighbour: Neighbour) {
    let same = |other: &&mut Neighbour| {
        other.nic == neighbour.nic && other.chassis == neighbour.chassis && other.port == neighbour.port
    };
    if let Some(before) = heard.iter_mut().find(same) {
        *before = neighbour;
    } else if heard.len() < NICS_MAX
        && heard.iter().filter(|other| other.nic == neighbour.nic).count() < PER_LINK
    {
        heard.push(neighbour);
    }
}

fn is_up(name: &str) -> bool {
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap_or_default();
    let flags = flags.trim().strip_prefix("0x").and_then(|flags| u32::from_str_radix(flags, 16).ok());
    flags.is_none_or(|flags| flags & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_senders_fills_nothing() {
        let mut heard = Vec::new();
        for n in 0..10_000 {
            let (chassis, nic) = (format!("c{n}"), format!("eth{}", n % 100));
            enter(&mut heard, Neighbour { nic, chassis, ..Neighbour::default() });
        }
        assert_eq!(heard.len(), NICS_MAX);
        let one = Neighbour { nic: "eth0".into(), chassis: "c0".into(), ..Neighbour::default() };
        enter(&mut heard, Neighbour { system: Some("sw1".into()), ..one });
        assert_eq!((heard.len(), heard[0].system.as_deref()), (NICS_MAX, Some("sw1")));
    }
}
