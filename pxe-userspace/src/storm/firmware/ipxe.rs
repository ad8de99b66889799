//! iPXE in the ROM of a BIOS machine's network card, as QEMU 7.2 has it: tests/corpus/bios-virtio.pcap;
//! and its scripts, when the appliance sends one.

use super::super::dhcp::{self, Identity, Kind, Offers};
use super::super::tftp::{self, Silence, Stray};
use super::{Rom, machine_id, option};

/// A retry timer's course (src/net/retry.c): from a quarter of a second, doubled until 10 s are passed.
const RETRY: &[u32] = &[250, 500, 1000, 2000, 4000, 8000];

pub(in super::super) static ROM: Rom = Rom {
    dhcp: dhcp::Habits {
        options,
        broadcast: false,
        // 4, 10, 18: seen, whatever the clock says.
        secs: |n| (n * (n + 3)) as u16,
        // DHCP_DISC_START_TIMEOUT_SEC to DHCP_DISC_END_TIMEOUT_SEC: 1, 2, 4, 8.
        discover: &[1000, 2000, 4000, 8000],
        request: &[1000, 2000, 4000, 8000],
        offers: Offers::FirstComplete,
        no_offer: "No configuration methods succeeded (https://ipxe.org/040ee119)",
        no_ack: "No configuration methods succeeded (https://ipxe.org/040ee119)",
    },
    tftp: tftp::Habits {
        probe: None,
        options: b"blksize\x001432\0tsize\x000\0",
        request: RETRY,
        silence: Silence::AcksAgain(RETRY),
        stray: Stray::LastInOrder,
    },
    arp: RETRY,
    announces: true,
    platform: "i386-pc",
    no_answer: "Connection timed out (https://ipxe.org/4c126035)",
    refused: "No such file or directory (https://ipxe.org/2d126001)",
};

/// Features, and the card's PCI identity: a virtio one's (ipxe.org/howto/dhcpd).
const ENCAPSULATED: &[u8] = &[
    0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0xeb, 3, 1, 0, 0, 0x17, 1, 1, 0x22, 1, 1, 0x13, 1, 1, 0x11, 1, 1, 0x27,
    1, 1, 0x19, 1, 1, 0x29, 1, 1, 0x10, 1, 2, 0x21, 1, 1, 0x15, 1, 1, 0x18, 1, 1, 0x12, 1, 1,
];

fn options(who: &Identity, kind: &Kind) -> Vec<u8> {
    let mut all = Vec::with_capacity(180);
    option(&mut all, 53, &[if *kind == Kind::Discover { 1 } else { 3 }]);
    option(&mut all, 57, &1472u16.to_be_bytes());
    option(&mut all, 93, &[0, 0]);
    option(&mut all, 94, &[1, 2, 1]);
    option(&mut all, 60, b"PXEClient:Arch:00000:UNDI:002001");
    // Without RFC 3004's length byte.
    option(&mut all, 77, b"iPXE");
    option(
        &mut all,
        55,
        &[1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203],
    );
    option(&mut all, 175, ENCAPSULATED);
    option(&mut all, 61, &[&[1][..], &who.mac.0].concat());
    machine_id(&mut all, &who.uuid);
    if let Kind::Request { address, server } = kind {
        option(&mut all, 54, &server.octets());
        option(&mut all, 50, &address.octets());
    }
    all
}

/// The contents of a script from the appliance (`boot::ipxe`).
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Script {
    /// The kernel's URL, the initrds', and the kernel's command line.
    Boot { files: Vec<String>, cmdline: String },
    /// The reason, and after how many seconds to ask again.
    Refused { cause: String, pause: u64 },
}

pub(in super::super) fn script(text: &str) -> Script {
    let (mut files, mut cmdline, mut said, mut pause) = (Vec::new(), String::new(), Vec::new(), 5);
    for line in text.lines() {
        let line = line.split(" || ").next().unwrap_or_default();
        match line.split_once(' ') {
            Some(("kernel", rest)) => {
                let (url, words) = rest.split_once(' ').unwrap_or((rest, ""));
                files.push(url.to_owned());
                words.clone_into(&mut cmdline);
            }
            Some(("initrd", rest)) => files.extend(rest.split(' ').next_back().map(str::to_owned)),
            Some(("echo", words)) => said.push(words),
            Some(("sleep", seconds)) => pause = seconds.trim_end_matches(" ||").parse().unwrap_or(pause),
            _ => {}
        }
    }
    match files.is_empty() {
        true => Script::Refused { cause: said.last().copied().unwrap_or_default().to_owned(), pause },
        false => Script::Boot { files, cmdline },
    }
}
