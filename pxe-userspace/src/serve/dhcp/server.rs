//! The DHCP server (RFC 2131 section 4.3) as a pure function of packets and time: what to store,
//! what to send, what happened. Nothing here waits, reads a clock or touches a socket.

mod asked;
mod heard;
mod pace;
mod status;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::{self, BUFFER, Firmware, Grant, Kind, MessageType, Packet, Request, TooLong};
use pxe_common::wire::port;

use self::asked::{Asked, aliases, event, noted, parse, recipient};
use super::Scope;
use super::kernel::Answered;
use super::leases::{Aliases, Change, Lease, Leases, Refused, Speakable};
use crate::config::rules::Facts;
use crate::config::{Config, DhcpMode};
use crate::machines::diagnosis::Note;
use crate::machines::pacing::{self, Pacing, Patience, Verdict};
use crate::machines::timeline::{Happened, Stage, Who};

pub use heard::Unnamed;
use status::TELL_AGAIN;
pub use status::{Counters, Elsewhere, Evidence, Rival};

/// Who sent a datagram, and to which of our ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub source: SocketAddrV4,
    /// 67, or 4011 for PXE clients that look for a boot server.
    pub port: u16,
    /// By which port of the bridge it came, as far as somebody looked.
    pub behind: pacing::Port,
}

/// How a reply finds its client (RFC 2131 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// By IP: a relay, or a client whose address works.
    Ip(SocketAddrV4),
    /// In a frame to this station, from port 67 to port 68: the client has no address yet, so
    /// nobody would answer an ARP request for it. iPXE asks for this (broadcast flag 0).
    Link { mac: Mac, address: Ipv4Addr },
}

/// A reply, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub to: To,
    /// The port it leaves from: the one that was asked.
    pub from_port: u16,
    pub bytes: Vec<u8>,
}

/// What must be done about a packet, in this order; sending only once every
/// [`Persist`](Command::Persist) is on disk.
#[derive(Clone, Debug)]
pub enum Command {
    Persist(Change),
    /// What the request says about its machine.
    Described {
        mac: Mac,
        firmware: Option<Firmware>,
        uuid: Option<String>,
        profile: Option<String>,
    },
    Bound {
        mac: Mac,
        address: Ipv4Addr,
    },
    Released(Mac),
    /// The machine's lease may not be what the kernel was told: see [`Server::standing`].
    Standing(Mac),
    /// The same for every machine.
    AllStanding,
    /// The machine is not offered an address yet: the number of machines before it.
    Waits(Mac, usize),
    Event(Happened),
    Noted(Mac, Note),
    /// A rule may give the machine a name: first that, then [`Server::handle_named`].
    Unnamed(Unnamed),
    /// The request gets no answer, and no other Command reports it.
    Unanswered {
        source: SocketAddrV4,
        why: &'static str,
    },
    /// Another station sent a message in the machine's name.
    Forged(Mac),
    Send(Reply),
    /// Another DHCP server is on the wire.
    Rival(Rival),
    /// A machine of a subnet that is not served asks.
    Elsewhere(Elsewhere),
}

/// A lease from which the kernel may answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// The contents of replies.
    pub grant: Grant,
    /// The latest end of a promised lease time.
    pub durable_until: Timestamp,
    pub netmask: Ipv4Addr,
}

/// The server's state.
pub struct Server {
    scope: Scope,
    leases: Leases,
    counters: Counters,
    rivals: status::Rivals,
    forged: Option<(Mac, Timestamp)>,
    /// The machine of a subnet that is not served that asked last, and when its like were told of.
    elsewhere: Option<(Elsewhere, Timestamp)>,
    pacing: Pacing,
    /// The last DISCOVER of each machine that waits for its turn.
    held: HashMap<Mac, (Meta, Vec<u8>)>,
    /// Bytes a second that the configuration allows, and that the links carry, if known.
    ceiling: Option<u64>,
    link_speed: Option<u64>,
    /// Only machines whose boot is in progress may be answered by the kernel: see [`Server::standing`].
    tight: bool,
}

impl Server {
    /// A server for `config` with the leases of the store.
    pub fn new(config: Arc<Config>, stored: impl IntoIterator<Item = Lease>) -> Self {
        let ceiling = config.network.ceiling;
        let scope = Scope::new(config);
        let leases = Leases::new(scope.pool(), stored);
        let mut server = Self {
            scope,
            leases,
            counters: Counters::new(),
            rivals: status::Rivals::default(),
            forged: None,
            elsewhere: None,
            pacing: Pacing::new(ceiling),
            held: HashMap::new(),
            ceiling,
            link_speed: None,
            tight: false,
        };
        server.pacing.set_declared(server.scope.declared());
        server.tighten();
        server
    }

    /// Changes the configuration; leases stay.
    pub fn reconfigure(&mut self, config: Arc<Config>) {
        self.scope = Scope::new(config);
        self.leases.set_pool(self.scope.pool());
        self.pacing.set_declared(self.scope.declared());
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Other DHCP servers seen on the wire.
    pub fn rivals(&self) -> impl Iterator<Item = &Rival> {
        self.rivals.iter()
    }

    /// The store failed to take `changes`: their replies were not sent, and the next request
    /// tries again.
    pub fn not_durable(&mut self, changes: &[Change]) {
        self.leases.not_durable(changes);
    }

    /// What the kernel may answer the machine on its own; `None` if the daemon would not answer the same,
    /// or would make the machine wait.
    pub fn standing(&self, mac: Mac, now: Timestamp) -> Option<Standing> {
        if self.scope.mode() != DhcpMode::Authoritative || !self.scope.serves(mac) || !self.may_offer(mac) {
            return None;
        }
        // The daemon gives it a name first.
        if self.scope.may_be_named(&Facts::new(mac)) {
            return None;
        }
        let Speakable { address, until } = self.leases.speakable(mac, now)?;
        Some(Standing {
            grant: self.scope.grant(mac, address),
            durable_until: until,
            netmask: self.scope.netmask(),
        })
    }

    /// Every machine that the kernel may answer.
    pub fn all_standing(&self, now: Timestamp) -> impl Iterator<Item = (Mac, Standing)> {
        let machines = self.leases.iter().map(|lease| lease.mac);
        machines.filter_map(move |mac| Some((mac, self.standing(mac, now)?)))
    }

    /// Everything that the kernel did before `until` was reported by [`answered`](Server::answered),
    /// unless some of it was `lost`.
    pub fn heard(&mut self, until: Timestamp, lost: bool) {
        self.leases.heard(until, lost);
    }

    /// The kernel answered a request by itself.
    pub fn answered(&mut self, answered: Answered, now: Timestamp) -> Vec<Command> {
        let Answered { mac, address, firmware, message, by } = answered;
        let event = |stage| {
            let happened = Happened { answered_by: by, ..Happened::new(Who::Mac(mac), stage) };
            Command::Event(happened.firmware(firmware))
        };
        let mut commands = Vec::new();
        let stages = match message {
            MessageType::Discover => {
                if self.would_boot(mac, firmware) {
                    self.pacing.offered(mac, now);
                }
                commands.push(self.description(mac, firmware, None));
                [Stage::Discover, Stage::Offer]
            }
            _ => {
                match self.leases.bind(mac, address, &Aliases::default(), now) {
                    // Rewritten when half of the time ahead is used up, and with it the kernel's grant.
                    Ok(changes) if changes.is_empty() => {}
                    Ok(changes) => {
                        commands.extend(changes.into_iter().map(Command::Persist));
                        commands.push(Command::Standing(mac));
                    }
                    Err(_) => self.counters.overtaken += 1,
                }
                commands.push(Command::Bound { mac, address });
                [Stage::Request, Stage::Ack]
            }
        };
        match firmware.boots() {
            true => commands.extend(stages.map(event)),
            false => commands.push(Command::Noted(mac, Note::SystemAsked)),
        }
        commands
    }

    /// Decides about a request.
    fn answer(
        &mut self,
        meta: Meta,
        packet: Packet,
        request: Request,
        datagram: &[u8],
        now: Timestamp,
    ) -> Vec<Command> {
        self.counters.received(request.message);
        self.counters.odd += u64::from(request.odd);
        if !self.scope.serves(request.mac) {
            self.counters.ignored += 1;
            return Vec::new();
        }
        let aliases = aliases(&request, &packet);
        let asked = Asked { request, packet: &packet, meta, aliases };
        match self.scope.mode() {
            DhcpMode::Off => Vec::new(),
            DhcpMode::Proxy => self.proxy(&asked),
            DhcpMode::Authoritative if meta.port == port::PXE => self.boot_server(&asked),
            // One subnet is configured; its addresses are useless behind another subnet's relay.
            DhcpMode::Authoritative if self.is_foreign(request.place()) => {
                self.counters.foreign_relay += 1;
                let unanswered = Command::Unanswered { source: meta.source, why: "foreign-relay" };
                std::iter::once(unanswered).chain(self.elsewhere(&asked, now)).collect()
            }
            DhcpMode::Authoritative => {
                let commands = match request.message {
                    MessageType::Discover => self.discover(&asked, datagram, now),
                    MessageType::Request => self.request(&asked, now),
                    MessageType::Decline => self.decline(&asked, now),
                    MessageType::Release => self.release(&asked, now),
                    MessageType::Inform => self.inform(&asked),
                };
                commands.into_iter().chain(self.tighten()).collect()
            }
        }
    }

    /// Another station sent a message in a machine's name. Its contents are ignored.
    pub fn forged(&mut self, mac: Mac, now: Timestamp) -> Vec<Command> {
        self.counters.forged += 1;
        self.forged = Some((mac, now));
        vec![Command::Forged(mac)]
    }

    /// The machine in whose name the last forged message was, and when.
    pub fn last_forged(&self) -> Option<(Mac, Timestamp)> {
        self.forged
    }

    /// Another server's packet to a client was overheard. Our own do not arrive here.
    pub fn overhear(&mut self, datagram: &[u8], source: Ipv4Addr, now: Timestamp) -> Vec<Command> {
        let Some(status::Replied { server, client, acks, next }) = status::replying_server(datagram, source)
        else {
            return Vec::new();
        };
        match (self.scope.mode(), client) {
            // GRUB asks whomever the other server's ACK names.
            (DhcpMode::Proxy, Some(mac)) if acks && self.scope.profile(mac).is_some() => {
                vec![Command::Noted(mac, Note::NextServer { server, next })]
            }
            _ => self.rival(server, client, Evidence::Replied, now),
        }
    }

    /// A machine of another subnet wants to boot. It would wait for an answer in vain, and nobody would know.
    fn elsewhere(&mut self, asked: &Asked<'_>, now: Timestamp) -> Vec<Command> {
        let Request { mac, firmware, message, .. } = asked.request;
        if !firmware.boots() || message != MessageType::Discover {
            return Vec::new();
        }
        let place = asked.request.place();
        let told = self.elsewhere.and_then(|(last, told)| {
            let lately = now.duration_since(told).unsigned_abs() < TELL_AGAIN;
            (last.place == place && lately).then_some(told)
        });
        let elsewhere = Elsewhere { place, mac, time: now };
        self.elsewhere = Some((elsewhere, told.unwrap_or(now)));
        let mut commands = Vec::new();
        if told.is_none() {
            commands.push(Command::Elsewhere(elsewhere));
        }
        let cause = format!(
            "it asks from behind {place}, of a subnet that is not served: {} is",
            self.scope.subnet()
        );
        commands.extend(self.described(asked));
        commands.extend(event(asked, Stage::Discover));
        commands.push(Command::Event(Happened::failed(Who::Mac(mac), cause)));
        commands
    }

    /// The machine of another subnet that asked last.
    pub fn last_elsewhere(&self) -> Option<Elsewhere> {
        self.elsewhere.map(|(last, _)| last)
    }

    fn discover(&mut self, asked: &Asked<'_>, datagram: &[u8], now: Timestamp) -> Vec<Command> {
        let Request { mac, firmware, .. } = asked.request;
        let mut commands = self.described(asked);
        let verdict = match self.would_boot(mac, firmware) {
            true => self.pacing.asked(mac, asked.meta.behind, Patience::of(firmware), now),
            false => Verdict::Offer,
        };
        match verdict {
            // A DISCOVER may begin another boot, so its notes come after it.
            Verdict::Wait { before } => {
                commands.extend(self.hold(asked, datagram, before));
                commands.push(Command::Noted(mac, noted(asked)));
            }
            Verdict::Offer => {
                self.held.remove(&mac);
                commands.extend(event(asked, Stage::Discover));
                commands.push(Command::Noted(mac, noted(asked)));
                commands.extend(self.offer(asked, now));
            }
        }
        commands
    }

    fn offer(&mut self, asked: &Asked<'_>, now: Timestamp) -> Vec<Command> {
        let Request { mac, requested, .. } = asked.request;
        let mut commands = Vec::new();
        match self.leases.offer(mac, requested, &asked.aliases, now) {
            Ok((address, changes)) => {
                commands.extend(changes.into_iter().map(Command::Persist));
                // Its next packet may arrive before the kernel's event of an ACK.
                commands.push(Command::Bound { mac, address });
                commands.push(Command::Standing(mac));
                let sent = self.send(Kind::Offer, asked, address);
                commands.extend(sent.is_some().then(|| event(asked, Stage::Offer)).flatten());
                commands.extend(sent);
            }
            Err(error) => {
                self.counters.exhausted += u64::from(error == Refused::Exhausted);
                commands.push(Command::Event(Happened::failed(Who::Mac(mac), error.to_string())));
            }
        }
        commands
    }

    /// The four meanings of DHCPREQUEST (RFC 2131 section 4.3.2), told apart by table 4.
    fn request(&mut self, asked: &Asked<'_>, now: Timestamp) -> Vec<Command> {
        let Request { mac, requested, server_id, ciaddr, .. } = asked.request;
        if self.is_for_another(&asked.request) {
            self.leases.withdraw(mac, now);
            let rival = self.rival(server_id, Some(mac), Evidence::Chosen, now);
            return std::iter::once(Command::Standing(mac)).chain(rival).collect();
        }
        // SELECTING and INIT-REBOOT name the address in option 50; RENEWING and REBINDING use it.
        let wanted = if requested.is_unspecified() { ciaddr } else { requested };
        if wanted.is_unspecified() {
            self.counters.senseless += 1;
            return Vec::new();
        }
        let mut commands = self.described(asked);
        commands.extend(event(asked, Stage::Request));
        // Authoritative: a free address is confirmed even if we have no record of it (the store was
        // lost, another server was here before), and any other gets a NAK, so that the client starts
        // over instead of waiting for its timeouts.
        match self.leases.bind(mac, wanted, &asked.aliases, now) {
            Ok(changes) => {
                commands.extend(changes.into_iter().map(Command::Persist));
                commands.push(Command::Bound { mac, address: wanted });
                commands.push(Command::Standing(mac));
                let sent = self.send(Kind::Ack, asked, wanted);
                commands.extend(sent.is_some().then(|| event(asked, Stage::Ack)).flatten());
                commands.extend(sent);
            }
            Err(_) => commands.extend(self.send(Kind::Nak, asked, Ipv4Addr::UNSPECIFIED)),
        }
        commands
    }

    fn decline(&mut self, asked: &Asked<'_>, now: Timestamp) -> Vec<Command> {
        let Request { mac, requested, .. } = asked.request;
        if self.is_for_another(&asked.request) {
            return Vec::new();
        }
        let changes = self.leases.decline(mac, requested, now);
        if changes.is_empty() {
            self.counters.senseless += 1;
            return Vec::new();
        }
        let cause = format!(
            "{requested} is in use by somebody else (DHCPDECLINE): it rests for an hour; find who has it"
        );
        let mut commands: Vec<_> = changes.into_iter().map(Command::Persist).collect();
        commands.extend([Command::Released(mac), Command::Standing(mac)]);
        commands.push(Command::Event(Happened::failed(Who::Mac(mac), cause)));
        commands
    }

    fn release(&mut self, asked: &Asked<'_>, now: Timestamp) -> Vec<Command> {
        let Request { mac, ciaddr, .. } = asked.request;
        if self.is_for_another(&asked.request) {
            return Vec::new();
        }
        let changes = self.leases.release(mac, ciaddr, now);
        if changes.is_empty() {
            self.counters.senseless += 1;
            return Vec::new();
        }
        let ended = [Command::Released(mac), Command::Standing(mac)];
        changes.into_iter().map(Command::Persist).chain(ended).collect()
    }

    fn inform(&mut self, asked: &Asked<'_>) -> Vec<Command> {
        let mut request = asked.request;
        if request.ciaddr.is_unspecified() {
            request.ciaddr = *asked.meta.source.ip();
        }
        // The reply goes to the address that the client gives, but not outside this segment.
        if request.ciaddr.is_unspecified() || !self.scope.is_local(request.ciaddr) {
            self.counters.senseless += 1;
            return Vec::new();
        }
        let asked = Asked { request, aliases: asked.aliases.clone(), ..*asked };
        self.send(Kind::Informed, &asked, Ipv4Addr::UNSPECIFIED).into_iter().collect()
    }

    /// ProxyDHCP (PXE 2.1 section 2.2): another server gives addresses, we name the boot file.
    fn proxy(&mut self, asked: &Asked<'_>) -> Vec<Command> {
        let Request { mac, firmware, message, requested, .. } = asked.request;
        if asked.meta.port == port::PXE {
            return self.boot_server(asked);
        }
        if !firmware.boots() || self.scope.profile(mac).is_none() {
            return Vec::new();
        }
        let mut commands = self.described(asked);
        match message {
            MessageType::Discover => {
                commands.extend(event(asked, Stage::Discover));
                // A proxy offers only a boot; without one it is silent (PXE 2.1 section 2.2.3).
                if self.would_boot(mac, firmware) {
                    commands.extend(event(asked, Stage::Offer));
                    commands.extend(self.send(Kind::ProxyOffer, asked, Ipv4Addr::UNSPECIFIED));
                }
            }
            // From the client's request to the other server we learn its address.
            MessageType::Request if !requested.is_unspecified() => {
                commands.push(Command::Bound { mac, address: requested });
                commands.extend(event(asked, Stage::Request));
            }
            MessageType::Request | MessageType::Decline | MessageType::Release | MessageType::Inform => {}
        }
        commands
    }

    /// A PXE client asks port 4011 which file to boot, as EDK2 does unless option 43 prevents it.
    fn boot_server(&mut self, asked: &Asked<'_>) -> Vec<Command> {
        let wants_file = self.would_boot(asked.request.mac, asked.request.firmware);
        let asks = matches!(asked.request.message, MessageType::Request | MessageType::Inform);
        if !wants_file || !asks || asked.meta.source.ip().is_unspecified() {
            return Vec::new();
        }
        self.send(Kind::ProxyAck, asked, Ipv4Addr::UNSPECIFIED).into_iter().collect()
    }

    /// Builds the reply, without the least needed options if it would be too long for the client.
    fn send(&mut self, kind: Kind, asked: &Asked<'_>, address: Ipv4Addr) -> Option<Command> {
        let Asked { request, packet, meta, .. } = asked;
        let mut grant = self.scope.grant(request.mac, address);
        // RFC 5107: the relay wants to see everything that the client sends to its server.
        if !request.relay.server.is_unspecified() {
            grant.server = request.relay.server.octets();
        }
        let mut out = [0; BUFFER];
        let len = loop {
            match dhcp::build(&mut out, kind, request, packet, &grant) {
                Ok(len) => break len,
                Err(TooLong) if self.scope.shorten(&mut grant) => {}
                Err(TooLong) => {
                    self.counters.reply_too_long += 1;
                    return None;
                }
            }
        };
        self.counters.sent(kind);
        let to = recipient(kind, request, *meta, address);
        Some(Command::Send(Reply { to, from_port: meta.port, bytes: out[..len].to_vec() }))
    }

    fn described(&self, asked: &Asked<'_>) -> Vec<Command> {
        let Request { mac, firmware, .. } = asked.request;
        vec![self.description(mac, firmware, asked.aliases.uuid.clone())]
    }

    fn description(&self, mac: Mac, firmware: Firmware, uuid: Option<String>) -> Command {
        Command::Described {
            mac,
            firmware: firmware.boots().then_some(firmware),
            uuid,
            profile: self.scope.profile(mac).map(str::to_owned),
        }
    }

    /// Another server answered `client`.
    fn rival(
        &mut self,
        server: Ipv4Addr,
        client: Option<Mac>,
        evidence: Evidence,
        now: Timestamp,
    ) -> Vec<Command> {
        // A proxy is meant to run beside another server.
        if server == self.scope.address() || self.scope.mode() != DhcpMode::Authoritative {
            return Vec::new();
        }
        let note = Note::OtherServer { server, taken: evidence == Evidence::Chosen };
        let noted = client.map(|mac| Command::Noted(mac, note));
        noted.into_iter().chain(self.rivals.seen(server, evidence, now).map(Command::Rival)).collect()
    }

    /// Whether a machine is in another subnet than ours.
    fn is_foreign(&self, place: Ipv4Addr) -> bool {
        !place.is_unspecified() && !self.scope.is_local(place)
    }

    fn is_for_another(&self, request: &Request) -> bool {
        let ours = [Ipv4Addr::UNSPECIFIED, self.scope.address(), request.relay.server];
        !ours.contains(&request.server_id)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
