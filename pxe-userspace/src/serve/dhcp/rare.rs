//! Legal requests that the fixed-size parser passes on: option overload (RFC 2132 section 9.3), options in several
//! parts (RFC 3396), very many options, long packets.
//!
//! dhcproto decodes them, and they are rewritten as a plain packet with the same meaning, so that everything else
//! handles one kind of request.

use std::collections::BTreeMap;

use dhcproto::v4::borrowed::DhcpOptionIterator;
use pxe_common::dhcp::{BUFFER, COOKIE, Packet, Pass, field, option};

/// The options that are kept of a request, and how many bytes of each. Of names only the beginning is
/// read; echoed options stay whole.
const KEPT: [(u8, usize); 13] = [
    (option::MESSAGE_TYPE, 1),
    (option::REQUESTED_ADDRESS, 4),
    (option::SERVER_ID, 4),
    (option::MAX_SIZE, 2),
    (option::VENDOR_CLASS, 32),
    (option::USER_CLASS, 16),
    (option::ARCHITECTURE, 2),
    (option::UNDI, 3),
    (option::SUBNET_SELECTION, 4),
    (option::IPXE, 0),
    (option::MACHINE_ID, 17),
    (option::CLIENT_ID, 255),
    (option::RELAY_AGENT, 255),
];

/// The same request in one plain packet, and its length.
pub(super) fn unfold(message: &[u8]) -> Result<(Packet, usize), Pass> {
    let (Some(fixed), Some(options)) = (message.get(..field::OPTIONS), message.get(field::OPTIONS..)) else {
        return Err(Pass::TooShort);
    };
    let mut values = BTreeMap::<u8, Vec<u8>>::new();
    gather(options, &mut values);
    // The order of RFC 3396 section 5: options field, file, sname.
    let overload = values.get(&option::OVERLOAD).and_then(|v| v.first()).copied().unwrap_or(0);
    if overload & 1 != 0 {
        gather(&fixed[field::FILE..field::COOKIE], &mut values);
    }
    if overload & 2 != 0 {
        gather(&fixed[field::SNAME..field::FILE], &mut values);
    }

    let mut packet = [0; BUFFER];
    packet[..field::SNAME].copy_from_slice(&fixed[..field::SNAME]);
    // A message without the cookie stays one, and is refused like any other.
    packet[field::COOKIE..field::OPTIONS].copy_from_slice(&fixed[field::COOKIE..]);
    debug_assert_eq!(field::COOKIE + COOKIE.len(), field::OPTIONS);
    let mut at = field::OPTIONS;
    for (code, enough) in KEPT {
        let Some(value) = values.get(&code) else { continue };
        let value = &value[..value.len().min(enough)];
        packet[at] = code;
        packet[at + 1] = value.len() as u8;
        packet[at + 2..][..value.len()].copy_from_slice(value);
        at += 2 + value.len();
    }
    packet[at] = option::END;
    Ok((packet, at + 1))
}

fn gather(region: &[u8], values: &mut BTreeMap<u8, Vec<u8>>) {
    for part in DhcpOptionIterator::new(region) {
        values.entry(part.code().into()).or_default().extend_from_slice(part.data());
    }
}
