//! A network card's own PXE ROM in a legacy BIOS, as Intel's Boot Agent and its many descendants are.
//!
//! There is no capture of one in tests/corpus: options and timers are those that PXE 2.1 (tables 2-1
//! and 2-2, section 2.2) and RFC 4578 ask for. The size probe, and block size 1456 after it, are the
//! Boot Agent's.

use pxe_common::tftp::packet::ErrorCode;

use super::super::dhcp::{self, Identity, Kind, Offers};
use super::super::tftp::{self, Probe, Silence, Stray};
use super::{Rom, machine_id, option};

pub(in super::super) static ROM: Rom = Rom {
    dhcp: dhcp::Habits {
        options,
        broadcast: true,
        secs: |n| [0, 4, 12, 28][(n - 1).min(3)],
        discover: &[4000, 8000, 16_000, 32_000],
        request: &[4000, 8000, 16_000, 32_000],
        offers: Offers::FirstComplete,
        no_offer: "PXE-E51: No DHCP or proxyDHCP offers were received.",
        no_ack: "PXE-E51: No DHCP or proxyDHCP offers were received. (DHCPACK)",
    },
    tftp: tftp::Habits {
        probe: Some(Probe { options: b"tsize\x000\0", error: ErrorCode::OTHER, message: "TFTP Aborted" }),
        options: b"blksize\x001456\0",
        request: &[4000; 6],
        silence: Silence::AcksAgain(&[4000; 6]),
        stray: Stray::LastInOrder,
    },
    arp: &[1000, 2000, 4000],
    announces: false,
    platform: "i386-pc",
    no_answer: "PXE-E32: TFTP open timeout",
    refused: "PXE-T01: File not found",
};

fn options(who: &Identity, kind: &Kind) -> Vec<u8> {
    let mut all = Vec::with_capacity(128);
    option(&mut all, 53, &[if *kind == Kind::Discover { 1 } else { 3 }]);
    if let Kind::Request { address, server } = kind {
        option(&mut all, 50, &address.octets());
        option(&mut all, 54, &server.octets());
    }
    option(
        &mut all,
        55,
        &[1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 43, 54, 60, 67, 128, 129, 130, 131, 132, 133, 134, 135],
    );
    option(&mut all, 57, &1260u16.to_be_bytes());
    machine_id(&mut all, &who.uuid);
    option(&mut all, 93, &[0, 0]);
    option(&mut all, 94, &[1, 2, 1]);
    option(&mut all, 60, b"PXEClient:Arch:00000:UNDI:002001");
    all
}
