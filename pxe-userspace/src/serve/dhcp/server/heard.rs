//! What comes in, before it is decided about: what is no request, and machines that are to be named first.

use jiff::Timestamp;
use pxe_common::dhcp::MessageType;

use super::asked::{aliases, parse};
use super::{Command, Meta, Server};
use crate::config::rules::Facts;

/// A DISCOVER of a machine that may be given a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    pub facts: Facts,
    pub meta: Meta,
    pub datagram: Vec<u8>,
}

impl Server {
    /// A datagram arrived on one of the server's ports.
    pub fn handle(&mut self, meta: Meta, datagram: &[u8], now: Timestamp) -> Vec<Command> {
        let (packet, request) = match parse(datagram) {
            Ok(parsed) => parsed,
            Err(pass) => {
                self.counters.malformed(pass);
                return vec![Command::Unanswered { source: meta.source, why: pass.name() }];
            }
        };
        if request.message == MessageType::Discover && request.firmware.boots() {
            let relay = Some(request.giaddr).filter(|relay| !relay.is_unspecified());
            let uuid = aliases(&request, &packet).uuid;
            let facts = Facts { uuid, relay, ..Facts::new(request.mac) };
            if self.scope.may_be_named(&facts) {
                return vec![Command::Unnamed(Unnamed { facts, meta, datagram: datagram.to_vec() })];
            }
        }
        self.answer(meta, packet, request, datagram, now)
    }

    /// The same of a datagram whose machine was named, or is given no name.
    pub fn handle_named(&mut self, meta: Meta, datagram: &[u8], now: Timestamp) -> Vec<Command> {
        // It was parsed before.
        let Ok((packet, request)) = parse(datagram) else { return Vec::new() };
        self.answer(meta, packet, request, datagram, now)
    }
}
