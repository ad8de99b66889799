//! What a request asks for, what it says about its machine, and where its reply goes.

use std::net::{Ipv4Addr, SocketAddrV4};

use pxe_common::Mac;
use pxe_common::dhcp::{BUFFER, Kind, Packet, Pass, Request, field};
use pxe_common::wire::port;
use uuid::Uuid;

use super::{Command, Meta, To};
use crate::machines::diagnosis::Note;
use crate::machines::timeline::{Happened, Stage, Who};
use crate::serve::dhcp::leases::Aliases;
use crate::serve::dhcp::rare;

/// A parsed request with its packet.
pub(super) struct Asked<'a> {
    pub(super) request: Request,
    pub(super) packet: &'a Packet,
    pub(super) meta: Meta,
    pub(super) aliases: Aliases,
}

/// The packet in a buffer of its own, and what it asks for.
pub(super) fn parse(datagram: &[u8]) -> Result<(Packet, Request), Pass> {
    let mut packet = [0; BUFFER];
    let copied = datagram.len().min(BUFFER);
    packet[..copied].copy_from_slice(&datagram[..copied]);
    match Request::parse(&packet, datagram.len()) {
        Ok(request) => Ok((packet, request)),
        Err(pass) if pass.is_rare_but_legal() => {
            let (packet, len) = rare::unfold(datagram)?;
            Ok((packet, Request::parse(&packet, len)?))
        }
        Err(pass) => Err(pass),
    }
}

/// RFC 2131 section 4.1, in its order.
pub(super) fn recipient(kind: Kind, request: &Request, meta: Meta, yiaddr: Ipv4Addr) -> To {
    let broadcast = To::Link { mac: Mac::BROADCAST, address: Ipv4Addr::BROADCAST };
    if kind == Kind::ProxyAck {
        return To::Ip(meta.source);
    }
    if !request.giaddr.is_unspecified() {
        let port = if request.relay.source_port { meta.source.port() } else { port::DHCP_SERVER };
        return To::Ip(SocketAddrV4::new(request.giaddr, port));
    }
    if kind == Kind::Nak {
        return broadcast;
    }
    if !request.ciaddr.is_unspecified() {
        return To::Ip(SocketAddrV4::new(request.ciaddr, port::DHCP_CLIENT));
    }
    // A proxy's offer has no address to which it could be sent.
    if request.broadcast() || yiaddr.is_unspecified() {
        return broadcast;
    }
    To::Link { mac: request.mac, address: yiaddr }
}

/// A stage of a network boot. A request or renewal by an operating system is no boot: it must not reset
/// the stage of a machine that runs its workload.
pub(super) fn event(asked: &Asked<'_>, stage: Stage) -> Option<Command> {
    let Request { mac, firmware, .. } = asked.request;
    firmware.boots().then(|| Command::Event(Happened::new(Who::Mac(mac), stage).firmware(firmware)))
}

/// What a DISCOVER reveals beside its request.
pub(super) fn noted(asked: &Asked<'_>) -> Note {
    let [a, b] = [asked.packet[field::SECS], asked.packet[field::SECS + 1]];
    if asked.request.firmware.boots() { Note::Secs(u16::from_be_bytes([a, b])) } else { Note::SystemAsked }
}

pub(super) fn aliases(request: &Request, packet: &Packet) -> Aliases {
    let client_id = request.client_id.of(packet);
    Aliases {
        client_id: (!client_id.is_empty()).then(|| crate::base::text::hex(client_id)),
        uuid: uuid(request.machine_id.of(packet)),
    }
}

/// Option 97's type 0: a GUID whose first three fields are little-endian (RFC 4578 section 2.3;
/// SMBIOS 2.6 has it so). All zero is a machine that has none.
pub(super) fn uuid(option: &[u8]) -> Option<String> {
    let [0, guid @ ..] = option else { return None };
    let uuid = Uuid::from_slice_le(guid).ok()?;
    (!uuid.is_nil()).then(|| uuid.to_string())
}
