//! From a frame to the program that answers it, and from its verdict to the action on the frame.

use aya_ebpf::helpers::bpf_csum_diff;
use pxe_common::map::Part;
use pxe_common::verdict::{Pass, Verdict};
use pxe_common::wire::{Datagram, ETHERNET_LEN, Headers, IPV4_LEN, port};

use crate::frame::Frame;
use crate::{dhcp, maps, tftp};

/// Offset of a frame's EtherType.
const ETHERTYPE: u32 = 12;

/// The attached program: jumps to the part that handles the frame. A successful jump does not return.
#[inline(always)]
pub(crate) fn enter<F: Frame>(frame: F) -> F::Action {
    let pass = match headers(&frame) {
        Ok(packet) => {
            match packet.destination_port {
                port::DHCP_SERVER => maps::jump(&frame, Part::Dhcp),
                _ => maps::jump(&frame, Part::Tftp),
            }
            Pass::NoProgram
        }
        Err(pass) => pass,
    };
    conclude(&frame, Verdict::Pass(pass))
}

/// Answers DHCP requests.
#[inline(always)]
pub(crate) fn dhcp<F: Frame>(frame: F) -> F::Action {
    let answer =
        sound(&frame).and_then(|()| datagram(&frame)).and_then(|packet| dhcp::answer(&frame, packet));
    conclude(&frame, answer.unwrap_or_else(Verdict::Pass))
}

/// Answers the ACKs of transfers.
#[inline(always)]
pub(crate) fn tftp<F: Frame>(frame: F) -> F::Action {
    let answer =
        sound(&frame).and_then(|()| datagram(&frame)).and_then(|packet| tftp::answer(&frame, packet));
    conclude(&frame, answer.unwrap_or_else(Verdict::Pass))
}

#[inline(always)]
fn conclude<F: Frame>(frame: &F, verdict: Verdict) -> F::Action {
    maps::count(F::HOOK, verdict);
    frame.action(verdict)
}

/// Read again in each part: programs that exchange no data can be replaced one by one.
///
/// A separate function, so that the headers are on the stack no longer than needed: functions that call each other
/// share 512 bytes.
#[inline(never)]
fn datagram<'a, F: Frame>(frame: &F) -> Result<&'a Datagram, Pass> {
    let packet = maps::packet().ok_or(Pass::NoProgram)?;
    *packet = headers(frame)?;
    Ok(packet)
}

/// Passes a frame whose IPv4 header's checksum is wrong. Separate from [`datagram`] to save its stack.
#[inline(never)]
fn sound<F: Frame>(frame: &F) -> Result<(), Pass> {
    let mut header = [0u8; IPV4_LEN];
    // Helpers take less stack than a loop. They accept the header at any address.
    // SAFETY: the array is as long as we say, and the second helper only reads it.
    let sum = unsafe {
        if !frame.load_at(ETHERNET_LEN as u32, header.as_mut_ptr(), IPV4_LEN as u32) {
            return Err(Pass::Runt);
        }
        let header = header.as_mut_ptr().cast();
        bpf_csum_diff(core::ptr::null_mut(), 0, header, IPV4_LEN as u32, 0) as u32
    };
    // At most two carries.
    let sum = (sum & 0xffff) + (sum >> 16);
    if (sum & 0xffff) + (sum >> 16) == 0xffff { Ok(()) } else { Err(Pass::IpChecksum) }
}

#[inline(always)]
fn headers<F: Frame>(frame: &F) -> Result<Datagram, Pass> {
    if frame.has_hidden_tag() {
        return Err(Pass::Vlan);
    }
    let len = frame.len();
    let parsed = frame.read(|headers: &Headers| {
        let ethertype = u16::from_be_bytes([headers[12], headers[13]]);
        Datagram::parse(headers, len).map_err(|why| Pass::of_malformed(why, ethertype))
    });
    parsed.unwrap_or_else(|| {
        let ethertype = frame.load(ETHERTYPE).ok_or(Pass::Runt)?;
        Err(Pass::of_ethertype(u16::from_be_bytes(ethertype)))
    })
}
