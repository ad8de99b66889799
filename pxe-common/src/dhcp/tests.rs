//! Judged by dhcproto: what it encodes we read, what we build it reads.
extern crate std;

use core::net::Ipv4Addr;
use std::vec;
use std::vec::Vec;

use dhcproto::v4::{self, DhcpOption, Message, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use proptest::prelude::*;

use super::*;
use crate::Mac;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);

fn packet(bytes: &[u8]) -> (Packet, usize) {
    let mut packet = [0; BUFFER];
    let len = bytes.len().min(BUFFER);
    packet[..len].copy_from_slice(&bytes[..len]);
    (packet, bytes.len())
}

fn parse(bytes: &[u8]) -> Result<Request, Pass> {
    let (packet, len) = packet(bytes);
    Request::parse(&packet, len)
}

/// A request's fixed fields and cookie, then raw options.
fn raw(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; field::OPTIONS];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[field::CHADDR..][..6].copy_from_slice(&MAC.0);
    bytes[field::COOKIE..].copy_from_slice(&COOKIE);
    bytes.extend_from_slice(options);
    bytes
}

fn grant(options: &[u8], boot: &str) -> Grant {
    let mut area = [0; reply::OPTIONS_CAP];
    area[..options.len()].copy_from_slice(options);
    let server = Ipv4Addr::new(10, 77, 0, 1);
    let kinds =
        [Firmware::Bios, Firmware::UefiX64, Firmware::IpxeBios, Firmware::IpxeUefiX64, Firmware::HttpX64];
    let mut boots = [Boot::NONE; Firmware::SLOTS];
    for firmware in kinds {
        boots[firmware.slot()] = Boot::new(firmware, server, boot).unwrap();
    }
    Grant {
        address: [10, 77, 0, 100],
        server: server.octets(),
        lease_time: 3600,
        options_len: options.len() as u16,
        reserved: 0,
        options: area,
        boot: boots,
    }
}

/// Builds over a buffer that is dirty from the reply before.
fn reply(kind: Kind, bytes: &[u8], grant: &Grant) -> Result<Vec<u8>, TooLong> {
    let (packet, len) = packet(bytes);
    let request = Request::parse(&packet, len).unwrap();
    let mut out = [0xaa; BUFFER];
    build(&mut out, kind, &request, &packet, grant).map(|len| out[..len].to_vec())
}

fn decode(bytes: &[u8]) -> Message {
    Message::decode(&mut Decoder::new(bytes)).unwrap()
}

#[test]
fn every_reason_to_pass() {
    let with = |at: usize, byte: u8| {
        let mut bytes = raw(&[53, 1, 1, 255]);
        bytes[at] = byte;
        parse(&bytes).unwrap_err()
    };
    assert_eq!(parse(&raw(&[])[..239]), Err(Pass::TooShort));
    assert_eq!(parse(&raw(&vec![0; CAP - field::OPTIONS + 1])), Err(Pass::TooLong));
    assert_eq!(with(field::OP, 2), Pass::NotARequest);
    assert_eq!(with(field::HTYPE, 6), Pass::Hardware);
    assert_eq!(with(field::HLEN, 16), Pass::Hardware);
    assert_eq!(with(field::CHADDR, 0x01), Pass::Hardware, "a group address is no station");
    assert_eq!(with(field::COOKIE, 0), Pass::NoCookie);
    for (options, pass) in [
        (&[255][..], Pass::NoMessageType),
        (&[53, 1, 0, 255], Pass::MessageType),
        (&[53, 1, 2, 255], Pass::MessageType),
        (&[53, 2, 1, 1, 255], Pass::BadLength),
        (&[53, 1, 1, 50, 3, 1, 2, 3, 255], Pass::BadLength),
        (&[53, 1, 1, 93, 1, 0, 255], Pass::BadLength),
        (&[53], Pass::Truncated),
        (&[53, 1], Pass::Truncated),
        (&[53, 1, 1, 60, 200, b'P'], Pass::Truncated),
        (&[53, 1, 1, 52, 1, 1, 255], Pass::Overloaded),
        (&[53, 1, 1, 61, 2, 1, 2, 61, 2, 3, 4, 255], Pass::Split),
        (&[53, 1, 1, 53, 1, 3, 255], Pass::Split),
        (&[0; 70], Pass::TooManyOptions),
    ] {
        assert_eq!(parse(&raw(options)), Err(pass), "{options:?}");
    }
    assert!(parse(&raw(&[53, 1, 1])).is_ok(), "a missing END is forgiven");
    assert!(parse(&raw(&[53, 1, 1, 12, 1, b'a', 12, 1, b'b'])).is_ok(), "names are not read");
}

#[test]
fn a_message_that_fills_the_cap_ends_there() {
    let mut options = vec![53, 1, 1];
    while options.len() < CAP - field::OPTIONS {
        let room = CAP - field::OPTIONS - options.len() - 2;
        let len = room.min(200);
        options.extend([224, len as u8]);
        options.resize(options.len() + len, 7);
    }
    assert_eq!(raw(&options).len(), CAP);
    assert_eq!(parse(&raw(&options)).unwrap().message, MessageType::Discover);
}

#[test]
fn firmware_by_its_options() {
    let of = |options: &[u8]| parse(&raw(&[&[53, 1, 1], options].concat())).unwrap().firmware;
    let pxe: &[u8] = b"\x3c\x20PXEClient:Arch:00007:UNDI:003000";
    assert_eq!(of(&[]), Firmware::None);
    assert_eq!(of(b"\x3c\x05udhcp"), Firmware::None);
    assert_eq!(of(pxe), Firmware::Bios, "no option 93: older than PXE 2.1");
    assert_eq!(of(&[pxe, &[93, 2, 0, 0]].concat()), Firmware::Bios);
    assert_eq!(of(&[pxe, &[93, 2, 0, 7]].concat()), Firmware::UefiX64);
    assert_eq!(of(&[pxe, &[93, 2, 0, 9]].concat()), Firmware::UefiX64);
    assert_eq!(of(&[pxe, &[93, 4, 0, 7, 0, 0]].concat()), Firmware::UefiX64, "the first of a list");
    assert_eq!(of(&[pxe, &[93, 2, 0, 11]].concat()), Firmware::Other(11));
    assert_eq!(of(&[pxe, b"\x4d\x04iPXE", &[93, 2, 0, 0]].concat()), Firmware::IpxeBios);
    assert_eq!(of(&[pxe, b"\x4d\x05\x04iPXE", &[93, 2, 0, 7]].concat()), Firmware::IpxeUefiX64);
    assert_eq!(of(&[pxe, &[175, 3, 1, 1, 1, 93, 2, 0, 0]].concat()), Firmware::IpxeBios);
    assert_eq!(of(b"\x3c\x0aHTTPClient\x5d\x02\x00\x10"), Firmware::HttpX64);
    assert_eq!(of(b"\x3c\x0aHTTPClient"), Firmware::Other(u16::MAX));
    assert_eq!(of(b"\x3c\x0aHTTPClienx\x5d\x02\x00\x10"), Firmware::None);
}

#[test]
fn a_bios_offer_says_everything_a_rom_reads() {
    let request = raw(b"\x35\x01\x01\x3c\x09PXEClient\x5d\x02\x00\x00\x61\x03\x00ab\x3d\x02\x01z\xff");
    let bytes = reply(Kind::Offer, &request, &grant(&[1, 4, 255, 255, 255, 0], "grub/i386-pc.0")).unwrap();
    let offer = decode(&bytes);
    let option = |code| offer.opts().get(code).cloned();
    assert_eq!(offer.opts().msg_type(), Some(v4::MessageType::Offer));
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 77, 0, 100));
    assert_eq!(offer.siaddr(), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(offer.sname(), Some(&b"10.77.0.1\0"[..]));
    assert_eq!(offer.fname(), Some(&b"grub/i386-pc.0\0"[..]));
    assert_eq!(option(OptionCode::BootfileName), Some(DhcpOption::BootfileName(b"grub/i386-pc.0".to_vec())));
    assert_eq!(option(OptionCode::TFTPServerName), Some(DhcpOption::TFTPServerName(b"10.77.0.1".to_vec())));
    assert_eq!(option(OptionCode::ClassIdentifier), Some(DhcpOption::ClassIdentifier(b"PXEClient".to_vec())));
    assert_eq!(option(OptionCode::VendorExtensions), Some(DhcpOption::VendorExtensions(vec![6, 1, 8, 255])));
    assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))));
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(3600)));
    assert_eq!(option(OptionCode::Renewal), Some(DhcpOption::Renewal(1800)));
    assert_eq!(option(OptionCode::Rebinding), Some(DhcpOption::Rebinding(3150)));
    assert_eq!(option(OptionCode::ClientIdentifier), Some(DhcpOption::ClientIdentifier(b"\x01z".to_vec())));
    assert_eq!(
        option(OptionCode::ClientMachineIdentifier),
        Some(DhcpOption::ClientMachineIdentifier(b"\x00ab".to_vec()))
    );
}

#[test]
fn an_operating_system_gets_no_boot_file_and_http_boot_gets_its_url() {
    let url = "http://10.77.0.1/grub/x86_64-efi.efi";
    let plain = decode(&reply(Kind::Ack, &raw(&[53, 1, 3, 255]), &grant(&[], url)).unwrap());
    assert_eq!(plain.opts().get(OptionCode::BootfileName), None);
    assert_eq!(plain.opts().get(OptionCode::ClassIdentifier), None);
    assert_eq!((plain.fname(), plain.siaddr()), (None, Ipv4Addr::UNSPECIFIED));

    let asks = raw(b"\x35\x01\x01\x3c\x0aHTTPClient\x5d\x02\x00\x10\xff");
    let http = decode(&reply(Kind::Offer, &asks, &grant(&[], url)).unwrap());
    let name = Some(&DhcpOption::BootfileName(url.into()));
    assert_eq!(http.opts().get(OptionCode::BootfileName), name);
    let class = Some(&DhcpOption::ClassIdentifier(b"HTTPClient".to_vec()));
    assert_eq!(http.opts().get(OptionCode::ClassIdentifier), class);
    assert_eq!(http.opts().get(OptionCode::VendorExtensions), None);
    assert_eq!(http.opts().get(OptionCode::TFTPServerName), None);
}

#[test]
fn a_nak_gives_nothing_and_crosses_relays_by_broadcast() {
    let mut request = raw(b"\x35\x01\x03\x3c\x09PXEClient\x3d\x02\x01z\x52\x03\x01\x01x\xff");
    request[field::GIADDR..][..4].copy_from_slice(&[10, 77, 0, 2]);
    request[field::CIADDR..][..4].copy_from_slice(&[10, 9, 9, 9]);
    let bytes = reply(Kind::Nak, &request, &grant(&[1, 4, 255, 255, 255, 0], "x")).unwrap();
    let nak = decode(&bytes);
    assert_eq!(nak.opts().msg_type(), Some(v4::MessageType::Nak));
    assert!(nak.flags().broadcast());
    for address in [nak.ciaddr(), nak.yiaddr(), nak.siaddr()] {
        assert_eq!(address, Ipv4Addr::UNSPECIFIED);
    }
    let codes: Vec<u8> = nak.opts().iter().map(|(code, _)| u8::from(*code)).collect();
    assert_eq!(codes, [53, 54, 61, 82]);
}

#[test]
fn limits_of_the_client_and_of_the_buffer() {
    let long = |code: u8, len: u8| [&[code, len][..], &vec![9; len as usize]].concat();
    let common = long(224, 250);
    let given = grant(&common, "grub/i386-pc.0");
    let small = raw(&[&[53, 1, 1][..], &long(61, 100), &[255]].concat());
    assert_eq!(reply(Kind::Offer, &small, &given), Err(TooLong), "576 bytes unless option 57 says more");
    let told = raw(&[&[53, 1, 1, 57, 2, 5, 0xc0][..], &long(61, 100), &[255]].concat());
    assert_eq!(reply(Kind::Offer, &told, &given).unwrap().len(), 240 + 3 + 6 * 4 + 252 + 102 + 1);
    // The relay takes option 82 out again: it does not count against the client's limit.
    let relayed = raw(&[&[53, 1, 1][..], &long(61, 200), &long(82, 255), &[255]].concat());
    let bytes = reply(Kind::Offer, &relayed, &grant(&[], "x")).unwrap();
    assert!(bytes.ends_with(&[&long(82, 255)[..], &[255]].concat()), "option 82 is the last");
    let huge = raw(&[&[53, 1, 1, 57, 2, 255, 255][..], &long(61, 255), &long(82, 255), &[255]].concat());
    let bytes = reply(Kind::Offer, &huge, &given);
    assert_eq!(bytes.map(|b| b.len()), Err(TooLong), "240 + 27 + 252 + 257 + 257 + 1 is beyond the cap");
}

#[test]
fn a_short_reply_is_padded_with_zeros() {
    let bytes = reply(Kind::Nak, &raw(&[53, 1, 3, 255]), &grant(&[], "x")).unwrap();
    assert_eq!(bytes.len(), 300);
    assert_eq!(bytes[249], 255);
    assert!(bytes[250..].iter().all(|b| *b == 0), "nothing of the reply before shows");
}

prop_compose! {
    /// A message by dhcproto, with any of the options that are read.
    fn message()(
        kind in prop::sample::select(vec![1u8, 3, 4, 7, 8]),
        xid: u32, flags: u16, ciaddr: u32, giaddr: u32,
        mac in prop::array::uniform6(any::<u8>()),
        requested: Option<u32>, server: Option<u32>, size: Option<u16>, arch in prop::option::of(0u16..20),
        class in prop::option::of(prop::sample::select(vec!["PXEClient:Arch:00000", "HTTPClient", "MSFT 5.0"])),
        ipxe: bool,
        client_id in prop::option::of(prop::collection::vec(any::<u8>(), 1..80)),
        machine_id in prop::option::of(prop::collection::vec(any::<u8>(), 17)),
    ) -> Message {
        let mut m = Message::new_with_id(
            xid, ciaddr.into(), Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, giaddr.into(),
            &[mac[0] & 0xfe, mac[1], mac[2], mac[3], mac[4], mac[5] | 1],
        );
        m.set_flags(flags.into());
        let o = m.opts_mut();
        o.insert(DhcpOption::MessageType(kind.into()));
        o.insert(DhcpOption::ParameterRequestList(vec![OptionCode::Router]));
        requested.map(|v| o.insert(DhcpOption::RequestedIpAddress(v.into())));
        server.map(|v| o.insert(DhcpOption::ServerIdentifier(v.into())));
        size.map(|v| o.insert(DhcpOption::MaxMessageSize(v)));
        arch.map(|v| o.insert(DhcpOption::ClientSystemArchitecture(v.into())));
        class.map(|v| o.insert(DhcpOption::ClassIdentifier(v.into())));
        ipxe.then(|| o.insert(DhcpOption::UserClass(b"iPXE".to_vec())));
        client_id.map(|v| o.insert(DhcpOption::ClientIdentifier(v)));
        machine_id.map(|v| o.insert(DhcpOption::ClientMachineIdentifier(v)));
        m
    }
}

fn address(message: &Message, code: OptionCode) -> Ipv4Addr {
    match message.opts().get(code) {
        Some(DhcpOption::RequestedIpAddress(a) | DhcpOption::ServerIdentifier(a)) => *a,
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

fn value(message: &Message, code: OptionCode) -> &[u8] {
    match message.opts().get(code) {
        Some(DhcpOption::ClientIdentifier(v) | DhcpOption::ClientMachineIdentifier(v)) => v,
        _ => &[],
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn random_options_never_panic(options in prop::collection::vec(any::<u8>(), 0..784)) {
        let bytes = raw(&[&[53, 1, 1][..], &options].concat());
        if parse(&bytes).is_ok() {
            let _ = reply(Kind::Offer, &bytes, &grant(&[3, 4, 1, 2, 3, 4], "grub/i386-pc.0"));
        }
    }

    #[test]
    fn we_read_what_dhcproto_writes(message in message()) {
        let bytes = message.to_vec().unwrap();
        let (packet, len) = packet(&bytes);
        let request = Request::parse(&packet, len).unwrap();
        prop_assert_eq!(request.message as u8, u8::from(message.opts().msg_type().unwrap()));
        prop_assert_eq!(request.xid, message.xid().to_be_bytes());
        prop_assert_eq!(request.broadcast(), message.flags().broadcast());
        prop_assert_eq!(request.ciaddr, message.ciaddr());
        prop_assert_eq!(request.giaddr, message.giaddr());
        prop_assert_eq!(&request.mac.0[..], message.chaddr());
        prop_assert_eq!(request.requested, address(&message, OptionCode::RequestedIpAddress));
        prop_assert_eq!(request.server_id, address(&message, OptionCode::ServerIdentifier));
        prop_assert_eq!(request.client_id.of(&packet), value(&message, OptionCode::ClientIdentifier));
        prop_assert_eq!(request.machine_id.of(&packet), value(&message, OptionCode::ClientMachineIdentifier));
    }

    #[test]
    fn dhcproto_reads_what_we_write(
        message in message(),
        kind in prop::sample::select(vec![Kind::Offer, Kind::Ack, Kind::Nak, Kind::Informed, Kind::ProxyOffer]),
        domain in prop::collection::vec(b'a'..=b'z', 1..100),
    ) {
        let bytes = message.to_vec().unwrap();
        let common = [&[3, 4, 10, 77, 0, 1, 15, domain.len() as u8][..], &domain].concat();
        let Ok(reply) = reply(kind, &bytes, &grant(&common, "grub/x86_64-efi.efi")) else {
            return Err(TestCaseError::fail("it fits in 576 bytes"));
        };
        prop_assert!((300..=548).contains(&reply.len()));
        let read = decode(&reply);
        prop_assert_eq!(read.opcode(), v4::Opcode::BootReply);
        prop_assert_eq!(read.xid(), message.xid());
        prop_assert_eq!(read.chaddr(), message.chaddr());
        prop_assert_eq!(read.giaddr(), message.giaddr());
        prop_assert_eq!(address(&read, OptionCode::ServerIdentifier), Ipv4Addr::new(10, 77, 0, 1));
        prop_assert_eq!(value(&read, OptionCode::ClientIdentifier), value(&message, OptionCode::ClientIdentifier));
        let configured = matches!(kind, Kind::Offer | Kind::Ack | Kind::Informed);
        let name = DhcpOption::DomainName(std::string::String::from_utf8(domain).unwrap());
        prop_assert_eq!(read.opts().get(OptionCode::DomainName), configured.then_some(&name));
        let lease = matches!(kind, Kind::Offer | Kind::Ack);
        prop_assert_eq!(read.opts().contains(OptionCode::AddressLeaseTime), lease);
        prop_assert_eq!(read.yiaddr() == Ipv4Addr::new(10, 77, 0, 100), lease);
        // Nothing but zeros behind the END that dhcproto stopped at.
        let again = Message::decode(&mut Decoder::new(&read.to_vec().unwrap())).unwrap();
        prop_assert_eq!(read, again);
    }
}
