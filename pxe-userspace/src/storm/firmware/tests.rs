//! Compares the simulation with captures of real firmware (tests/corpus), and reads the appliance's loader files.

use std::net::Ipv4Addr;
use std::path::Path;

use pxe_common::Mac;
use pxe_common::dhcp::field;
use pxe_common::wire::{Datagram, HEADERS_LEN, port};

use super::super::dhcp::{Identity, Kind, message};
use super::*;
use crate::provision::boot::{self, Plan, Refusal};

/// The payloads of a capture's datagrams to this port.
fn sent(file: &str, port: u16) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut rest, mut payloads) = (&bytes[24..], Vec::new());
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let frame = &tail[..len];
        rest = &tail[len..];
        let Some(Ok(datagram)) = frame.first_chunk().map(|h| Datagram::parse(h, len)) else { continue };
        if datagram.destination_port == port {
            payloads.push(frame[HEADERS_LEN..][..usize::from(datagram.payload_len)].to_vec());
        }
    }
    payloads
}

/// The messages of a capture, and the same conversation simulated.
fn conversation(file: &str, firmware: Firmware) -> Vec<(Vec<u8>, Vec<u8>)> {
    let real = sent(file, port::DHCP_SERVER);
    assert!(real.len() >= 2, "{file}");
    let pairs = (1..).zip(real).map(|(n, real)| {
        let mac = Mac(*real[field::CHADDR..].first_chunk().unwrap());
        let xid = u32::from_be_bytes(*real[field::XID..].first_chunk().unwrap());
        let option = |code: u8| {
            let mut options = &real[field::OPTIONS..];
            while options[0] != code {
                options = &options[2 + usize::from(options[1])..];
            }
            Ipv4Addr::from(*options[2..].first_chunk::<4>().unwrap())
        };
        let kind = match real[field::OPTIONS + 2] {
            1 => Kind::Discover,
            _ => Kind::Request { address: option(50), server: option(54) },
        };
        // Those machines had no UUID.
        let who = Identity { mac, uuid: [0; 16] };
        let simulated = message(&firmware.rom().dhcp, &who, &kind, xid, n);
        (real, simulated)
    });
    pairs.collect()
}

#[test]
fn edk2_and_ipxe_send_what_the_real_ones_sent() {
    let captures = [
        ("uefi-virtio.pcap", Firmware::Uefi),
        ("uefi-shim.pcap", Firmware::Uefi),
        ("bios-virtio.pcap", Firmware::Ipxe),
        ("bios-ipxe.pcap", Firmware::Ipxe),
    ];
    for (file, firmware) in captures {
        for (n, (real, simulated)) in conversation(file, firmware).into_iter().enumerate() {
            assert_eq!(simulated, real, "{file}: message {n}");
        }
    }
}

#[test]
fn an_e1000_differs_in_its_pci_identity_only() {
    for (real, simulated) in conversation("bios-e1000.pcap", Firmware::Ipxe) {
        let different: Vec<_> = (0..real.len()).filter(|i| real[*i] != simulated[*i]).collect();
        assert_eq!(real.len(), simulated.len());
        let (first, last) = (different[0], *different.last().unwrap());
        assert_eq!(simulated[first - 2..][..2], [5, 1], "option 175's part 177, PCI bus");
        assert!(last - first < 4, "vendor and device: {different:?}");
    }
}

/// Everything behind a read request's name and mode.
fn options<'a>(requests: &'a [Vec<u8>], name: &str) -> Vec<&'a [u8]> {
    let start = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
    requests.iter().filter_map(|r| r.strip_prefix(&*start)).collect()
}

#[test]
fn files_are_asked_for_as_the_real_ones_did() {
    let uefi = sent("uefi-virtio.pcap", port::TFTP);
    let edk2 = &Firmware::Uefi.rom().tftp;
    let probe = edk2.probe.as_ref().unwrap().options;
    assert_eq!(options(&uefi, "grub-x64.efi"), [probe, edk2.options]);
    assert_eq!(options(&uefi, "/vmlinuz"), [grub::TFTP.options]);

    let bios = sent("bios-virtio.pcap", port::TFTP);
    assert_eq!(options(&bios, "grub-bios.0"), [Firmware::Ipxe.rom().tftp.options]);
    assert_eq!(options(&bios, "/vmlinuz"), [grub::TFTP.options]);
    let names = |requests: &[Vec<u8>]| -> Vec<String> {
        let name = |r: &Vec<u8>| String::from_utf8(r[2..].split(|b| *b == 0).next().unwrap().to_vec());
        requests.iter().map(|r| name(r).unwrap()).collect()
    };
    for (requests, firmware) in [(bios, Firmware::Ipxe), (uefi, Firmware::Uefi)] {
        let names = names(&requests);
        let first = names.iter().find(|n| n.starts_with("/grub/grub.cfg-01-")).unwrap();
        let mac = first.trim_start_matches("/grub/grub.cfg-01-").parse().unwrap();
        assert_eq!(*first, grub::config_path(mac));
        let lists: Vec<_> = names.iter().filter(|n| n.ends_with(".lst")).cloned().collect();
        assert_eq!(lists, grub::lists(firmware.rom().platform));
    }
}

fn plan() -> Plan {
    Plan {
        kernel: "boot/aa/kernel".into(),
        initrds: vec!["boot/aa/stage1".into(), "boot/aa/image".into(), "boot/node/52:54:00:77:00:01".into()],
        cmdline: vec!["bridgehead.url=http://10.77.0.1:8080".into(), "title=it's \"a b\"".into()],
        settings: vec![],
        choice: None,
        needed: None,
    }
}

#[test]
fn our_grub_configuration_is_understood() {
    let text = boot::grub::boot("It's n1", Some("words"), "10.77.0.1:8080", Mac([2; 6]), &plan());
    let files = ["/boot/aa/kernel", "/boot/aa/stage1", "/boot/aa/image"].map(str::to_owned).to_vec();
    let grub::Config::Boot { files: found, cmdline } = grub::config(&text) else { panic!("{text}") };
    assert_eq!((found, &cmdline), (files, &plan().cmdline));
    let appliance = node::appliance(cmdline.iter().map(String::as_str));
    assert_eq!(appliance, Some("10.77.0.1:8080".parse().unwrap()));

    let text = boot::grub::refuse("n1", "grub/grub.cfg-01-x", &Refusal::Preparing("web".into()));
    let grub::Config::Refused { cause, pause } = grub::config(&text) else { panic!("{text}") };
    assert!(cause.contains("image web is not here yet"), "{cause}");
    assert_eq!(pause, 3);
}

#[test]
fn our_ipxe_script_is_understood() {
    let text = boot::ipxe::boot("n1", None, "http://10.77.0.1", Mac([2; 6]), &plan());
    let ipxe::Script::Boot { files, cmdline } = ipxe::script(&text) else { panic!("{text}") };
    assert_eq!(files.len(), 4, "{files:?}");
    assert_eq!(node::server(&files[0]).unwrap().0, "10.77.0.1:80".parse().unwrap());
    assert!(files[2].ends_with("/boot/aa/image"), "{files:?}");
    assert_eq!(node::appliance(cmdline.split(' ')), Some("10.77.0.1:8080".parse().unwrap()));

    let text = boot::ipxe::refuse("n1", "http://10.77.0.1", "boot/ipxe/x.ipxe", &Refusal::NoProfile);
    let ipxe::Script::Refused { cause, pause } = ipxe::script(&text) else { panic!("{text}") };
    assert!(cause.contains("no profile"), "{cause}");
    assert_eq!(pause, 30);
}
