//! IPv4 without options (RFC 791).

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;

/// The protocol numbers that are distinguished.
pub struct IpProtocol;

impl IpProtocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
}
