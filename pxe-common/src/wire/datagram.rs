//! A UDP datagram in an untagged IPv4 frame: the only shape the fast path reads or writes.

use core::net::Ipv4Addr;
use core::ops::Range;

use super::{Checksum, ETHERNET_LEN, EtherType, IPV4_LEN, IpProtocol, Mac, UDP_LEN};

/// Bytes before the UDP payload.
pub const HEADERS_LEN: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;

/// Ethernet, IPv4 and UDP headers of one frame, as on the wire.
pub type Headers = [u8; HEADERS_LEN];

/// Why the headers are not those of one complete, plain UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not IPv4: ARP, IPv6, a VLAN tag.
    NotIpv4,
    /// IPv4 with options, or a wrong version.
    IpHeader,
    /// The IPv4 header's checksum is wrong.
    Checksum,
    /// A fragment.
    Fragment,
    /// IPv4, but not UDP.
    NotUdp,
    /// A length field claims more than the frame contains, or less than the headers.
    Length,
}

/// The fields of the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Sender's hardware address.
    pub source_mac: Mac,
    /// Receiver's hardware address.
    pub destination_mac: Mac,
    /// Sender's address.
    pub source: Ipv4Addr,
    /// Receiver's address.
    pub destination: Ipv4Addr,
    /// Sender's port.
    pub source_port: u16,
    /// Receiver's port.
    pub destination_port: u16,
    /// Bytes of UDP payload. The frame may be longer: Ethernet pads to 60 bytes.
    pub payload_len: u16,
}

impl Datagram {
    /// Reads the headers of a frame of `frame_len` bytes.
    ///
    /// The UDP checksum is not verified: in a frame from a veth, tap or virtio peer it may be only the pseudo-header's
    /// sum (CHECKSUM_PARTIAL).
    #[inline(always)]
    pub fn parse(h: &Headers, frame_len: usize) -> Result<Self, Malformed> {
        if be16(h, 12) != EtherType::IPV4 {
            return Err(Malformed::NotIpv4);
        }
        if h[14] != 0x45 {
            return Err(Malformed::IpHeader);
        }
        // Only DF may be set: the other bits mean a fragment or are reserved.
        if be16(h, 20) & 0xbfff != 0 {
            return Err(Malformed::Fragment);
        }
        if h[23] != IpProtocol::UDP {
            return Err(Malformed::NotUdp);
        }
        let total = be16(h, 16) as usize;
        let udp = be16(h, 38) as usize;
        if udp < UDP_LEN || total != IPV4_LEN + udp || ETHERNET_LEN + total > frame_len {
            return Err(Malformed::Length);
        }
        Ok(Self {
            destination_mac: Mac([h[0], h[1], h[2], h[3], h[4], h[5]]),
            source_mac: Mac([h[6], h[7], h[8], h[9], h[10], h[11]]),
            source: Ipv4Addr::new(h[26], h[27], h[28], h[29]),
            destination: Ipv4Addr::new(h[30], h[31], h[32], h[33]),
            source_port: be16(h, 34),
            destination_port: be16(h, 36),
            payload_len: (udp - UDP_LEN) as u16,
        })
    }

    /// The same, but also verifies the IPv4 header's checksum (RFC 791 section 3.1). No card leaves that to the
    /// receiver, as it may UDP's. The kernel programs use a helper for it, which needs less stack.
    pub fn parse_sound(h: &Headers, frame_len: usize) -> Result<Self, Malformed> {
        let datagram = Self::parse(h, frame_len)?;
        match Checksum::ZERO.bytes(&h[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN]).folded() {
            0xffff => Ok(datagram),
            _ => Err(Malformed::Checksum),
        }
    }

    /// What a whole frame has of a datagram, for receivers that are no fast path: with options in the IPv4 header, which
    /// say nothing to them, and also where it is the first of several fragments.
    pub fn in_frame(frame: &[u8]) -> Result<InFrame, Malformed> {
        let first: &Headers = frame.first_chunk().ok_or(Malformed::Length)?;
        if be16(first, 12) != EtherType::IPV4 {
            return Err(Malformed::NotIpv4);
        }
        let ip_len = usize::from(first[14] & 0xf) * 4;
        if first[14] >> 4 != 4 || ip_len < IPV4_LEN {
            return Err(Malformed::IpHeader);
        }
        // The offset, and what is reserved. Of the flags, one says that more fragments follow.
        let place = be16(first, 20);
        if place & 0x9fff != 0 {
            return Err(Malformed::Fragment);
        }
        let total = usize::from(be16(first, 16));
        let begin = ETHERNET_LEN + ip_len + UDP_LEN;
        let ip = frame.get(ETHERNET_LEN..ETHERNET_LEN + ip_len).ok_or(Malformed::Length)?;
        if total < ip_len + UDP_LEN || ETHERNET_LEN + total > frame.len() {
            return Err(Malformed::Length);
        }
        if Checksum::ZERO.bytes(ip).folded() != 0xffff {
            return Err(Malformed::Checksum);
        }
        let is_fragment = place & 0x2000 != 0;
        // As it would be without options, and in one piece, for the other parser to judge.
        let mut plain = *first;
        plain[34..].copy_from_slice(&frame[begin - UDP_LEN..begin]);
        plain[14] = 0x45;
        put(&mut plain, 20, [0, 0]);
        let udp = be16(&plain, 38);
        let whole = IPV4_LEN as u16 + if is_fragment { udp } else { (total - ip_len) as u16 };
        put(&mut plain, 16, whole.to_be_bytes());
        let datagram = Self::parse(&plain, usize::MAX)?;
        Ok(InFrame { datagram, payload: begin..ETHERNET_LEN + total, is_fragment })
    }

    /// The way back: source and destination exchanged, with a payload of its own length.
    #[inline(always)]
    pub fn reply(&self, payload_len: u16) -> Self {
        Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            payload_len,
        }
    }

    /// The headers, with the IPv4 checksum, and with the UDP checksum computed from `payload`, the sum of the payload's
    /// bytes.
    ///
    /// Identification 0 with DF set (RFC 6864): neither path keeps a counter, and both must produce the same bytes.
    #[inline(always)]
    pub fn headers(&self, payload: Checksum) -> Headers {
        let mut headers = [0; HEADERS_LEN];
        self.write(&mut headers).fill(&mut headers, self.payload_len, payload);
        headers
    }

    /// Writes the headers except what depends on the payload, for callers that send several.
    #[inline(always)]
    pub fn write(&self, h: &mut Headers) -> HeaderSums {
        let (src, dst) = (self.source.octets(), self.destination.octets());
        let addresses = Checksum::ZERO.quad(src).quad(dst);
        let protocol = IpProtocol::UDP as u16;
        put(h, 0, self.destination_mac.0);
        put(h, 6, self.source_mac.0);
        put(h, 12, EtherType::IPV4.to_be_bytes());
        put(h, 14, [0x45, 0]);
        // The identification.
        put(h, 18, [0, 0]);
        put(h, 20, [0x40, 0]);
        put(h, 22, [64, IpProtocol::UDP]);
        put(h, 26, src);
        put(h, 30, dst);
        put(h, 34, self.source_port.to_be_bytes());
        put(h, 36, self.destination_port.to_be_bytes());
        HeaderSums {
            ip: addresses.word(0x4500).word(0x4000).word(0x4000 | protocol),
            udp: addresses.word(protocol).word(self.source_port).word(self.destination_port),
        }
    }

    /// The sum of the UDP datagram itself, without its pseudo-header and checksum.
    #[inline(always)]
    pub fn sum(&self, payload: Checksum) -> Checksum {
        let ports = Checksum::ZERO.word(self.source_port).word(self.destination_port);
        ports.word(UDP_LEN as u16 + self.payload_len).word(payload.folded())
    }

    /// The sum of UDP's pseudo-header (RFC 768), for callers that update a checksum in place.
    #[inline(always)]
    pub fn pseudo_header(&self) -> Checksum {
        Checksum::ZERO
            .quad(self.source.octets())
            .quad(self.destination.octets())
            .word(IpProtocol::UDP as u16)
            .word(UDP_LEN as u16 + self.payload_len)
    }
}

/// What one frame has of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFrame {
    /// What the headers say: of all of it, if it is a fragment.
    pub datagram: Datagram,
    /// Where its payload is in the frame, or the first part of it.
    pub payload: Range<usize>,
    /// Further fragments follow.
    pub is_fragment: bool,
}

/// What headers sum up to, but for lengths and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HeaderSums {
    /// IPv4's sum.
    ip: Checksum,
    /// UDP's sum, with its pseudo-header.
    udp: Checksum,
}

impl HeaderSums {
    /// Fills in what depends on the payload: two lengths and two checksums.
    #[inline(always)]
    pub fn fill(self, headers: &mut Headers, payload_len: u16, payload: Checksum) {
        let udp_len = UDP_LEN as u16 + payload_len;
        let total = IPV4_LEN as u16 + udp_len;
        let udp = self.udp.word(udp_len).word(udp_len).word(payload.folded()).finish_udp();
        put(headers, 16, total.to_be_bytes());
        put(headers, 24, self.ip.word(total).finish().to_be_bytes());
        put(headers, 38, udp_len.to_be_bytes());
        put(headers, 40, udp.to_be_bytes());
    }
}

#[inline(always)]
fn be16(h: &Headers, at: usize) -> u16 {
    u16::from_be_bytes([h[at], h[at + 1]])
}

#[inline(always)]
fn put<const N: usize>(h: &mut Headers, at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N {
        h[at + i] = bytes[i];
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const SENT: Datagram = Datagram {
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        destination_mac: Mac([2, 0, 0, 0, 0, 2]),
        source: Ipv4Addr::new(10, 77, 0, 1),
        destination: Ipv4Addr::new(10, 77, 0, 9),
        source_port: 69,
        destination_port: 25300,
        payload_len: 5,
    };

    #[test]
    fn what_is_written_reads_back() {
        let h = SENT.headers(Checksum::ZERO.bytes(b"hello"));
        assert_eq!(Datagram::parse(&h, HEADERS_LEN + 5), Ok(SENT));
        assert_eq!(Checksum::ZERO.bytes(&h[14..34]).finish(), 0, "IPv4 header sums to zero");
        let udp = SENT.pseudo_header().bytes(&h[34..42]).bytes(b"hello");
        assert_eq!(udp.finish(), 0, "UDP sums to zero");
    }

    /// A frame with this many words of IPv4 options and these flags, of which `len` bytes of the payload are there.
    fn frame(words: u8, flags: [u8; 2], payload: &[u8], len: usize) -> std::vec::Vec<u8> {
        let sent = Datagram { payload_len: payload.len() as u16, ..SENT };
        let h = sent.headers(Checksum::ZERO.bytes(payload));
        let options = usize::from(words) * 4;
        let mut frame = h[..34].to_vec();
        frame.extend(std::vec![1; options]);
        frame.extend(&h[34..]);
        frame.extend(&payload[..len]);
        frame[14] += words;
        frame[16..18].copy_from_slice(&((28 + options + len) as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&flags);
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = Checksum::ZERO.bytes(&frame[14..34 + options]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn options_and_first_fragments_are_read_where_nothing_is_fast() {
        let plain = frame(0, [0x40, 0], b"hello", 5);
        let InFrame { datagram, payload, is_fragment } = Datagram::in_frame(&plain).unwrap();
        assert_eq!((datagram, &plain[payload], is_fragment), (SENT, &b"hello"[..], false));

        let options = frame(10, [0, 0], b"hello", 5);
        let InFrame { datagram, payload, is_fragment } = Datagram::in_frame(&options).unwrap();
        assert_eq!((datagram, &options[payload], is_fragment), (SENT, &b"hello"[..], false));

        let long = [7; 4000];
        let first = frame(0, [0x20, 0], &long, 1472);
        let InFrame { datagram, payload, is_fragment } = Datagram::in_frame(&first).unwrap();
        assert_eq!(datagram, Datagram { payload_len: 4000, ..SENT });
        assert_eq!((&first[payload], is_fragment), (&long[..1472], true));
        let empty = frame(1, [0x20, 0], &long, 0);
        let InFrame { payload, is_fragment, .. } = Datagram::in_frame(&empty).unwrap();
        assert!(payload.is_empty() && is_fragment);

        for flags in [[0x20, 1], [0, 1], [0x80, 0]] {
            assert_eq!(Datagram::in_frame(&frame(0, flags, &long, 1472)), Err(Malformed::Fragment));
        }
        assert_eq!(Datagram::in_frame(&frame(0, [0, 0], &long, 1472)), Err(Malformed::Length));
        let mut bent = first.clone();
        bent[33] ^= 1;
        assert_eq!(Datagram::in_frame(&bent), Err(Malformed::Checksum));
        for cut in 0..first.len() {
            assert!(Datagram::in_frame(&first[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn every_lie_has_a_name() {
        let good = SENT.headers(Checksum::ZERO);
        let with = |at: usize, byte: u8| {
            let mut h = good;
            h[at] = byte;
            Datagram::parse(&h, HEADERS_LEN + 5)
        };
        assert_eq!(with(13, 0x06), Err(Malformed::NotIpv4));
        assert_eq!(with(14, 0x46), Err(Malformed::IpHeader));
        assert_eq!(with(20, 0x20), Err(Malformed::Fragment));
        assert_eq!(with(21, 0x01), Err(Malformed::Fragment));
        assert_eq!(with(23, 6), Err(Malformed::NotUdp));
        assert_eq!(with(39, 7), Err(Malformed::Length));
        assert_eq!(Datagram::parse(&good, HEADERS_LEN + 4), Err(Malformed::Length));
        assert_eq!(Datagram::parse(&good, 60), Ok(SENT), "Ethernet padding is not payload");
    }
}
