//! Headers as on the wire: fixed offsets, fixed sizes, network byte order.

mod checksum;
mod datagram;
mod ethernet;
mod ipv4;
mod udp;

pub use checksum::Checksum;
pub use datagram::{Datagram, HEADERS_LEN, HeaderSums, Headers, InFrame, Malformed};
pub use ethernet::{ETHERNET_LEN, EtherType, Mac};
pub use ipv4::{IPV4_LEN, IpProtocol};
pub use udp::{UDP_LEN, port};
