use std::io::Write as _;
use std::process::Command;

use super::*;

const OWN: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
const ASKER: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);

fn solicitation(source: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 2];
    frame.extend(ASKER.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).octets());
    frame.extend([ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    frame
}

#[test]
fn the_asker_is_answered_where_it_listens() {
    let source = link_local(ASKER);
    let frame = answer(&solicitation(source), OWN).unwrap();
    assert_eq!(frame[..6], ASKER.0);
    assert_eq!(frame[38..54], source.octets());
    let frame = answer(&solicitation(Ipv6Addr::UNSPECIFIED), OWN).unwrap();
    assert_eq!((&frame[..6], &frame[38..54]), (&ASKER.0[..], &ALL_NODES.octets()[..]));
}

#[test]
fn what_is_no_solicitation_gets_no_answer() {
    let good = solicitation(link_local(ASKER));
    for (at, byte, why) in [
        (13, 0, "EtherType"),
        (14, 0x40, "version"),
        (20, 17, "next header"),
        (21, 254, "crossed a router"),
        (19, 9, "payload longer than the frame"),
        (19, 4, "payload too short"),
        (54, 134, "type"),
        (55, 1, "code"),
        (22, 0x20, "source beyond the link"),
        (6, 1, "group source"),
    ] {
        let mut frame = good.clone();
        frame[at] = byte;
        assert_eq!(answer(&frame, OWN), None, "{why}");
    }
    for len in 0..good.len() {
        assert_eq!(answer(&good[..len], OWN), None, "cut to {len}");
    }
    assert_eq!(answer(&good, ASKER), None, "our own");
}

/// Verified with tshark: it decodes the frames as advertisements with good checksums.
#[test]
fn tshark_accepts_the_advertisements() {
    let frames = [unsolicited(OWN), answer(&solicitation(link_local(ASKER)), OWN).unwrap()];
    let mut pcap = tempfile::NamedTempFile::new().unwrap();
    let mut header = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend([0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    for frame in &frames {
        let len = (frame.len() as u32).to_le_bytes();
        header.extend([[0; 4], [0; 4], len, len].concat());
        header.extend(frame);
    }
    pcap.write_all(&header).unwrap();
    let fields =
        ["icmpv6.type", "icmpv6.checksum.status", "icmpv6.nd.ra.router_lifetime", "icmpv6.opt.linkaddr"];
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(pcap.path()).args(["-T", "fields"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let Ok(output) = tshark.output() else {
        eprintln!("skipped: tshark is not installed");
        return;
    };
    let line = "134\t1\t0\t02:77:00:00:00:01";
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(), [line, line]);
}
