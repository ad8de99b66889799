//! A DHCP request through the fixed-size parser, and every reply to it: dhcproto can read the reply, it is no longer
//! than the client accepts, and it contains the request's transaction ID and machine.
use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use pxe_common::dhcp::reply::OPTIONS_CAP;
use pxe_common::dhcp::{BUFFER, Boot, Firmware, Grant, Kind, Request, build};

/// Every client accepts this size (RFC 2131 section 2); option 57 includes the IP and UDP headers.
const LEAST: usize = 576;
const IP_UDP: usize = 28;

pub(crate) fn run(bytes: &[u8]) {
    let mut packet = [0; BUFFER];
    let len = bytes.len().min(BUFFER);
    packet[..len].copy_from_slice(&bytes[..len]);
    let Ok(request) = Request::parse(&packet, bytes.len()) else { return };
    let kinds = [Kind::Offer, Kind::Ack, Kind::Nak, Kind::Informed, Kind::ProxyOffer, Kind::ProxyAck];
    for (kind, options_len) in kinds.into_iter().flat_map(|kind| [(kind, 8), (kind, OPTIONS_CAP)]) {
        // Contains the bytes of the last reply.
        let mut out = [0xaa; BUFFER];
        let Ok(len) = build(&mut out, kind, &request, &packet, &grant(options_len)) else { continue };
        let room = LEAST.max(request.max_size.into()) - IP_UDP;
        let relay = if request.relay_agent.len == 0 { 0 } else { 2 + usize::from(request.relay_agent.len) };
        assert!(len <= room + relay, "{len} bytes to a client that takes {room}");
        let reply = Message::decode(&mut Decoder::new(&out[..len])).expect("dhcproto reads what we build");
        assert_eq!(reply.xid().to_be_bytes(), request.xid);
        assert_eq!(reply.chaddr(), request.mac.0);
        assert!(reply.opts().msg_type().is_some());
        let Some(DhcpOption::ServerIdentifier(server)) = reply.opts().get(OptionCode::ServerIdentifier)
        else {
            panic!("a reply names its server (RFC 2131 table 3)");
        };
        // A relay may ask to appear as the server (RFC 5107).
        let named = [request.relay.server, Ipv4Addr::new(10, 77, 0, 1)];
        assert_eq!(Some(server), named.iter().find(|server| !server.is_unspecified()));
    }
}

/// A grant with this many bytes of options, in units of four: option 224 and two bytes.
fn grant(options_len: usize) -> Grant {
    let mut options = [0; OPTIONS_CAP];
    for option in options[..options_len].chunks_exact_mut(4) {
        option.copy_from_slice(&[224, 2, 0xff, 0]);
    }
    let server = Ipv4Addr::new(10, 77, 0, 1);
    let mut boot = [Boot::NONE; Firmware::SLOTS];
    for firmware in
        [Firmware::Bios, Firmware::UefiX64, Firmware::IpxeBios, Firmware::IpxeUefiX64, Firmware::HttpX64]
    {
        boot[firmware.slot()] =
            Boot::new(firmware, server, "grub/x86_64-efi.efi").expect("the name is short");
    }
    Grant {
        address: [10, 77, 0, 100],
        server: server.octets(),
        lease_time: 3600,
        renewal_time: 1800,
        rebinding_time: 3150,
        reserved: 0,
        options_len: options_len as u16,
        options,
        boot,
    }
}
