//! A DHCP request through our parser and dhcproto's: what both read is equal, and every span is inside the packet.

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use pxe_common::dhcp::{BUFFER, Request};

pub(crate) fn run(bytes: &[u8]) {
    let mut packet = [0; BUFFER];
    let len = bytes.len().min(BUFFER);
    packet[..len].copy_from_slice(&bytes[..len]);
    let Ok(request) = Request::parse(&packet, bytes.len()) else { return };
    for span in [request.client_id, request.machine_id, request.relay_agent, request.subnet_selection] {
        let value = span.of(&packet);
        assert!(
            span.len == 0 || value.len() + 2 == usize::from(span.len),
            "{span:?} has {} bytes",
            value.len()
        );
        assert!(usize::from(span.at) + usize::from(span.len) <= len, "{span:?} of {len} bytes");
    }
    if request.giaddr.is_unspecified() {
        assert!(
            request.is_plain() || request.odd || !request.subnet.is_unspecified(),
            "a client is no relay"
        );
    }
    // Odd requests are read differently on purpose: dhcproto gives up, and we read on.
    let Ok(theirs) = Message::decode(&mut Decoder::new(&bytes[..len])) else { return };
    assert_eq!(theirs.xid().to_be_bytes(), request.xid);
    assert_eq!(theirs.giaddr(), request.giaddr);
    assert_eq!(theirs.ciaddr(), request.ciaddr);
    if request.odd || is_repeated(&bytes[..len]) {
        return;
    }
    if let Some(message) = theirs.opts().msg_type() {
        assert_eq!(u8::from(message), request.message as u8);
    }
    if let Some(DhcpOption::RequestedIpAddress(address)) = theirs.opts().get(OptionCode::RequestedIpAddress) {
        assert_eq!(*address, request.requested);
    }
    if let Some(DhcpOption::ServerIdentifier(address)) = theirs.opts().get(OptionCode::ServerIdentifier) {
        assert_eq!(*address, request.server_id);
    }
}

/// Whether an option appears twice: dhcproto concatenates both (RFC 3396), and we take one, because no client that
/// repeats an option of fixed length means both.
fn is_repeated(bytes: &[u8]) -> bool {
    let (mut seen, mut rest) = ([false; 256], bytes.get(240..).unwrap_or_default());
    loop {
        match rest {
            [0, tail @ ..] => rest = tail,
            [] | [255, ..] => return false,
            [code, tail @ ..] => {
                if std::mem::replace(&mut seen[usize::from(*code)], true) {
                    return true;
                }
                let Some(len) = tail.first() else { return false };
                rest = tail.get(1 + usize::from(*len)..).unwrap_or_default();
            }
        }
    }
}
