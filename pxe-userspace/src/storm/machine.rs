//! One simulated machine, from power-on to its workload: its ROM, then GRUB or iPXE, then Linux.
//!
//! Pure: frames and the time go in, frames come out. [`Machine::wakes_at`] says when it wants the time.

mod software;

use std::net::{Ipv4Addr, SocketAddrV4};

use pxe_common::Mac;
use pxe_common::tftp::packet::ErrorCode;
use pxe_common::wire::{Datagram, ETHERNET_LEN, EtherType, HEADERS_LEN, IpProtocol, port};
use pxe_contract::stage::Stage;

use super::contents::{Contents, Sink};
use super::dhcp::{self, Identity, Lease};
use super::firmware::{Firmware, Rom, node};
use super::http::{self, Exchange};
use super::link::{Arp, Frames, Link, Retry, Tally, Waits};
use super::tftp::{self, Download};

/// What machines share, and where they put their frames.
pub(super) struct World<'a> {
    /// Nanoseconds since the storm began.
    pub(super) now: u64,
    pub(super) out: &'a mut Frames,
    pub(super) contents: &'a mut Contents,
}

#[derive(Debug)]
pub(super) struct Machine {
    firmware: Firmware,
    rom: &'static Rom,
    identity: Identity,
    link: Link,
    lease: Option<Lease>,
    task: Task,
    software: Software,
    /// The next UDP or TCP port of the running software.
    port: u16,
    powered_on: u64,
    /// When each stage was reached, after power-on.
    reached: [Option<u64>; Stage::Failed as usize],
    /// The previous connection, until the server has closed it, too.
    closing: Option<Box<Exchange>>,
    /// The last refusal in the loader's configuration.
    refusal: Option<String>,
    /// Whether it tells its facts.
    tells: bool,
}

/// What a machine reaches, in order.
pub(super) const STAGES: [Stage; 10] = [
    Stage::Discover,
    Stage::Offer,
    Stage::Ack,
    Stage::Loader,
    Stage::Config,
    Stage::Kernel,
    Stage::Initrd,
    Stage::Stage1,
    Stage::Image,
    Stage::Workload,
];

#[derive(Debug)]
enum Task {
    Off,
    Dhcp(dhcp::Client),
    /// Who has the next hop's address?
    Resolve(Retry, Ipv4Addr),
    Tftp(Box<Download>),
    Http(Box<Exchange>),
    Pause(u64),
    Booted,
    Failed(String),
}

/// The software that runs on the machine, and its progress.
#[derive(Debug)]
enum Software {
    Rom,
    Grub(Grub),
    /// iPXE's script, or one of the files that it names.
    Script(Files),
    /// Linux, with this many reports sent.
    Linux(SocketAddrV4, usize),
    /// Linux, behind its first report: it tells its facts.
    Tells(SocketAddrV4),
}

#[derive(Debug)]
enum Grub {
    /// Is there a configuration?
    Looks,
    Lists(usize),
    Reads,
    Loads(Files),
}

/// Kernel and initrds.
#[derive(Debug, Default)]
struct Files {
    names: Vec<String>,
    next: usize,
    appliance: Option<SocketAddrV4>,
}

/// A machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State<'a> {
    Off,
    Booting,
    Booted,
    Failed(&'a str),
}

impl Machine {
    pub(super) fn new(mac: Mac, firmware: Firmware) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        // Version 8 (RFC 9562 section 5.8): ours to choose.
        let uuid = [b's', b't', b'o', b'r', b'm', 0, 0x80, 0, 0x80, 0, a, b, c, d, e, f];
        let rom = firmware.rom();
        Self {
            firmware,
            rom,
            identity: Identity { mac, uuid },
            link: Link::new(mac),
            lease: None,
            task: Task::Off,
            software: Software::Rom,
            port: 0,
            powered_on: 0,
            reached: [None; Stage::Failed as usize],
            closing: None,
            refusal: None,
            tells: false,
        }
    }

    /// Has it tell its facts.
    pub(super) fn telling(self, tells: bool) -> Self {
        Self { tells, ..self }
    }

    pub(super) fn power_on(&mut self, world: &mut World<'_>) {
        self.powered_on = world.now;
        let [.., c, d, e, f] = self.identity.mac.0;
        let xid = u32::from_be_bytes([c, d, e, f]) ^ (world.now as u32).rotate_left(16);
        self.port = 2070 + (xid % 20_000) as u16;
        let client =
            dhcp::Client::start(&self.rom.dhcp, self.identity, xid, &self.link, world.now, world.out);
        self.reach(Stage::Discover, world.now);
        self.task = Task::Dhcp(client);
    }

    pub(super) fn state(&self) -> State<'_> {
        match &self.task {
            Task::Off => State::Off,
            Task::Booted => State::Booted,
            Task::Failed(cause) => State::Failed(cause),
            Task::Dhcp(_) | Task::Resolve(..) | Task::Tftp(_) | Task::Http(_) | Task::Pause(_) => {
                State::Booting
            }
        }
    }

    pub(super) fn mac(&self) -> Mac {
        self.identity.mac
    }

    pub(super) fn firmware(&self) -> Firmware {
        self.firmware
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    pub(super) fn tally(&self) -> Tally {
        self.link.tally
    }

    pub(super) fn reached(&self, stage: Stage) -> Option<u64> {
        self.reached[stage as usize]
    }

    /// Sends a DHCPRELEASE when it has an address.
    pub(super) fn release(&self, out: &mut Frames) {
        let Some(lease) = &self.lease else { return };
        let message = dhcp::release(self.identity.mac, lease, 0);
        self.link.udp(out, lease.server, (port::DHCP_CLIENT, port::DHCP_SERVER), &message);
    }

    /// The last stage that it reached.
    pub(super) fn stage(&self) -> Option<Stage> {
        STAGES.into_iter().rev().find(|stage| self.reached(*stage).is_some())
    }

    /// The simulated loss took a frame from or to it.
    pub(super) fn lost(&mut self) {
        self.link.bereft = true;
    }

    /// When [`wake`](Self::wake) is wanted; never for those that have ended.
    pub(super) fn wakes_at(&self) -> u64 {
        let closing = self.closing.as_ref().map_or(u64::MAX, |exchange| exchange.due());
        let task = match &self.task {
            Task::Off | Task::Booted | Task::Failed(_) => u64::MAX,
            Task::Dhcp(client) => client.due(),
            Task::Resolve(retry, _) => retry.due,
            Task::Tftp(download) => download.due(),
            Task::Http(exchange) => exchange.due(),
            Task::Pause(until) => *until,
        };
        task.min(closing)
    }

    /// The storm's patience with it has ended.
    pub(super) fn give_up(&mut self, seconds: u64) {
        let stage = self.stage().map_or("nothing".to_owned(), crate::base::text::word);
        let refusal = self.refusal.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        self.task =
            Task::Failed(format!("not booted after {seconds} s, the last stage is `{stage}`{refusal}"));
    }

    pub(super) fn wake(&mut self, world: &mut World<'_>) {
        let (link, now) = (&mut self.link, world.now);
        if let Some(exchange) = self.closing.as_mut().filter(|exchange| exchange.due() <= now) {
            let ended = exchange.close(None, link, now, world.out);
            self.closing = self.closing.take().filter(|_| !ended);
        }
        if self.wakes_at() > now {
            return;
        }
        let link = &mut self.link;
        match &mut self.task {
            Task::Off | Task::Booted | Task::Failed(_) => {}
            Task::Dhcp(client) => {
                let progress = client.wake(link, now, world.out);
                self.dhcp(progress, world);
            }
            Task::Resolve(retry, target) => {
                if retry.again(now) {
                    link.retried();
                    link.ask(world.out, *target);
                } else {
                    let cause = format!("nobody answers ARP for {target}");
                    self.fail(cause);
                }
            }
            Task::Tftp(download) => {
                let progress = download.wake(link, now, world.out);
                self.tftp(progress, world);
            }
            Task::Http(exchange) => {
                let progress = exchange.wake(link, now, world.out);
                self.http(progress, world);
            }
            Task::Pause(_) => self.begin_again(world),
        }
    }

    /// Takes a frame that is for this machine or for everybody.
    pub(super) fn receive(&mut self, frame: &[u8], world: &mut World<'_>) {
        match frame.get(12..14).and_then(|t| t.first_chunk()).map(|t| u16::from_be_bytes(*t)) {
            Some(EtherType::ARP) => {
                if let Some(arp) = Arp::parse(frame) {
                    self.arp(&arp, world);
                }
            }
            Some(EtherType::IPV4) if frame.get(23) == Some(&IpProtocol::TCP) => {
                self.tcp(&frame[ETHERNET_LEN..], world);
            }
            Some(EtherType::IPV4) => self.udp(frame, world),
            _ => {}
        }
    }

    fn arp(&mut self, arp: &Arp, world: &mut World<'_>) {
        self.link.answer(world.out, arp);
        if let Task::Resolve(_, target) = self.task
            && arp.sender == target
            && !arp.is_request
        {
            self.link.next_hop = Some(arp.sender_mac);
            self.link.progressed();
            self.resolved(world);
        }
    }

    fn udp(&mut self, frame: &[u8], world: &mut World<'_>) {
        let Some(Ok(datagram)) = frame.first_chunk().map(|h| Datagram::parse(h, frame.len())) else { return };
        let payload = &frame[HEADERS_LEN..][..usize::from(datagram.payload_len)];
        let (link, now) = (&mut self.link, world.now);
        match &mut self.task {
            Task::Dhcp(client) if datagram.destination_port == port::DHCP_CLIENT => {
                let progress = client.receive(payload, link, now, world.out);
                self.dhcp(progress, world);
            }
            Task::Tftp(download) if datagram.destination == link.address => {
                let ports = (datagram.source_port, datagram.destination_port);
                let progress = download.receive(ports, payload, link, now, world.out);
                self.tftp(progress, world);
            }
            Task::Off
            | Task::Dhcp(_)
            | Task::Resolve(..)
            | Task::Tftp(_)
            | Task::Http(_)
            | Task::Pause(_)
            | Task::Booted
            | Task::Failed(_) => {}
        }
    }

    fn tcp(&mut self, packet: &[u8], world: &mut World<'_>) {
        let Some(port) = http::destination_port(packet) else { return };
        let (link, now) = (&mut self.link, world.now);
        if let Task::Http(exchange) = &mut self.task
            && exchange.port() == port
        {
            let progress = exchange.receive(packet, link, now, world.out);
            self.http(progress, world);
        } else if let Some(exchange) = self.closing.as_mut().filter(|exchange| exchange.port() == port) {
            let ended = exchange.close(Some(packet), link, now, world.out);
            self.closing = self.closing.take().filter(|_| !ended);
        }
    }

    fn dhcp(&mut self, progress: dhcp::Progress, world: &mut World<'_>) {
        match progress {
            dhcp::Progress::Going => {}
            dhcp::Progress::Offered => self.reach(Stage::Offer, world.now),
            dhcp::Progress::Failed(cause) => self.fail(cause),
            dhcp::Progress::Bound(lease) => {
                self.reach(Stage::Ack, world.now);
                self.link.address = lease.address;
                self.lease = Some(lease);
                if self.rom.announces {
                    self.link.ask(world.out, self.link.address);
                }
                self.resolve(self.rom.arp, world);
            }
        }
    }

    /// Each software has an ARP table of its own, empty at its start.
    fn resolve(&mut self, waits: Waits, world: &mut World<'_>) {
        let target = self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, Lease::next_hop);
        self.link.next_hop = None;
        self.link.ask(world.out, target);
        self.task = Task::Resolve(Retry::start(waits, world.now), target);
    }

    /// The next hop is known: the software that runs asks for its first file.
    fn resolved(&mut self, world: &mut World<'_>) {
        match &self.software {
            Software::Rom => {
                let file = self.lease.as_ref().map(|l| l.file.clone()).unwrap_or_default();
                match node::server(&file).is_some() {
                    true => self.get(&file, Sink::keep(), world),
                    false => {
                        let sink = world.contents.sink(&file);
                        self.load(&self.rom.tftp, &file, sink, world);
                    }
                }
            }
            Software::Grub(_) => self.grub_step(world),
            Software::Script(_) => {}
            Software::Linux(..) => self.report(world),
            Software::Tells(_) => self.tell(world),
        }
    }

    fn load(&mut self, habits: &'static tftp::Habits, path: &str, sink: Sink, world: &mut World<'_>) {
        let server = self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |l| l.next_server);
        let port = self.next_port();
        let download = Download::start(habits, path, (server, port), sink, &self.link, world.now, world.out);
        self.task = Task::Tftp(Box::new(download));
    }

    fn get(&mut self, url: &str, sink: Sink, world: &mut World<'_>) {
        let Some((server, path)) = node::server(url) else {
            return self.fail(format!("{url:?} is no URL that the simulator can follow"));
        };
        let request = node::get(server, path);
        self.exchange(server, path, request, sink, world);
    }

    fn exchange(
        &mut self,
        server: SocketAddrV4,
        path: &str,
        request: Vec<u8>,
        sink: Sink,
        world: &mut World<'_>,
    ) {
        let port = self.next_port();
        let exchange = Exchange::start((server, port), path, request, sink, &self.link, world.now, world.out);
        self.task = Task::Http(Box::new(exchange));
    }

    fn next_port(&mut self) -> u16 {
        let port = self.port;
        self.port = tftp::next_port(port);
        port
    }

    fn tftp(&mut self, progress: tftp::Progress, world: &mut World<'_>) {
        let Task::Tftp(download) = &self.task else { return };
        let path = download.path().to_owned();
        let in_grub = matches!(self.software, Software::Grub(_));
        match progress {
            tftp::Progress::Going => {}
            tftp::Progress::Done(sink) => match &self.software {
                Software::Rom => match tftp::finish(world.contents, &path, sink) {
                    Ok(()) => self.start_grub(world),
                    Err(cause) => self.fail(cause),
                },
                Software::Grub(Grub::Loads(_)) => match tftp::finish(world.contents, &path, sink) {
                    Ok(()) => self.loaded(world),
                    Err(cause) => self.fail(cause),
                },
                Software::Grub(Grub::Reads) => self.configured(&sink.text(), world),
                Software::Grub(Grub::Looks) => self.grub_lists(0, world),
                Software::Grub(Grub::Lists(n)) => self.grub_lists(n + 1, world),
                Software::Script(_) | Software::Linux(..) | Software::Tells(_) => {}
            },
            tftp::Progress::Refused(ErrorCode::NOT_FOUND, _)
                if let Software::Grub(Grub::Lists(n)) = &self.software =>
            {
                self.grub_lists(n + 1, world);
            }
            tftp::Progress::Refused(_, why) if in_grub => self.pause(5, format!("{path}: {why}"), world),
            tftp::Progress::NoAnswer if in_grub => {
                self.pause(5, format!("time out opening `{path}'"), world);
            }
            tftp::Progress::Stalled(at) if in_grub => {
                self.pause(5, format!("timeout reading `{path}', at block {at}"), world);
            }
            tftp::Progress::Refused(_, why) => {
                self.fail(format!("{} ({path}: {why})", self.rom.refused));
            }
            tftp::Progress::NoAnswer => self.fail(format!("{} ({path})", self.rom.no_answer)),
            tftp::Progress::Stalled(block) => {
                self.fail(format!("{} ({path}, after block {block})", self.rom.no_answer));
            }
            tftp::Progress::Wrong(block) => {
                self.fail(format!("{path}: block {block} is not what its digest or other machines say"));
            }
        }
    }

    fn http(&mut self, progress: http::Progress, world: &mut World<'_>) {
        if matches!(progress, http::Progress::Going) {
            return;
        }
        let Task::Http(exchange) = std::mem::replace(&mut self.task, Task::Off) else { return };
        let path = exchange.path().to_owned();
        self.closing = Some(exchange);
        match progress {
            http::Progress::Going => {}
            http::Progress::Wrong => self.fail(format!("{path}: not what its digest or other machines say")),
            http::Progress::Failed(why) => match self.software {
                // pxe-init repeats a report until it is accepted; iPXE's script retries, too.
                Software::Linux(..) | Software::Tells(_) | Software::Script(_) => self.pause(1, why, world),
                Software::Rom | Software::Grub(_) => self.fail(why),
            },
            http::Progress::Done(status @ 200..=299, sink) => match &mut self.software {
                Software::Linux(to, sent) => {
                    *sent += 1;
                    let stage = [Stage::Stage1, Stage::Image, Stage::Workload][*sent - 1];
                    let (to, first) = (*to, *sent == 1);
                    self.reach(stage, world.now);
                    match first && self.tells {
                        true => {
                            self.software = Software::Tells(to);
                            self.tell(world);
                        }
                        false => self.report(world),
                    }
                }
                Software::Tells(to) => {
                    self.software = Software::Linux(*to, 1);
                    self.report(world);
                }
                Software::Script(_) => match tftp::finish(world.contents, &path, sink) {
                    Ok(()) => self.loaded(world),
                    Err(cause) => self.fail(cause),
                },
                Software::Rom if status == 200 => self.scripted(&sink.text(), world),
                Software::Rom | Software::Grub(_) => self.fail(format!("{path}: HTTP status {status}")),
            },
            http::Progress::Done(status, _) => self.fail(format!("{path}: HTTP status {status}")),
        }
    }

    fn reach(&mut self, stage: Stage, now: u64) {
        self.reached[stage as usize].get_or_insert(now - self.powered_on);
    }

    fn fail(&mut self, cause: impl Into<String>) {
        self.task = Task::Failed(cause.into());
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
