//! EDK2's PXE (NetworkPkg/UefiPxeBcDxe, Mtftp4Dxe), as OVMF 2022.11 has it: tests/corpus/uefi-virtio.pcap.

use pxe_common::tftp::packet::ErrorCode;

use super::super::dhcp::{self, Identity, Kind, Offers};
use super::super::tftp::{self, Probe, Silence, Stray};
use super::{Rom, machine_id, option};

pub(in super::super) static ROM: Rom = Rom {
    dhcp: dhcp::Habits {
        options,
        broadcast: true,
        secs: |_| 0,
        // mPxeDhcpTimeout, after PXE 2.1.
        discover: &[4000, 8000, 16_000, 32_000],
        request: &[4000, 8000, 16_000, 32_000],
        // Measured: 3.8 s after the DISCOVER, however early the offer arrived.
        offers: Offers::Collected(3800),
        no_offer: "PXE-E16: No valid offer received.",
        no_ack: "PXE-E18: Server response timeout. (DHCPACK)",
    },
    tftp: tftp::Habits {
        probe: Some(Probe {
            options: b"tsize\x000\0blksize\x001468\0windowsize\x004\0",
            error: ErrorCode::OPTIONS,
            message: "User aborted the transfer",
        }),
        options: b"blksize\x001468\0windowsize\x004\0",
        // PXEBC_MTFTP_TIMEOUT and PXEBC_MTFTP_RETRIES, for requests and ACKs alike.
        request: &[4000; 6],
        silence: Silence::AcksAgain(&[4000; 6]),
        // Mtftp4RrqHandleData.
        stray: Stray::LastInOrder,
    },
    arp: &[2000, 2000, 2000],
    announces: false,
    platform: "x86_64-efi",
    no_answer: "PXE-E18: Server response timeout.",
    refused: "PXE-E23: Client received TFTP error from server.",
};

fn options(who: &Identity, kind: &Kind) -> Vec<u8> {
    let mut all = Vec::with_capacity(128);
    match kind {
        Kind::Discover => {
            option(&mut all, 53, &[1]);
            option(&mut all, 57, &1472u16.to_be_bytes());
        }
        Kind::Request { address, server } => {
            option(&mut all, 53, &[3]);
            option(&mut all, 54, &server.octets());
            option(&mut all, 50, &address.octets());
            option(&mut all, 57, &[0xff, 0]);
        }
    }
    option(
        &mut all,
        55,
        &[
            1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67,
            97, 128, 129, 130, 131, 132, 133, 134, 135,
        ],
    );
    machine_id(&mut all, &who.uuid);
    option(&mut all, 94, &[1, 3, 0]);
    option(&mut all, 93, &[0, 7]);
    option(&mut all, 60, b"PXEClient:Arch:00007:UNDI:003000");
    all
}
