//! TFTP's sockets and clock, around the `server` that decides.
//!
//! They have a thread and a reactor of their own. On a worker of the daemon's runtime a packet would wait for
//! whatever a handler of the API computes there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pxe_common::Mac;
use pxe_common::map::{Event, Session, SessionKey, Stations};
use pxe_common::wire::{Datagram, EtherType, InFrame, port};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::runtime::{self, Handle};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::asker::{Asker, Sender};
use super::job::{Accepted, Job, Refused};
use super::perform::{Performer, World};
use super::server::{HandOver, Limits, MAX_TRANSFERS, Server, Tell};
use super::stats::{Stat, Stats};
use super::transfer::IDLE;
use super::{Declined, FastPath, priority};
use crate::base::descriptors;
use crate::host::net::BridgeInfo;
use crate::host::net::packet::{self, PacketSocket};
use crate::host::net::room::make_room;
use crate::machines::segment::{Origin, Segment, Standing};
use crate::machines::timeline::Timeline;
use crate::serve::files::Files;

/// Ports that transfers share. More than one, because a client may use one port of its own for
/// several transfers (lpxelinux), or the same one after every boot (GRUB).
const DATA_PORTS: usize = 8;

/// Files that are opened at a time.
const OPENERS: usize = 8;

/// Requests of hosts whose MAC is being looked up.
const UNKNOWN_AT_ONCE: usize = 64;

/// When to check whether a host has answered ARP.
const FOUND_OUT_AFTER: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(8),
    Duration::from_millis(40),
    Duration::from_millis(150),
];

/// Nobody needs an answer from there (RFC 863).
const DISCARD: u16 = 9;

/// The TFTP service, bound and not yet running.
pub struct Tftp {
    sockets: StdSockets,
    address: Ipv4Addr,
    mtu: u16,
    stats: Arc<Stats>,
}

/// A port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("TFTP can't bind {address}: {source}; is another TFTP server running?")]
    Port { address: SocketAddrV4, source: io::Error },
    #[error("TFTP has no packet socket on {bridge}: {source}; it needs CAP_NET_RAW")]
    Packet { bridge: String, source: io::Error },
}

impl Tftp {
    /// Binds port 69 and the data ports on the bridge, with those of a killed daemon, whose transfers go on. Only
    /// hosts of the segment are answered.
    pub fn bind(bridge: &BridgeInfo, segment: Segment, data_ports: &[u16]) -> Result<Self, BindError> {
        let address = bridge.address.addr();
        let open = |port| bind(SocketAddrV4::new(address, port), Some(&bridge.name));
        let requests = open(port::TFTP)?;
        let mut data = Vec::with_capacity(DATA_PORTS);
        for number in 0..DATA_PORTS {
            let old = data_ports.get(number).map(|port| open(*port));
            data.push(match old {
                Some(Ok(old)) => old,
                Some(Err(error)) => {
                    tracing::warn!(%error, "transfers of an earlier daemon are lost");
                    open(0)?
                }
                None => open(0)?,
            });
        }
        let packet = |source| BindError::Packet { bridge: bridge.name.clone(), source };
        let link = |ports: &[u16]| {
            let filter = packet::udp_to_any(address, ports);
            let socket = PacketSocket::bound(bridge.index, EtherType::IPV4, &filter).map_err(packet)?;
            make_room(&socket);
            Ok(socket)
        };
        let ports = ports(&data).map_err(packet)?;
        let (requests_link, transfers) = (link(&[port::TFTP])?, link(&ports)?);
        let frames = Frames { requests: requests_link, transfers, ports, mac: bridge.mac, segment };
        let sockets = StdSockets { requests, data, frames: Some(frames) };
        Ok(Self { sockets, address, mtu: bridge.mtu as u16, stats: Arc::default() })
    }

    /// At any address and port, for tests: without frames, and with every client as a machine.
    pub fn bind_at(requests: SocketAddrV4, mtu: u16) -> Result<Self, BindError> {
        let address = *requests.ip();
        let requests = bind(requests, None)?;
        let data = (0..DATA_PORTS).map(|_| bind(SocketAddrV4::new(address, 0), None));
        let data = data.collect::<Result<Vec<_>, _>>()?;
        let sockets = StdSockets { requests, data, frames: None };
        Ok(Self { sockets, address, mtu, stats: Arc::default() })
    }

    /// What is counted, also while it runs.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Where requests go.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.requests.local_addr()
    }

    /// Answers until `shutdown`; `events` are the kernel programs'. Files are opened on this runtime's threads.
    pub async fn run(
        self,
        files: Arc<dyn Files>,
        fast_path: Option<Arc<dyn FastPath>>,
        events: mpsc::Receiver<Event>,
        timeline: Timeline,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let Self { sockets, address, mtu, stats } = self;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (closed, closes) = mpsc::unbounded_channel();
        let (opened, results) = mpsc::unbounded_channel();
        let aside = Aside::start(timeline, fast_path.clone(), closed)?;
        let openers = Openers {
            permits: Arc::new(Semaphore::new(OPENERS)),
            files,
            fast_path: fast_path.clone(),
            opened,
            runtime: Handle::current(),
        };
        let (found, founds) = mpsc::unbounded_channel();
        let inputs = Inputs { events, results, closes, founds };
        let (done, ended) = oneshot::channel();
        std::thread::Builder::new().name("tftp".into()).spawn(move || {
            if let Err(error) = priority::raise() {
                tracing::debug!(%error, "TFTP waits for a CPU as everybody does");
            }
            let served = runtime.block_on(async {
                let sockets = Sockets::from_std(sockets)?;
                let finding = Finding { permits: Arc::new(Semaphore::new(UNKNOWN_AT_ONCE)), found };
                let mut wired = Wired { sockets, fast_path, openers, aside, finding };
                let served = serve(&mut wired, address, mtu, stats, inputs, shutdown).await;
                wired.aside.finish();
                served
            });
            // Nobody receives if the daemon has stopped waiting.
            let _ = done.send(served);
        })?;
        ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread of TFTP panicked")))
    }
}

/// The server's inputs other than packets and time.
struct Inputs {
    events: mpsc::Receiver<Event>,
    results: mpsc::UnboundedReceiver<(Job, Result<Accepted, Refused>)>,
    /// Grants that are closed.
    closes: mpsc::UnboundedReceiver<SessionKey>,
    /// Requests of hosts whose MAC is known now.
    founds: mpsc::UnboundedReceiver<(Asker, Vec<u8>)>,
}

async fn serve(
    wired: &mut Wired,
    address: Ipv4Addr,
    mtu: u16,
    stats: Arc<Stats>,
    inputs: Inputs,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let Inputs { mut events, mut results, mut closes, mut founds } = inputs;
    let mut server = Server::new(address, ports(&wired.sockets.data)?, mtu, stats.clone());
    server.limit(Limits { all: descriptors::shares().transfers.min(MAX_TRANSFERS) });
    let mut performer = Performer::new(stats.clone());
    if let Some(fast_path) = &wired.fast_path {
        server.resume(fast_path.left(), monotonic_ns());
    }
    let mut buf = vec![0; 65536];
    let mut alarm = pin!(sleep_until(Instant::now()));
    let (mut set_for, mut overdue) = (None, false);
    let mut told_to_end = pin!(shutdown.cancelled());
    loop {
        performer.perform(&mut server, wired);
        // A timer that is set already stays: packets move it a few times a second at most.
        let next = server.next_timeout();
        if next != set_for {
            set_for = next;
            let pause = next.map(|at_ns| Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())));
            // Many were due at once, and the rest is handled between packets. A timer would take a millisecond.
            overdue = pause == Some(Duration::ZERO);
            alarm.as_mut().reset(Instant::now() + pause.unwrap_or_default());
        }
        tokio::select! {
            () = &mut told_to_end => break,
            received = wired.sockets.receive(&mut buf) => {
                let Received { port, from, bytes, is_fragment } = received?;
                let bytes = &buf[bytes];
                match (port, wired.source_of_request(port, &from)) {
                    (Some(port), _) => server.on_packet(port, from, bytes, monotonic_ns()),
                    (None, Origin::Known(_)) if is_fragment => server.on_fragment(from, bytes),
                    (None, Origin::Known(standing)) => {
                        server.on_request(Asker { sender: from, standing }, bytes, monotonic_ns());
                    }
                    (None, Origin::Unknown) => wired.find_out(from, bytes.to_vec()),
                    (None, Origin::Contradicted | Origin::Beyond) => stats.add(Stat::Foreign, 1),
                }
            }
            Some((asker, bytes)) = founds.recv() => server.on_request(asker, &bytes, monotonic_ns()),
            Some((job, result)) = results.recv() => server.on_opened(&job, result, monotonic_ns()),
            Some(event) = events.recv() => server.on_event(&event),
            closed = closes.recv() => match closed {
                Some(key) => server.on_closed(&key),
                None => return Err(io::Error::other("the thread that tells of transfers panicked")),
            },
            () = std::future::ready(()), if overdue => {
                (set_for, overdue) = (None, false);
                server.on_timeout(monotonic_ns());
            }
            () = &mut alarm, if set_for.is_some() && !overdue => {
                set_for = None;
                server.on_timeout(monotonic_ns());
            }
        }
    }
    server.shut_down();
    performer.perform(&mut server, wired);
    Ok(())
}

/// The server's real environment.
struct Wired {
    sockets: Sockets,
    fast_path: Option<Arc<dyn FastPath>>,
    openers: Openers,
    aside: Aside,
    finding: Finding,
}

/// Requests from addresses whose MAC the kernel does not know yet. This is rare, because a host's own ARP request tells
/// the kernel.
struct Finding {
    permits: Arc<Semaphore>,
    found: mpsc::UnboundedSender<(Asker, Vec<u8>)>,
}

impl Wired {
    /// Whether a request to port 69 is answered. For packets of transfers, their request decides.
    fn source_of_request(&self, port: Option<usize>, from: &Sender) -> Origin {
        match &self.sockets.frames {
            Some(frames) if port.is_none() => frames.segment.source(*from.address.ip(), from.stations.client),
            Some(_) | None => Origin::Known(Standing::Machine),
        }
    }

    /// Makes the kernel send an ARP request, and looks a little later. The datagram that causes it is empty, and shorter
    /// than the request.
    fn find_out(&self, from: Sender, request: Vec<u8>) {
        let Some(frames) = &self.sockets.frames else { return };
        let Ok(permit) = self.finding.permits.clone().try_acquire_owned() else { return };
        let address = *from.address.ip();
        // The kernel sends it when the station has answered; if this fails, the host will not be found.
        let _ = self.sockets.data[0].try_send_to(&[], SocketAddrV4::new(address, DISCARD).into());
        let (segment, found) = (frames.segment.clone(), self.finding.found.clone());
        tokio::spawn(async move {
            let _permit = permit;
            for pause in FOUND_OUT_AFTER {
                tokio::time::sleep(pause).await;
                match segment.source(address, from.stations.client) {
                    Origin::Known(standing) => {
                        // Nobody receives once the server has ended.
                        let _ = found.send((Asker { sender: from, standing }, request));
                        return;
                    }
                    Origin::Unknown => {}
                    Origin::Contradicted | Origin::Beyond => return,
                }
            }
        });
    }
}

impl World for Wired {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn send(&mut self, port: usize, to: SocketAddrV4, packet: &[u8]) {
        if let Err(error) = self.sockets.data[port].try_send_to(packet, to.into()) {
            tracing::debug!(%to, %error, "packet lost");
        }
    }

    fn open(&mut self, job: Job) {
        self.openers.open(job);
    }

    fn look(&mut self, key: &SessionKey) -> Option<Session> {
        self.fast_path.as_ref()?.look(key)
    }

    fn take_back(&mut self, key: &SessionKey) -> Option<Session> {
        self.fast_path.as_ref()?.take_back(key)
    }

    fn hand_over(&mut self, over: &HandOver) -> Result<(), Declined> {
        let HandOver { key, stations, blob, session, note, .. } = over;
        let Some(fast_path) = &self.fast_path else { return Err(Declined::NotYet) };
        let taken = fast_path.hand_over(*key, *stations, blob, *session, monotonic_ns(), IDLE);
        match &taken {
            Ok(()) => fast_path.note(key, note),
            Err(Declined::NotYet) => {}
            Err(why) => why.log(&note.path),
        }
        taken
    }

    fn close(&mut self, key: SessionKey) {
        self.aside.close(key);
    }

    fn tell(&mut self, tell: Tell) {
        self.aside.tell(tell);
    }
}

/// Opens files off the server's thread.
struct Openers {
    permits: Arc<Semaphore>,
    files: Arc<dyn Files>,
    fast_path: Option<Arc<dyn FastPath>>,
    opened: mpsc::UnboundedSender<(Job, Result<Accepted, Refused>)>,
    runtime: Handle,
}

impl Openers {
    fn open(&self, job: Job) {
        let (permits, files, opened) = (self.permits.clone(), self.files.clone(), self.opened.clone());
        let fast_path = self.fast_path.clone();
        self.runtime.spawn(async move {
            // Fails only when closed, which nobody does.
            let _permit = permits.acquire_owned().await;
            let work = tokio::task::spawn_blocking(move || {
                let result = job.run(&*files, fast_path.as_deref(), monotonic_ns);
                // Nobody receives once the server has ended.
                let _ = opened.send((job, result));
            });
            if let Err(error) = work.await {
                tracing::error!(%error, "opening a file panicked");
            }
        });
    }
}

struct Sockets {
    requests: UdpSocket,
    data: Vec<UdpSocket>,
    frames: Option<Frames<PacketSocket>>,
}

/// The same without a reactor.
struct StdSockets {
    requests: std::net::UdpSocket,
    data: Vec<std::net::UdpSocket>,
    frames: Option<Frames<Socket>>,
}

/// Packets are read from the link, because only frames have the sender's MAC. The UDP sockets reserve the ports, and
/// send.
struct Frames<S> {
    requests: S,
    transfers: S,
    /// The data ports' numbers on the wire.
    ports: Vec<u16>,
    /// The bridge's own.
    mac: Mac,
    segment: Segment,
}

impl<S> Frames<S> {
    /// The packet in a frame, if it is for us. While a bridge is traced, it receives others' frames, too.
    fn taken_apart(&self, frame: &[u8]) -> Option<Received> {
        let InFrame { datagram, payload, is_fragment } = Datagram::in_frame(frame).ok()?;
        if datagram.destination_mac != self.mac {
            return None;
        }
        let port = match datagram.destination_port {
            port::TFTP => None,
            port => Some(self.ports.iter().position(|own| *own == port)?),
        };
        let address = SocketAddrV4::new(datagram.source, datagram.source_port);
        let from = Sender { address, stations: Stations::of(&datagram) };
        // No transfer's packet needs fragments.
        (port.is_none() || !is_fragment).then_some(Received { port, from, bytes: payload, is_fragment })
    }
}

/// A packet that came.
struct Received {
    /// Number of the data port; none for the request port.
    port: Option<usize>,
    from: Sender,
    /// Where it is in the buffer.
    bytes: Range<usize>,
    /// The rest of it is in other frames.
    is_fragment: bool,
}

/// The data ports' numbers on the wire.
fn ports(data: &[impl AsFd]) -> io::Result<Vec<u16>> {
    let port = |socket: &_| {
        SockRef::from(socket)
            .local_addr()?
            .as_socket()
            .map(|address| address.port())
            .ok_or_else(|| io::Error::other("a socket without an address"))
    };
    data.iter().map(port).collect()
}

impl Sockets {
    /// Registers them with the reactor of the caller's runtime.
    fn from_std(StdSockets { requests, data, frames }: StdSockets) -> io::Result<Self> {
        let data = data.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>()?;
        let frames = match frames {
            Some(Frames { requests, transfers, ports, mac, segment }) => Some(Frames {
                requests: PacketSocket::register(requests)?,
                transfers: PacketSocket::register(transfers)?,
                ports,
                mac,
                segment,
            }),
            None => None,
        };
        Ok(Self { requests: UdpSocket::from_std(requests)?, data, frames })
    }

    async fn receive(&self, buf: &mut [u8]) -> io::Result<Received> {
        match &self.frames {
            Some(frames) => self.receive_frame(frames, buf).await,
            None => Ok(self.receive_datagram(buf).await),
        }
    }

    async fn receive_frame(&self, frames: &Frames<PacketSocket>, buf: &mut [u8]) -> io::Result<Received> {
        loop {
            // Transfers in progress before new ones.
            let frame = match frames.transfers.try_receive(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => frames.requests.try_receive(buf),
                frame => frame,
            };
            match frame {
                Ok(len) => {
                    if let Some(received) = frames.taken_apart(&buf[..len]) {
                        return Ok(received);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                    ready = frames.transfers.readable() => ready?,
                    ready = frames.requests.readable() => ready?,
                },
                Err(error) => return Err(error),
            }
        }
    }

    async fn receive_datagram(&self, buf: &mut [u8]) -> Received {
        let received = |port, (client, len): (SocketAddrV4, usize)| Received {
            port,
            from: client.into(),
            bytes: 0..len,
            is_fragment: false,
        };
        std::future::poll_fn(|cx| {
            for (number, socket) in self.data.iter().enumerate() {
                if let Poll::Ready(datagram) = poll_receive(socket, cx, buf) {
                    return Poll::Ready(received(Some(number), datagram));
                }
            }
            poll_receive(&self.requests, cx, buf).map(|datagram| received(None, datagram))
        })
        .await
    }
}

fn poll_receive(socket: &UdpSocket, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<(SocketAddrV4, usize)> {
    loop {
        let mut read = ReadBuf::new(buf);
        match std::task::ready!(socket.poll_recv_from(cx, &mut read)) {
            Ok(SocketAddr::V4(client)) => return Poll::Ready((client, read.filled().len())),
            Ok(SocketAddr::V6(_)) => {}
            // An ICMP error for an earlier packet: the client's port is closed. The transfer's timer notices it, too.
            Err(error) => tracing::debug!(%error, "a client can't be reached"),
        }
    }
}

/// On a bridge the socket only reserves the port, and sends: it receives nothing.
fn bind(address: SocketAddrV4, bridge: Option<&str>) -> Result<std::net::UdpSocket, BindError> {
    let everywhere = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        make_room(&socket);
        socket.bind(&SocketAddr::from(address).into())?;
        Ok(socket.into())
    };
    let bound = bridge.map_or_else(everywhere, |bridge| packet::keep_port(bridge, address));
    bound.map_err(|source| BindError::Port { address, source })
}

/// The clock of `bpf_ktime_get_ns`, which sessions keep their times by.
fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
