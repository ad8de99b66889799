//! A TFTP packet: options are found by name, and OACK and ERROR read back as built.
use pxe_common::tftp::Packet;
use pxe_common::tftp::packet::{ack, data_header, error, oack};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    match packet {
        Packet::Read(request) | Packet::Write(request) => {
            for (name, value) in request.options.iter() {
                // The first option of a name counts, in upper or lower case.
                if let Ok(name) = std::str::from_utf8(name) {
                    let found = request.options.get(name).expect("the option is there");
                    let first = request.options.iter().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
                    assert_eq!(first.map(|(_, value)| value), Some(found));
                }
                let Some(value) = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()) else {
                    continue;
                };
                let mut buf = [0; 64];
                let bytes = oack(&mut buf, &[("tsize", value)]).expect("there is room");
                let Ok(Packet::Oack(options)) = Packet::parse(bytes) else { panic!("an OACK") };
                assert_eq!(options.get("TSIZE"), Some(value.to_string().as_bytes()));
            }
        }
        Packet::Data(block, data) => assert_eq!([&data_header(block), data].concat(), bytes),
        Packet::Ack(block) => {
            assert_eq!(ack(*bytes.first_chunk().expect("an ACK has four bytes")), Some(block));
        }
        Packet::Error(code, message) => {
            let Ok(message) = std::str::from_utf8(message) else { return };
            let mut buf = [0; 2048];
            let Some(bytes) = error(&mut buf, code, message) else { panic!("there is room") };
            if message.len() < 1024 {
                assert_eq!(Packet::parse(bytes), Ok(packet));
            }
        }
        Packet::Oack(_) => {}
    }
}
