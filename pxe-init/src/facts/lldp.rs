//! LLDP: what a switch says of itself and of the port that this node is plugged into (IEEE 802.1AB-2016, section 8).
//! Pure. Anybody on the link may have sent the frame.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use pxe_contract::facts::Neighbour;

/// The EtherType (section 7.3).
pub const ETHERTYPE: u16 = 0x88cc;

/// The addresses that frames are sent to (section 7.1): the nearest bridge, the nearest one that is no two-port relay,
/// the nearest one that is a customer's.
pub const GROUPS: [[u8; 6]; 3] =
    [[0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x01, 0x80, 0xc2, 0, 0, 0x03], [0x01, 0x80, 0xc2, 0, 0, 0x00]];

/// What a frame has before its LLDPDU.
const ETHERNET_LEN: usize = 14;

/// TLV types (table 8-1).
mod tlv {
    pub(super) const END: u8 = 0;
    pub(super) const CHASSIS: u8 = 1;
    pub(super) const PORT: u8 = 2;
    pub(super) const TIME_TO_LIVE: u8 = 3;
    pub(super) const PORT_DESCRIPTION: u8 = 4;
    pub(super) const SYSTEM_NAME: u8 = 5;
    pub(super) const OF_AN_ORGANISATION: u8 = 127;
}

/// IEEE 802.1's own, Port VLAN ID (802.1Q-2018, annex D.2.1).
const PORT_VLAN: [u8; 4] = [0x00, 0x80, 0xc2, 1];

/// The sender of a frame. `None` for what is no LLDP frame, breaks the order that section 8.2 demands, or says that the
/// sender leaves. The interface is for the caller to fill in.
pub fn parse(frame: &[u8]) -> Option<Neighbour> {
    let unit = frame.get(ETHERNET_LEN..)?;
    if frame[12..14] != ETHERTYPE.to_be_bytes() {
        return None;
    }
    let mut tlvs = Tlvs(unit);
    let chassis = chassis(tlvs.expect(tlv::CHASSIS)?)?;
    let port = port(tlvs.expect(tlv::PORT)?)?;
    let [high, low, ..] = *tlvs.expect(tlv::TIME_TO_LIVE)? else { return None };
    // A time to live of 0 is a farewell (section 9.2.7.3).
    if u16::from_be_bytes([high, low]) == 0 {
        return None;
    }
    let mut neighbour = Neighbour { chassis, port, ..Neighbour::default() };
    while let Some((kind, value)) = tlvs.next()? {
        match kind {
            // These come first, once each.
            tlv::CHASSIS | tlv::PORT | tlv::TIME_TO_LIVE => return None,
            tlv::PORT_DESCRIPTION => neighbour.port_description = text(value),
            tlv::SYSTEM_NAME => neighbour.system = text(value),
            tlv::OF_AN_ORGANISATION => {
                if let Some([high, low, ..]) = value.strip_prefix(&PORT_VLAN) {
                    // 0: the port knows no such VLAN.
                    neighbour.vlan = Some(u16::from_be_bytes([*high, *low])).filter(|vlan| *vlan != 0);
                }
            }
            _ => {}
        }
    }
    Some(neighbour)
}

/// What is left of an LLDPDU.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Tlvs<'a> {
    /// The next type and value; `Some(None)` at the end, `None` where it is cut off. The end may be left out: the frame's
    /// is as good.
    fn next(&mut self) -> Option<Option<(u8, &'a [u8])>> {
        let [high, low, rest @ ..] = self.0 else { return self.0.is_empty().then_some(None) };
        let (kind, len) = (high >> 1, usize::from(high & 1) << 8 | usize::from(*low));
        let (value, rest) = rest.split_at_checked(len)?;
        if kind == tlv::END {
            self.0 = &[];
            return Some(None);
        }
        self.0 = rest;
        Some(Some((kind, value)))
    }

    fn expect(&mut self, kind: u8) -> Option<&'a [u8]> {
        let (found, value) = self.next()??;
        (found == kind).then_some(value)
    }
}

/// A chassis's identity (table 8-2).
fn chassis(value: &[u8]) -> Option<String> {
    let (subtype, id) = value.split_first()?;
    match subtype {
        4 => mac(id),
        5 => address(id),
        _ => text(id),
    }
}

/// A port's (table 8-3).
fn port(value: &[u8]) -> Option<String> {
    let (subtype, id) = value.split_first()?;
    match subtype {
        3 => mac(id),
        4 => address(id),
        _ => text(id),
    }
}

fn mac(id: &[u8]) -> Option<String> {
    let mac: &[u8; 6] = id.try_into().ok()?;
    Some(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

/// With its family, by IANA's number.
fn address(id: &[u8]) -> Option<String> {
    let (family, bytes) = id.split_first()?;
    match (family, bytes.len()) {
        (1, 4) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        (2, 16) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        _ => Some(id.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String can't fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })),
    }
}

fn text(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "lldp_tests.rs"]
mod tests;
