//! The requests to the kernel's routing socket that a node makes (rtnetlink(7)): a link up, its MTU,
//! an address, a default route. Because there are no others, the messages are written out here, and only
//! acknowledgements are read.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

// linux/rtnetlink.h, linux/netlink.h, linux/if_addr.h, linux/if.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_REPLACE_CREATE: u16 = 0x100 | 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;

/// A routing socket.
pub(crate) struct Routing(OwnedFd);

impl Routing {
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    pub(crate) fn link_up(&self, index: u32) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type; index; flags; which of them change
        let mut body = vec![0; 4];
        for field in [index, IFF_UP, IFF_UP] {
            body.extend(field.to_ne_bytes());
        }
        self.ask(RTM_NEWLINK, 0, &body)
    }

    pub(crate) fn mtu(&self, index: u32, mtu: u16) -> io::Result<()> {
        // struct ifinfomsg: as above, nothing of the flags changes
        let mut body = vec![0; 4];
        for field in [index, 0, 0] {
            body.extend(field.to_ne_bytes());
        }
        attribute(&mut body, IFLA_MTU, u32::from(mtu).to_ne_bytes());
        self.ask(RTM_NEWLINK, 0, &body)
    }

    pub(crate) fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope; index
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, address.octets());
        attribute(&mut body, IFA_ADDRESS, address.octets());
        if prefix < 31 {
            let broadcast = address.to_bits() | (u32::MAX >> prefix);
            attribute(&mut body, IFA_BROADCAST, broadcast.to_be_bytes());
        }
        self.ask(RTM_NEWADDR, NLM_F_REPLACE_CREATE, &body)
    }

    pub(crate) fn default_route(&self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg: family, destination and source length, TOS, table main, protocol boot,
        // scope universe, type unicast; flags
        let mut body = vec![AF_INET, 0, 0, 0, 254, 3, 0, 1];
        body.extend([0; 4]);
        attribute(&mut body, RTA_GATEWAY, router.octets());
        attribute(&mut body, RTA_OIF, index.to_ne_bytes());
        self.ask(RTM_NEWROUTE, NLM_F_REPLACE_CREATE, &body)
    }

    /// Sends one request and reads its acknowledgement.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        // struct nlmsghdr: length, type, flags, sequence, port
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST_ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match answer[..len] {
            [_, _, _, _, k0, k1, _, _, _, _, _, _, _, _, _, _, e0, e1, e2, e3, ..]
                if u16::from_ne_bytes([k0, k1]) == NLMSG_ERROR =>
            {
                match i32::from_ne_bytes([e0, e1, e2, e3]) {
                    0 => Ok(()),
                    negative => Err(io::Error::from_raw_os_error(-negative)),
                }
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
        }
    }
}

/// struct rtattr: length, type, value. All of ours are four bytes, so none needs padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}
