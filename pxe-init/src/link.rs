//! The interface that the node booted from: waiting for it, and bringing it up.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use pxe_contract::settings::Settings;

use crate::modules::{Devices, Modules};
use crate::netlink::Routing;
use crate::say;

/// A network interface of the node's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) mac: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(
        "no network interface with the MAC {mac} appeared within {} s; there is {present}. \
         Its driver may be missing from stage 1's kernel: use an image that brings its own", .waited.as_secs()
    )]
    Missing { mac: String, present: String, waited: Duration },
    #[error("waiting for devices: {0}")]
    Announcements(io::Error),
    #[error("{action} on {link}: {source}")]
    Refused { action: String, link: String, source: io::Error },
}

/// How long drivers may take to find their card: loading its firmware can take seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the carrier may take: copper at 1 Gb/s negotiates for 2 to 4 seconds.
const CARRIER_PATIENCE: Duration = Duration::from_secs(10);

/// Loads drivers until the interface with the node's MAC appears.
pub(crate) fn find(mac: &str, modules: Option<&mut Modules>) -> Result<Link, LinkError> {
    let announcements = announcements().map_err(LinkError::Announcements)?;
    let mut modules = modules;
    let start = Instant::now();
    loop {
        if let Some(modules) = &mut modules {
            modules.load_for_devices(Devices::AllButDisks);
        }
        let links = links(Path::new("/sys/class/net"));
        if let Some(link) = links.iter().find(|l| l.mac == mac) {
            return Ok(link.clone());
        }
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() {
            let present: Vec<_> = links.iter().map(|l| format!("{} ({})", l.name, l.mac)).collect();
            let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
            return Err(LinkError::Missing { mac: mac.to_owned(), present, waited: PATIENCE });
        }
        wait(&announcements, left.min(Duration::from_secs(1)));
    }
}

/// The name of the interface with this MAC.
pub(crate) fn name(mac: &str) -> Option<String> {
    links(Path::new("/sys/class/net")).into_iter().find(|link| link.mac == mac).map(|link| link.name)
}

/// Gives the interface its address and route. A missing carrier is only logged, after a limited wait.
pub(crate) fn bring_up(link: &Link, settings: &Settings) -> Result<(), LinkError> {
    let refused = |action: String| {
        let link = link.name.clone();
        move |source| LinkError::Refused { action, link, source }
    };
    let Settings { address, prefix, boot, .. } = settings;
    let routing = Routing::open().map_err(refused("opening a routing socket".into()))?;
    let index = index(&link.name).map_err(refused("reading the index".into()))?;
    // Without a loopback much software fails in odd ways; nothing here depends on it.
    let _ = self::index("lo").and_then(|lo| routing.link_up(lo));
    // If the driver can't, the boot goes on all the same: only packets that are too long are lost.
    if let Some(mtu) = boot.mtu
        && let Err(error) = routing.mtu(index, mtu)
    {
        say!("{} can't have an MTU of {mtu} bytes: {error}", link.name);
    }
    routing.link_up(index).map_err(refused("bringing the link up".into()))?;
    routing
        .address(index, *address, *prefix)
        .map_err(refused(format!("setting the address {address}/{prefix}")))?;
    if let Some(router) = &boot.router {
        routing
            .default_route(index, *router)
            .map_err(refused(format!("setting the default route by {router}")))?;
    }
    wait_for_carrier(&link.name);
    Ok(())
}

fn wait_for_carrier(name: &str) {
    let carrier = Path::new("/sys/class/net").join(name).join("carrier");
    let start = Instant::now();
    while !fs::read_to_string(&carrier).is_ok_and(|c| c.trim() == "1") {
        if start.elapsed() > CARRIER_PATIENCE {
            say!("{name} has no carrier after {} s; going on without", CARRIER_PATIENCE.as_secs());
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every interface that has a hardware address, the loopback left out.
fn links(class: &Path) -> Vec<Link> {
    let mut links: Vec<Link> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let mac = fs::read_to_string(entry.path().join("address")).ok()?.trim().to_ascii_lowercase();
            Some(Link { name: entry.file_name().into_string().ok()?, mac })
        })
        .filter(|link| link.name != "lo")
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn index(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The kernel's announcements of devices (the socket that udev listens on).
fn announcements() -> io::Result<OwnedFd> {
    const KERNEL_EVENTS: u32 = 1;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkKObjectUEvent)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
    Ok(fd)
}

/// Waits until devices changed. The caller looks at all of them again.
fn wait(announcements: &OwnedFd, at_most: Duration) {
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(announcements.as_fd(), PollFlags::POLLIN)], timeout);
    let mut message = [0; 8192];
    while recv(announcements.as_raw_fd(), &mut message, MsgFlags::empty()).is_ok() {}
}
