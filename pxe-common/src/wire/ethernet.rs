//! Ethernet II.

use core::fmt;
use core::str::FromStr;

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_LEN: usize = 14;

/// The EtherTypes that are distinguished.
pub struct EtherType;

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IPv6 (RFC 2464).
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad outer tag.
    pub const QINQ: u16 = 0x88a8;
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the address is one station's: neither a group address nor zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal bytes separated by `:` or `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMac;

impl fmt::Display for InvalidMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six hexadecimal bytes, such as 52:54:00:77:00:01")
    }
}

impl core::error::Error for InvalidMac {}

impl FromStr for Mac {
    type Err = InvalidMac;

    /// Reads `52:54:00:77:00:01` and GRUB's `52-54-00-77-00-01`, in either case.
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut mac = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            // Only digits: `from_str_radix` accepts `+1`, too.
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or(InvalidMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        match parts.next() {
            None => Ok(Self(mac)),
            Some(_) => Err(InvalidMac),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_separators_and_refuses_the_rest() {
        let mac = Mac([0x52, 0x54, 0, 0x77, 0, 0xa1]);
        assert_eq!("52:54:00:77:00:A1".parse(), Ok(mac));
        assert_eq!("52-54-00-77-00-a1".parse(), Ok(mac));
        for bad in [
            "",
            "52:54:00:77:00",
            "52:54:00:77:00:01:02",
            "5:54:00:77:00:01",
            "zz:54:00:77:00:01",
            "+1:54:00:77:00:01",
            "-1:54:00:77:00:01",
            " 1:54:00:77:00:01",
            "52:54:00:77:00:1 ",
            " 52:54:00:77:00:01",
            "52:54:00:77:00:01\n",
            "52:54:00:77:00:1",
            "52:54:00:77:00:001",
            "52::54:00:77:00",
            "525400770001",
            "52.54.00.77.00.01",
            "\u{e9}:54:00:77:00:01",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(InvalidMac), "{bad}");
        }
    }
}
