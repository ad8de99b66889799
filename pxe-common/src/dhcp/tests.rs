//! Checked with dhcproto: we read what it encodes, and it reads what we build.
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
        renewal_time: 1800,
        rebinding_time: 3150,
        options_len: options.len() as u16,
        reserved: 0,
        options: area,
        boot: boots,
    }
}

/// Builds a reply in a buffer that still contains other bytes.
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
        (&[53, 0, 255], Pass::NoMessageType),
        (&[53], Pass::NoMessageType),
        (&[53, 1], Pass::NoMessageType),
        (&[53, 1, 1, 52, 1, 1, 255], Pass::Overloaded),
        (&[53, 1, 1, 61, 2, 1, 2, 61, 2, 3, 4, 255], Pass::Split),
        (&[53, 1, 1, 53, 1, 3, 255], Pass::Split),
        (&[0; 80], Pass::TooManyOptions),
    ] {
        assert_eq!(parse(&raw(options)), Err(pass), "{options:?}");
    }
    assert!(parse(&raw(&[53, 1, 1])).is_ok(), "a missing END is forgiven");
    assert!(parse(&raw(&[53, 1, 1, 12, 1, b'a', 12, 1, b'b'])).is_ok(), "names are not read");
}

#[test]
fn an_option_that_is_not_as_defined_is_no_reason_for_silence() {
    let read = |options: &[u8]| parse(&raw(&[&[53, 1, 1], options].concat())).unwrap();
    let sound = read(&[255]);
    for options in [
        &[50, 0, 255][..],
        &[50, 3, 10, 77, 0, 255],
        &[54, 1, 10, 255],
        &[57, 1, 5, 255],
        &[57, 0, 255],
        &[93, 1, 7, 255],
        &[93, 0, 255],
        &[118, 2, 10, 77, 255],
        &[52, 0, 255],
        // Cut off: in the value, after the length, after the code.
        &[12, 20, b'a', b'b'],
        &[60, 9, b'P', b'X', b'E'],
        &[61, 7],
        &[12],
    ] {
        let odd = Request { odd: true, ..sound };
        assert_eq!(read(options), odd, "{options:?}: ignored, and said so");
        assert!(!odd.is_plain(), "the daemon counts it");
    }
    for options in
        [&[61, 0, 255][..], &[12, 0, 255], &[55, 0, 255], &[124, 4, 0, 0, 1, 2, 255], &[82, 0, 255]]
    {
        assert_eq!(read(options), sound, "{options:?}: empty, and no length is ruled out");
    }
    let long = read(&[50, 5, 10, 77, 0, 9, 1, 57, 4, 5, 0xc0, 0, 0, 255]);
    assert_eq!((long.requested, long.max_size, long.odd), (Ipv4Addr::new(10, 77, 0, 9), 1472, false));
    assert_eq!(parse(&raw(&[53, 2, 1, 1, 255])).unwrap().message, MessageType::Discover);
    let after = read(&[57, 1, 5, 50, 4, 10, 77, 0, 9, 255]);
    assert_eq!(after.requested, Ipv4Addr::new(10, 77, 0, 9), "what follows is read");
}

#[test]
fn what_a_relay_says() {
    let read = |giaddr: [u8; 4], options: &[u8]| {
        let mut bytes = raw(&[&[53, 1, 1], options, &[61, 2, 1, 9, 255]].concat());
        bytes[field::GIADDR..][..4].copy_from_slice(&giaddr);
        parse(&bytes).unwrap()
    };
    let of = |n| Ipv4Addr::new(10, n, 0, 0);
    let all = [82, 17, 1, 1, b'x', 5, 4, 10, 1, 0, 0, 11, 4, 10, 2, 0, 0, 19, 0];
    let request = read([10, 9, 0, 0], &all);
    assert_eq!(request.relay, Relay { link: of(1), server: of(2), source_port: true });
    assert_eq!(request.relay_agent, Span { at: 243, len: 19 }, "and is echoed whole");
    assert_eq!(request.client_id.len, 4, "the walk goes on behind it");
    assert!(!request.is_plain());
    assert_eq!(read([0; 4], &all).relay, Relay::SILENT, "a client can't speak for a relay");
    // PAD and END have no meaning inside; what exceeds the option is ignored.
    for (inside, odd) in
        [(&[82, 3, 0, 1, 5][..], false), (&[82, 4, 255, 2, 1, 2], false), (&[82, 3, 5, 4, 10], true)]
    {
        let request = read([10, 9, 0, 0], inside);
        assert_eq!((request.relay, request.odd), (Relay::SILENT, odd), "{inside:?}");
        assert_eq!(request.client_id.len, 4, "{inside:?}");
    }
    // RFC 3527 section 3: the link selection, before RFC 3011's subnet, before the relay.
    let subnet = [118, 4, 10, 3, 0, 0];
    assert_eq!(read([10, 9, 0, 0], &[&all[..], &subnet].concat()).place(), of(1));
    assert_eq!(read([10, 9, 0, 0], &subnet).place(), of(3));
    assert_eq!(read([0; 4], &subnet).place(), of(3), "a client without a relay may choose, too");
    assert_eq!(read([10, 9, 0, 0], &[]).place(), of(9));
    assert_eq!(read([0; 4], &[]).place(), Ipv4Addr::UNSPECIFIED);
    let bytes = raw(&[53, 1, 1, 118, 4, 10, 77, 0, 0, 255]);
    let reply = decode(&reply(Kind::Offer, &bytes, &grant(&[], "x")).unwrap());
    assert!(reply.opts().contains(OptionCode::SubnetSelection), "RFC 3011: it is returned");
}

#[test]
fn names_end_with_a_zero_for_who_reads_them_as_a_string() {
    for arch in [0, 7] {
        let request =
            raw(&[&[53, 1, 1, 60, 9], &b"PXEClient"[..], &[93, 2, 0, arch, 97, 3, 1, 2, 3, 255]].concat());
        let bytes =
            reply(Kind::Offer, &request, &grant(&[1, 4, 255, 255, 255, 0], "grub/i386-pc.0")).unwrap();
        for (code, name) in [(66, &b"10.77.0.1"[..]), (67, b"grub/i386-pc.0")] {
            let at = bytes.windows(2).position(|w| w == [code, name.len() as u8]).expect("the option") + 2;
            assert_eq!(&bytes[at..=at + name.len()], [name, &[0]].concat(), "option {code}");
        }
    }
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
    // By priority: 93, the text of 60, 94. A client without any of them is older than PXE 2.1.
    assert_eq!(of(b"\x3c\x09PXEClient"), Firmware::Bios);
    assert_eq!(of(pxe), Firmware::UefiX64, "60 alone");
    assert_eq!(of(b"\x3c\x14PXEClient:Arch:00000"), Firmware::Bios);
    assert_eq!(of(b"\x3c\x14PXEClient:Arch:00011"), Firmware::Other(11));
    for unsaid in [
        &b"\x3c\x13PXEClient:Arch:0000"[..],
        b"\x3c\x14PXEClient:Arch:0000x",
        b"\x3c\x14PXEClient.Arch.00007",
    ] {
        assert_eq!(of(unsaid), Firmware::Bios, "{unsaid:?}");
    }
    assert_eq!(of(b"\x3c\x09PXEClient\x5e\x03\x01\x03\x10"), Firmware::UefiX64, "by its UNDI, 3.16");
    assert_eq!(of(b"\x3c\x09PXEClient\x5e\x03\x01\x02\x01"), Firmware::Bios, "by its UNDI, 2.1");
    assert_eq!(of(&[pxe, &[93, 1, 7]].concat()), Firmware::UefiX64, "93 is too short: 60");
    assert_eq!(of(&[pxe, &[93, 2, 0, 0, 94, 3, 1, 3, 0]].concat()), Firmware::Bios, "93 before 60 and 94");
    assert_eq!(of(&[93, 2, 0, 7]), Firmware::UefiX64, "only network boots send 93");
    assert_eq!(of(&[94, 3, 1, 3, 0]), Firmware::None);
    assert_eq!(of(b"\x3c\x1fHTTPClient:Arch:00016:UNDI:003001"), Firmware::HttpX64);
    assert_eq!(of(b"\x3c\x15HTTPClient:Arch:00007\x5d\x02\x00\x07"), Firmware::Other(7), "a PXE number");
    assert_eq!(of(b"\x3c\x0aHTTPClient\x5d\x02\x00\x11"), Firmware::Other(17), "EBC");
    assert_eq!(of(b"\x3c\x0aHTTPClient\x5e\x03\x01\x03\x10"), Firmware::HttpX64, "by its UNDI");
    assert_eq!(of(b"\x3c\x15HTTPClient:Arch:00019"), Firmware::Other(19));
    assert_eq!(of(&[pxe, &[93, 2, 0, 0]].concat()), Firmware::Bios);
    assert_eq!(of(&[pxe, &[93, 2, 0, 7]].concat()), Firmware::UefiX64);
    assert_eq!(of(&[pxe, &[93, 2, 0, 9]].concat()), Firmware::UefiX64);
    assert_eq!(of(&[pxe, &[93, 4, 0, 7, 0, 0]].concat()), Firmware::UefiX64, "the first of a list");
    assert_eq!(of(&[pxe, &[93, 2, 0, 11]].concat()), Firmware::Other(11));
    assert_eq!(of(&[pxe, b"\x4d\x04iPXE", &[93, 2, 0, 0]].concat()), Firmware::IpxeBios);
    assert_eq!(of(&[pxe, b"\x4d\x05\x04iPXE", &[93, 2, 0, 7]].concat()), Firmware::IpxeUefiX64);
    assert_eq!(of(&[pxe, &[175, 3, 1, 1, 1, 93, 2, 0, 0]].concat()), Firmware::IpxeBios);
    assert_eq!(of(b"\x3c\x14PXEClient:Arch:00007\x4d\x04iPXE"), Firmware::IpxeUefiX64);
    assert_eq!(of(b"\x3c\x0aHTTPClient\x5d\x02\x00\x10"), Firmware::HttpX64);
    assert_eq!(of(b"\x3c\x0aHTTPClient"), Firmware::Other(u16::MAX));
    assert_eq!(of(b"\x3c\x0aHTTPClienx\x5d\x02\x00\x10"), Firmware::HttpX64, "by its number");
    assert_eq!(of(b"\x3c\x0aHTTPClienx"), Firmware::None);
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
    // The relay removes option 82: it does not count against the client's limit.
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
    /// A message encoded by dhcproto, with any of the options that are read.
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
        // Only zeros after the END, where dhcproto stopped.
        let again = Message::decode(&mut Decoder::new(&read.to_vec().unwrap())).unwrap();
        prop_assert_eq!(read, again);
    }
}
