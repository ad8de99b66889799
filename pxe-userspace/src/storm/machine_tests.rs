//! Machines without a server, and with one whose answers the test chooses.

use super::super::link::MS;
use super::*;

const MAC: Mac = Mac([0x02, 0x73, 0x74, 0, 0, 1]);

/// When an unanswered machine sends, in milliseconds, and the last message on its screen.
fn alone(firmware: Firmware) -> (Vec<u64>, String) {
    let mut machine = Machine::new(MAC, firmware);
    let (mut out, mut contents, mut times) = (Frames::default(), Contents::default(), Vec::new());
    let mut now = 0;
    machine.power_on(&mut World { now, out: &mut out, contents: &mut contents });
    loop {
        times.extend(out.iter().map(|_| now / MS));
        out.clear();
        now = machine.wakes_at();
        machine.wake(&mut World { now, out: &mut out, contents: &mut contents });
        if let State::Failed(cause) = machine.state() {
            assert_eq!(machine.wakes_at(), u64::MAX);
            return (times, format!("{cause} at {} s", now / 1000 / MS));
        }
    }
}

#[test]
fn nobody_answers() {
    let (times, end) = alone(Firmware::Ipxe);
    assert_eq!(times, [0, 1000, 3000, 7000]);
    assert_eq!(end, "No configuration methods succeeded (https://ipxe.org/040ee119) at 15 s");
    let (times, end) = alone(Firmware::Bios);
    assert_eq!(times, [0, 4000, 12_000, 28_000]);
    assert_eq!(end, "PXE-E51: No DHCP or proxyDHCP offers were received. at 60 s");
    // It looks for offers after 3.8 s instead of 4, so everything that follows is 0.2 s early.
    let (times, end) = alone(Firmware::Uefi);
    assert_eq!(times, [0, 3800, 11_800, 27_800]);
    assert_eq!(end, "PXE-E16: No valid offer received. at 59 s");
}

#[test]
fn an_offer_is_taken_when_the_firmware_takes_it() {
    use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
    use dhcproto::{Decodable as _, Decoder, Encodable as _};
    use pxe_common::wire::Checksum;

    for (firmware, requested_after) in [(Firmware::Uefi, 3800), (Firmware::Ipxe, 10), (Firmware::Bios, 10)] {
        let mut machine = Machine::new(MAC, firmware);
        let (mut out, mut contents) = (Frames::default(), Contents::default());
        machine.power_on(&mut World { now: 0, out: &mut out, contents: &mut contents });
        let discover = out.iter().next().unwrap()[HEADERS_LEN..].to_vec();
        out.clear();
        let mut message = Message::decode(&mut Decoder::new(&discover)).unwrap();
        let server = Ipv4Addr::new(10, 77, 0, 1);
        message.set_opcode(Opcode::BootReply).set_yiaddr([10, 77, 0, 100]).set_siaddr(server);
        let options = message.opts_mut();
        options.clear();
        options.insert(DhcpOption::MessageType(MessageType::Offer));
        options.insert(DhcpOption::ServerIdentifier(server));
        options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
        options.insert(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
        options.insert(DhcpOption::BootfileName(b"grub/x\0".to_vec()));
        let offer = message.to_vec().unwrap();
        let datagram = Datagram {
            source_mac: Mac([2; 6]),
            destination_mac: MAC,
            source: server,
            destination: Ipv4Addr::new(10, 77, 0, 100),
            source_port: 67,
            destination_port: 68,
            payload_len: offer.len() as u16,
        };
        let frame = [&datagram.headers(Checksum::ZERO.bytes(&offer))[..], &offer].concat();
        let mut now = 10 * MS;
        machine.receive(&frame, &mut World { now, out: &mut out, contents: &mut contents });
        assert_eq!(machine.reached(Stage::Offer), Some(now));
        if out.len() == 0 {
            now = machine.wakes_at();
            machine.wake(&mut World { now, out: &mut out, contents: &mut contents });
        }
        assert_eq!(now / MS, requested_after, "{firmware:?}");
        let request = out.iter().next().unwrap()[HEADERS_LEN..].to_vec();
        let request = Message::decode(&mut Decoder::new(&request)).unwrap();
        assert_eq!(request.opts().msg_type(), Some(MessageType::Request), "{firmware:?}");
        assert_eq!(request.xid(), message.xid());
    }
}
