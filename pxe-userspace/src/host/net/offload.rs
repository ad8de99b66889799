//! What a card does to a frame before the kernel sees it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/ethtool.h
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Linux' `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the interface belongs to a device, of hardware or of a hypervisor.
pub fn has_device(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).join("device").exists()
}

/// The interface's driver, if it has one.
pub fn driver(interface: &str) -> Option<String> {
    let link = std::fs::read_link(Path::new("/sys/class/net").join(interface).join("device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Whether the card strips the VLAN tag of a received frame, and reports it separately (`ethtool -k`:
/// rx-vlan-offload). An skb has a field for the tag; XDP's view of the frame has none.
pub fn takes_tags_off(interface: &str) -> io::Result<bool> {
    Ok(flags(interface)? & ETH_FLAG_RXVLAN != 0)
}

/// Makes the card strip tags, or leave them in the frame. Then the kernel strips them itself, so that nothing
/// above it sees a difference. An error also if the card has no such switch.
pub fn take_tags_off(interface: &str, wanted: bool) -> io::Result<()> {
    let others = flags(interface)? & !ETH_FLAG_RXVLAN;
    let mut value =
        Value { command: ETHTOOL_SFLAGS, data: others | if wanted { ETH_FLAG_RXVLAN } else { 0 } };
    ethtool(interface, &mut value)?;
    // The call succeeds on a card that can't be switched, and changes nothing.
    if takes_tags_off(interface)? == wanted { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

fn flags(interface: &str) -> io::Result<u32> {
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    match ethtool(interface, &mut value) {
        Ok(()) => Ok(value.data),
        // A driver without ethtool has no offload.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(0),
        Err(error) => Err(error),
    }
}

fn ethtool(interface: &str, value: &mut Value) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *value).cast();
    // SAFETY: the request names an interface by a string that ends in a zero, and points to a value that the
    // command reads and writes; both outlive the call.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Ok(nix::errno::Errno::result(asked).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_takes_no_tags_off_and_what_is_not_there_is_an_error() {
        assert!(!takes_tags_off("lo").unwrap());
        assert!(takes_tags_off("no-such-port").is_err());
        assert!(takes_tags_off("a-name-too-long-for-linux").is_err());
        assert!(!has_device("lo") && driver("lo").is_none());
    }

    /// The veth driver has the switch, although there is no card.
    #[test]
    fn tags_are_left_on_where_the_driver_can_and_given_back() {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: root is needed");
            return;
        }
        // The namespace belongs to the thread, and vanishes with it.
        let in_a_namespace = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let veth = ["link", "add", "port", "type", "veth", "peer", "name", "other"];
            assert!(std::process::Command::new("ip").args(veth).status().unwrap().success());
            assert!(takes_tags_off("port").unwrap(), "as veth pairs begin");
            take_tags_off("port", false).unwrap();
            assert!(!takes_tags_off("port").unwrap() && takes_tags_off("other").unwrap());
            take_tags_off("port", true).unwrap();
            assert!(takes_tags_off("port").unwrap());
            assert_eq!(take_tags_off("lo", true).unwrap_err().kind(), io::ErrorKind::Unsupported);
        });
        in_a_namespace.join().unwrap();
    }
}
