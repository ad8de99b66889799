//! Frames that are put together here, with tshark as the judge.

use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let head = u16::from(kind) << 9 | value.len() as u16;
    [&head.to_be_bytes(), value].concat()
}

fn frame(tlvs: &[Vec<u8>]) -> Vec<u8> {
    let head = [&GROUPS[0][..], &[2, 0, 0, 0, 0, 1], &ETHERTYPE.to_be_bytes()].concat();
    [head, tlvs.concat()].concat()
}

fn mandatory() -> [Vec<u8>; 3] {
    [tlv(1, b"\x04\x00\x1c\x73\x00\x00\x01"), tlv(2, b"\x05Ethernet7"), tlv(3, &[0, 120])]
}

/// With everything that is read, and something that is not.
fn full() -> Vec<u8> {
    let [chassis, port, ttl] = mandatory();
    frame(&[
        chassis,
        port,
        ttl,
        tlv(4, b"rack a1, slot 17"),
        tlv(5, b"leaf-a1"),
        tlv(6, b"Arista Networks EOS"),
        tlv(7, &[0, 0x14, 0, 0x14]),
        tlv(127, b"\x00\x80\xc2\x01\x00\x4d"),
        tlv(127, b"\x00\x12\x0f\x04\x05\xf2"),
        tlv(0, b""),
    ])
}

#[test]
fn a_switch_says_who_it_is_and_which_port() {
    let neighbour = parse(&full()).unwrap();
    let text = |text: &str| Some(text.to_owned());
    let expected = Neighbour {
        nic: String::new(),
        chassis: "00:1c:73:00:00:01".into(),
        port: "Ethernet7".into(),
        port_description: text("rack a1, slot 17"),
        system: text("leaf-a1"),
        vlan: Some(77),
    };
    assert_eq!(neighbour, expected);
}

/// As lldpd 1.0.16 sent it on a veth pair of a machine called `vm`.
#[test]
fn a_frame_of_lldpd_is_read() {
    let frame = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/lldp/lldpd"));
    let neighbour = parse(frame).unwrap();
    assert_eq!((neighbour.chassis.as_str(), neighbour.system.as_deref()), ("ce:04:c8:63:c3:2f", Some("vm")));
    assert_eq!(neighbour.port_description.as_deref(), Some("tap1"));
}

#[test]
fn identities_of_each_kind() {
    let of = |chassis: &[u8], port: &[u8]| {
        let neighbour = parse(&frame(&[tlv(1, chassis), tlv(2, port), tlv(3, &[0, 1])]))?;
        Some((neighbour.chassis, neighbour.port))
    };
    let pair = |chassis: &str, port: &str| Some((chassis.to_owned(), port.to_owned()));
    assert_eq!(
        of(b"\x05\x01\x0a\x4d\x00\x01", b"\x03\x00\x1c\x73\0\0\x09"),
        pair("10.77.0.1", "00:1c:73:00:00:09")
    );
    let v6 = [&[5, 2, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat();
    assert_eq!(of(&v6, b"\x07\x31"), pair("2001:db8::1", "1"));
    assert_eq!(of(b"\x07sw1", b"\x04\x06\x00\x11"), pair("sw1", "060011"));
    assert_eq!(of(b"\x04short", b"\x071"), None, "no MAC address");
    assert_eq!(of(b"\x07", b"\x071"), None, "nothing at all");
}

#[test]
fn what_breaks_the_order_is_nobody() {
    let [chassis, port, ttl] = mandatory();
    let parsed =
        |tlvs: &[&Vec<u8>]| parse(&frame(&tlvs.iter().map(|tlv| (*tlv).clone()).collect::<Vec<_>>()));
    assert!(parsed(&[&chassis, &port, &ttl]).is_some(), "without an end");
    assert_eq!(parsed(&[&port, &chassis, &ttl]), None);
    assert_eq!(parsed(&[&chassis, &port]), None);
    assert_eq!(parsed(&[&chassis, &port, &ttl, &chassis]), None, "twice");
    assert_eq!(parsed(&[&chassis, &port, &tlv(3, &[0, 0])]), None, "it leaves");
    assert_eq!(parsed(&[&chassis, &port, &tlv(3, &[1])]), None);
    let mut cut = frame(&[chassis, port, ttl]);
    cut.push(0xff);
    assert_eq!(parse(&cut), None, "half a head");
    let mut other = full();
    other[13] = 0;
    assert_eq!(parse(&other), None, "another EtherType");
    assert_eq!(parse(&[]), None);
}

/// What tshark reads of a frame: chassis, port, description, name, VLAN.
fn tshark(frame: &[u8]) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let capture = dir.path().join("frame.pcap");
    let len = (frame.len() as u32).to_le_bytes();
    let head = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, 1].map(u32::to_le_bytes).concat();
    std::fs::write(&capture, [&head[..], &[0; 8], &len, &len, frame].concat()).unwrap();
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&capture).args(["-T", "fields", "-E", "separator=|"]);
    for field in [
        "lldp.chassis.id.mac",
        "lldp.port.id",
        "lldp.port.desc",
        "lldp.tlv.system.name",
        "lldp.ieee.802_1.port_vlan.id",
    ] {
        command.args(["-e", field]);
    }
    let output = command.stderr(Stdio::null()).output().ok()?;
    assert!(output.status.success(), "tshark");
    Some(
        String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .split('|')
            .map(str::to_owned)
            .collect(),
    )
}

#[test]
fn tshark_reads_the_same() {
    let neighbour = parse(&full()).unwrap();
    let Some(judged) = tshark(&full()) else {
        let _ = writeln!(std::io::stderr(), "skipped: tshark is not installed");
        return;
    };
    let ours = [
        Some(neighbour.chassis),
        Some(neighbour.port),
        neighbour.port_description,
        neighbour.system,
        neighbour.vlan.map(|vlan| vlan.to_string()),
    ];
    assert_eq!(judged, ours.map(Option::unwrap_or_default));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_frame_is_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, byte: u8) {
        parse(&bytes);
        let mut frame = full();
        let at = at % frame.len();
        frame[at] = byte;
        parse(&frame);
        parse(&frame[..at]);
    }
}
