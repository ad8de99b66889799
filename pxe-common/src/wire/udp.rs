//! UDP (RFC 768).

/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;

/// Well-known ports.
pub mod port {
    /// DHCP servers and relays listen here (RFC 2131).
    pub const DHCP_SERVER: u16 = 67;
    /// DHCP clients listen here (RFC 2131).
    pub const DHCP_CLIENT: u16 = 68;
    /// TFTP requests (RFC 1350); the transfer itself moves to ports of its own.
    pub const TFTP: u16 = 69;
    /// PXE boot servers and proxies (PXE 2.1, section 2.2).
    pub const PXE: u16 = 4011;
}
