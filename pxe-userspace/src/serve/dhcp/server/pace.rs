//! Makes machines wait, and answers them when it is their turn ([`crate::machines::pacing`] decides).

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;

use super::{Asked, Command, Meta, Server, aliases, parse};
use crate::machines::diagnosis::Note;
use crate::machines::pacing::Pacing;
use crate::machines::timeline::{Happened, Who};

impl Server {
    /// Who boots now, and who waits.
    pub fn pacing(&self) -> &Pacing {
        &self.pacing
    }

    /// The bytes a second that boots may take, if that is limited.
    pub fn capacity(&self) -> Option<u64> {
        self.ceiling.into_iter().chain(self.link_speed).min()
    }

    /// The links carry this many bytes a second, if known.
    pub fn set_link_speed(&mut self, bytes_per_second: Option<u64>) -> Vec<Command> {
        self.link_speed = bytes_per_second;
        self.pacing.set_capacity(self.capacity());
        self.tighten().into_iter().collect()
    }

    /// A machine reached a stage of its boot, whoever served it.
    pub fn reached(&mut self, mac: Mac, stage: Stage, now: Timestamp) -> Vec<Command> {
        let had_place = self.pacing.is_under_way(mac);
        self.pacing.reached(mac, stage, now);
        let lost_place = had_place && !self.pacing.is_under_way(mac);
        let standing = (lost_place && self.tight).then_some(Command::Standing(mac));
        standing.into_iter().chain(self.admit(now)).collect()
    }

    /// Time passed. `fetches` knows whether a machine has a transfer in progress.
    pub fn tick(&mut self, now: Timestamp, fetches: impl Fn(Mac) -> bool) -> Vec<Command> {
        let gone = self.pacing.forget_quiet(now, fetches);
        let standing = gone.into_iter().filter(|_| self.tight).map(Command::Standing);
        let mut commands: Vec<_> = standing.collect();
        commands.extend(self.admit(now));
        commands.extend(self.pacing.turns().map(|(mac, before)| Command::Waits(mac, before)));
        commands
    }

    /// Whether the machine would boot from here, once it has an address.
    pub(super) fn would_boot(&self, mac: Mac, firmware: Firmware) -> bool {
        firmware.slot() != Firmware::NO_BOOT && self.scope.profile(mac).is_some()
    }

    /// Whether the kernel may answer the machine. All machines with a grant may boot at once, faster than grants can
    /// be revoked. If these would be too many, the daemon answers each until it has a place.
    pub(super) fn may_offer(&self, mac: Mac) -> bool {
        !self.tight || self.pacing.is_under_way(mac)
    }

    /// Updates whether all known machines could boot at once.
    pub(super) fn tighten(&mut self) -> Option<Command> {
        let tight = self.pacing.most().is_some_and(|most| self.leases.machines() > most);
        let before = std::mem::replace(&mut self.tight, tight);
        (before != tight).then_some(Command::AllStanding)
    }

    /// Keeps a DISCOVER until its machine's turn has come.
    pub(super) fn hold(&mut self, asked: &Asked<'_>, datagram: &[u8], before: usize) -> [Command; 3] {
        let mac = asked.request.mac;
        self.counters.held += 1;
        self.held.insert(mac, (asked.meta, datagram.to_vec()));
        let firmware = asked.request.firmware;
        let event = Happened::new(Who::Mac(mac), Stage::Discover)
            .firmware(firmware)
            .detail(format!("{firmware}, waiting: {before} before it"));
        [Command::Event(event), Command::Noted(mac, Note::Waits { before }), Command::Waits(mac, before)]
    }

    /// Answers the machines whose turn it is: a client accepts an OFFER at any time until it gives up.
    fn admit(&mut self, now: Timestamp) -> Vec<Command> {
        let admitted = self.pacing.admit(now);
        let mut commands = Vec::new();
        for mac in admitted {
            let Some((meta, datagram)) = self.held.remove(&mac) else { continue };
            commands.extend(self.offer_late(meta, &datagram, now));
        }
        commands.extend(self.tighten());
        commands
    }

    fn offer_late(&mut self, meta: Meta, datagram: &[u8], now: Timestamp) -> Vec<Command> {
        // It was parsed before.
        let Ok((packet, request)) = parse(datagram) else { return Vec::new() };
        let asked = Asked { request, packet: &packet, meta, aliases: aliases(&request, &packet) };
        self.offer(&asked, now)
    }
}
