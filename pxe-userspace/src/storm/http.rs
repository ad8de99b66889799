//! One HTTP exchange on a TCP connection of its own: smoltcp below, no more of HTTP/1.1 than the
//! appliance's answers need.
//!
//! smoltcp sees IP packets only; Ethernet and ARP are the machine's ([`super::link`]).

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddrV4;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::contents::Sink;
use super::link::{Frames, Link, MS};

/// An answer without progress for this long is given up.
const PATIENCE: u64 = 30_000 * MS;

/// The receive window: more than the bandwidth-delay product of a boot segment.
const WINDOW: usize = 64 << 10;

/// The appliance sends no longer head.
const HEAD_MAX: usize = 8 << 10;

pub(super) struct Exchange {
    path: String,
    port: u16,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    device: Queues,
    request: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
    /// Once the head is complete: the status, and the remaining bytes of the body.
    answer: Option<(u16, u64)>,
    sink: Sink,
    /// The time of the last progress.
    progressed: u64,
    due: u64,
}

#[derive(Debug)]
pub(super) enum Progress {
    Going,
    /// The status, and the body.
    Done(u16, Sink),
    /// In words.
    Failed(String),
    /// Other bytes than everybody else's.
    Wrong,
}

impl Exchange {
    /// Connects to a server, from a port of ours.
    pub(super) fn start(
        (to, from_port): (SocketAddrV4, u16),
        path: &str,
        request: Vec<u8>,
        sink: Sink,
        link: &Link,
        now: u64,
        out: &mut Frames,
    ) -> Self {
        let mut device = Queues::default();
        let mut config = Config::new(HardwareAddress::Ip);
        // Initial sequence numbers: different for each machine and connection.
        config.random_seed = now ^ u64::from(link.address.to_bits()) << 16 ^ u64::from(from_port);
        let mut interface = Interface::new(config, &mut device, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is always room for one.
            let _ = addresses.push(IpCidr::new(link.address.into(), 32));
        });
        // All packets go to the one neighbour; the Ethernet layer knows its address.
        let _ = interface.routes_mut().add_default_ipv4_route(*to.ip());
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let mut socket = tcp::Socket::new(buffer(WINDOW), buffer(2048));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        let mut exchange = Self {
            path: path.to_owned(),
            port: from_port,
            interface,
            sockets,
            socket,
            device,
            request,
            sent: 0,
            head: Vec::new(),
            answer: None,
            sink,
            progressed: now,
            due: now,
        };
        let connecting = exchange.sockets.get_mut::<tcp::Socket<'_>>(socket).connect(
            exchange.interface.context(),
            (*to.ip(), to.port()),
            from_port,
        );
        if connecting.is_err() {
            // The machine has no address. That can't happen, and the timeout would report it.
            tracing::debug!(%to, "a simulated machine can't connect");
        }
        exchange.poll(link, now, out);
        exchange
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// Handles an IPv4 packet to our address.
    pub(super) fn receive(&mut self, packet: &[u8], link: &mut Link, now: u64, out: &mut Frames) -> Progress {
        self.device.received.push_back(packet.to_vec());
        self.wake(link, now, out)
    }

    pub(super) fn wake(&mut self, link: &mut Link, now: u64, out: &mut Frames) -> Progress {
        self.poll(link, now, out);
        let before = (self.sent, self.head.len(), self.answer);
        let progress = self.get_on(link);
        if before != (self.sent, self.head.len(), self.answer) {
            self.progressed = now;
            link.progressed();
            // Sends what was written, and opens the window.
            self.poll(link, now, out);
        } else if now >= self.progressed + PATIENCE {
            return Progress::Failed(format!(
                "{}: nothing from the HTTP server for {} s",
                self.path,
                PATIENCE / 1000 / MS
            ));
        }
        progress
    }

    /// After the answer: keeps the connection until the server has closed its half, too. True when
    /// both are closed.
    pub(super) fn close(&mut self, packet: Option<&[u8]>, link: &Link, now: u64, out: &mut Frames) -> bool {
        self.device.received.extend(packet.map(<[u8]>::to_vec));
        self.poll(link, now, out);
        let state = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket).state();
        matches!(state, tcp::State::Closed | tcp::State::TimeWait) || now >= self.progressed + PATIENCE
    }

    fn poll(&mut self, link: &Link, now: u64, out: &mut Frames) {
        self.interface.poll(instant(now), &mut self.device, &mut self.sockets);
        for packet in self.device.sent.drain(..) {
            link.ipv4(out, &packet);
        }
        let delay = self.interface.poll_delay(instant(now), &self.sockets).map(|d| d.total_micros());
        // smoltcp may say "at once" although it waits for a packet.
        let delay = delay.map_or(PATIENCE, |micros| (micros * 1000).clamp(MS, PATIENCE));
        self.due = (now + delay).min((self.progressed + PATIENCE).max(now + MS));
    }

    fn get_on(&mut self, link: &mut Link) -> Progress {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        if socket.can_send() && self.sent < self.request.len() {
            self.sent += socket.send_slice(&self.request[self.sent..]).unwrap_or(0);
        }
        while socket.can_recv() {
            let (sink, head, answer) = (&mut self.sink, &mut self.head, &mut self.answer);
            let taken = socket.recv(|bytes| {
                let len = bytes.len();
                (len, take(bytes, head, answer, sink, link))
            });
            match taken {
                Ok(Ok(())) => {}
                Ok(Err(Bad::Wrong)) => return Progress::Wrong,
                Ok(Err(Bad::Http)) => {
                    return Progress::Failed(format!("{}: the answer is no HTTP that we know", self.path));
                }
                Err(_) => break,
            }
        }
        match self.answer {
            Some((status, 0)) => {
                // Closed in order; what follows does not matter.
                socket.close();
                Progress::Done(status, std::mem::replace(&mut self.sink, Sink::keep()))
            }
            _ if self.sent > 0 && !socket.is_active() => {
                Progress::Failed(format!("{}: the HTTP server closed before its answer's end", self.path))
            }
            _ if socket.state() == tcp::State::Closed => {
                Progress::Failed(format!("{}: the HTTP server refused the connection", self.path))
            }
            _ => Progress::Going,
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("path", &self.path).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Of a TCP segment in an IPv4 packet.
pub(super) fn destination_port(packet: &[u8]) -> Option<u16> {
    let header = usize::from(packet.first()? & 15) * 4;
    Some(u16::from_be_bytes(*packet.get(header + 2..)?.first_chunk()?))
}

enum Bad {
    Http,
    Wrong,
}

fn take(
    mut bytes: &[u8],
    head: &mut Vec<u8>,
    answer: &mut Option<(u16, u64)>,
    sink: &mut Sink,
    link: &mut Link,
) -> Result<(), Bad> {
    if answer.is_none() {
        let before = head.len();
        head.extend_from_slice(bytes);
        let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
            return if head.len() > HEAD_MAX { Err(Bad::Http) } else { Ok(()) };
        };
        bytes = &bytes[end + 4 - before..];
        *answer = Some(parse_head(&head[..end + 4]).ok_or(Bad::Http)?);
    }
    let Some((_, rest)) = answer else { return Err(Bad::Http) };
    *rest = rest.checked_sub(bytes.len() as u64).ok_or(Bad::Http)?;
    link.tally.bytes += bytes.len() as u64;
    sink.take(bytes).map_err(|_| Bad::Wrong)
}

/// The status, and the body's length.
fn parse_head(head: &[u8]) -> Option<(u16, u64)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut fields);
    if !answer.parse(head).ok()?.is_complete() {
        return None;
    }
    let length = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        // Digits only: `parse` takes `+1`, too.
        Some(field) if field.value.iter().all(u8::is_ascii_digit) => {
            str::from_utf8(field.value).ok()?.parse().ok()?
        }
        Some(_) => return None,
        // 204 has no body, nor a length (RFC 9110 section 8.6).
        None => 0,
    };
    Some((answer.code?, length))
}

fn instant(now: u64) -> Instant {
    Instant::from_micros((now / 1000).cast_signed())
}

#[derive(Default)]
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Send<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Send<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Send<'_>)> {
        Some((Received(self.received.pop_front()?), Send(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Send<'_>> {
        Some(Send(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        // A server on this host leaves its checksums to a card that a veth pair does not have.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        assert_eq!(parse_head(b"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n"), Some((204, 0)));
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n"), Some((200, 24)));
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-length:7\r\nX: y\r\n\r\n"), Some((200, 7)));
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), None);
        assert_eq!(parse_head(b"SSH-2.0-x"), None);
    }
}
