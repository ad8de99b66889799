//! What a card does to a frame before anybody sees it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/ethtool.h
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Linux' `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the card takes the VLAN tag out of a frame that it receives, and tells it beside the frame
/// (`ethtool -k`: rx-vlan-offload). An skb has a place for that; what XDP sees has none.
pub fn takes_tags_off(interface: &str) -> io::Result<bool> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an interface by a string that ends in a zero, and points to a value that the
    // command reads and writes; both outlive the call.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    match nix::errno::Errno::result(asked) {
        Ok(_) => Ok(value.data & ETH_FLAG_RXVLAN != 0),
        // No ethtool, so no offload.
        Err(nix::Error::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_takes_no_tags_off_and_what_is_not_there_is_an_error() {
        assert!(!takes_tags_off("lo").unwrap());
        assert!(takes_tags_off("no-such-port").is_err());
        assert!(takes_tags_off("a-name-too-long-for-linux").is_err());
    }
}
