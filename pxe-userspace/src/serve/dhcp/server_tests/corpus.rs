//! Requests of real firmware (tests/corpus) are answered, and dhcproto and tshark read the answers.

use std::io::Write as _;
use std::path::Path;
use std::process::Command as Process;

use pxe_common::dhcp::Firmware;
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use super::*;

/// The frames of a classic little-endian pcap file.
pub(super) fn frames(file: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(bytes[..4], [0xd4, 0xc3, 0xb2, 0xa1], "{file}");
    let (mut rest, mut frames) = (&bytes[24..], Vec::new());
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        frames.push(tail[..len].to_vec());
        rest = &tail[len..];
    }
    frames
}

/// Every DHCP request in the file, as the payload of its datagram.
fn requests(file: &str) -> Vec<Vec<u8>> {
    let all = frames(file);
    let requests = all.iter().filter_map(|frame| {
        let datagram = Datagram::parse(frame.first_chunk()?, frame.len()).ok()?;
        let to_server = datagram.destination_port == port::DHCP_SERVER;
        to_server.then(|| frame[HEADERS_LEN..][..usize::from(datagram.payload_len)].to_vec())
    });
    requests.collect()
}

/// The file's clients, boot after boot, with an address that we gave instead of dnsmasq's.
fn boot(file: &str, firmware: Firmware, boot_file: &str) -> Vec<Vec<u8>> {
    let mut server = server();
    let mut given = NONE;
    let mut replies = Vec::new();
    let requests = requests(file);
    assert!(requests.len() >= 2, "{file} has a DISCOVER and a REQUEST");
    for bytes in requests {
        let mut message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        let (_, request) = parse(&bytes).expect("the fixed-size parser reads all real firmware");
        assert_eq!(request.firmware, firmware, "{file}");
        let bytes = match message.opts().msg_type() {
            Some(Type::Request) => {
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(given));
                message.to_vec().unwrap()
            }
            _ => bytes,
        };
        let meta = Meta { source: SocketAddrV4::new(NONE, 68), port: 67, behind: 0 };
        let sent: Vec<_> = server.handle(meta, &bytes, now());
        let sent = sent.into_iter().find_map(|c| if let Command::Send(r) = c { Some(r) } else { None });
        let sent = sent.unwrap_or_else(|| panic!("{file}: {message:?} is not answered"));
        let reply = Message::decode(&mut Decoder::new(&sent.bytes)).unwrap();
        let expected = if request.message == MessageType::Discover { Type::Offer } else { Type::Ack };
        assert_eq!(reply.opts().msg_type(), Some(expected), "{file}");
        assert_eq!(super::file(&reply).as_deref(), Some(boot_file), "{file}");
        assert_eq!((reply.xid(), reply.chaddr()), (message.xid(), message.chaddr()), "{file}");
        for code in [OptionCode::ClientIdentifier, OptionCode::ClientMachineIdentifier] {
            assert_eq!(reply.opts().get(code), message.opts().get(code), "{file}");
        }
        let broadcast = matches!(sent.to, To::Link { mac: Mac::BROADCAST, .. });
        assert_eq!(broadcast, message.flags().broadcast(), "{file}");
        given = reply.yiaddr();
        replies.push(sent.bytes);
    }
    assert_eq!(server.leases().iter().count(), 1, "{file}: one machine, one lease");
    replies
}

/// Every capture with what its machine is, and boots.
pub(super) const CORPUS: [(&str, Firmware, &str); 6] = [
    ("bios-e1000.pcap", Firmware::IpxeBios, "grub/i386-pc.0"),
    ("bios-virtio.pcap", Firmware::IpxeBios, "grub/i386-pc.0"),
    ("bios-ipxe.pcap", Firmware::IpxeBios, "grub/i386-pc.0"),
    ("uefi-virtio.pcap", Firmware::UefiX64, "grub/x86_64-efi.efi"),
    ("uefi-shim.pcap", Firmware::UefiX64, "grub/x86_64-efi.efi"),
    ("uefi-httpboot.pcap", Firmware::HttpX64, "http://10.77.0.1/grub/x86_64-efi.efi"),
];

#[test]
fn real_firmware_is_answered() {
    for (file, firmware, boot_file) in CORPUS {
        boot(file, firmware, boot_file);
    }
}

#[test]
fn tshark_accepts_the_replies() {
    let mut pcap = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    let replies: Vec<_> =
        CORPUS.iter().flat_map(|(file, fw, boot_file)| boot(file, *fw, boot_file)).collect();
    for reply in &replies {
        let datagram = Datagram {
            source_mac: Mac([2, 0x77, 0, 0, 0, 1]),
            destination_mac: MAC,
            source: SERVER,
            destination: ip(100),
            source_port: 67,
            destination_port: 68,
            payload_len: reply.len() as u16,
        };
        let headers = datagram.headers(Checksum::ZERO.bytes(reply));
        let len = ((headers.len() + reply.len()) as u32).to_le_bytes();
        bytes.extend([[0; 4], [0; 4], len, len].concat());
        bytes.extend(headers);
        bytes.extend(reply);
    }
    pcap.write_all(&bytes).unwrap();
    let mut tshark = Process::new("tshark");
    tshark.args(["-o", "udp.check_checksum:TRUE", "-r"]).arg(pcap.path());
    tshark.args(["-T", "fields", "-e", "dhcp.option.dhcp_server_id", "-e", "udp.checksum.status"]);
    tshark.args(["-e", "_ws.malformed", "-e", "_ws.expert.message"]);
    let Ok(output) = tshark.output() else {
        eprintln!("skipped: tshark is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines, vec!["10.77.0.1\t1\t\t"; replies.len()], "checksum good, nothing to complain about");
}
