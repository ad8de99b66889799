//! TFTP's sockets and clock, around the `server` that decides.
//!
//! They have a thread and a reactor of their own. On a worker of the daemon's runtime a packet would wait for
//! whatever a handler of the API computes there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pxe_common::map::{Event, Session, SessionKey};
use pxe_common::wire::port;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::runtime::{self, Handle};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::job::{Accepted, Job, Refused};
use super::perform::{Performer, World};
use super::server::{Server, Tell};
use super::stats::Stats;
use super::{FastPath, priority};
use crate::host::net::room::make_room;
use crate::machines::timeline::Timeline;
use crate::serve::files::Files;

/// Ports that transfers share. More than one, because a client may use one port of its own for
/// several transfers (lpxelinux), or the same one after every boot (GRUB).
const DATA_PORTS: usize = 8;

/// Files that are opened at a time.
const OPENERS: usize = 8;

/// The TFTP service, bound and not yet running.
pub struct Tftp {
    sockets: Sockets,
    address: Ipv4Addr,
    mtu: u16,
    stats: Arc<Stats>,
}

/// A port could not be had.
#[derive(Debug, thiserror::Error)]
#[error("TFTP can't bind {address}: {source}; is another TFTP server running?")]
pub struct BindError {
    address: SocketAddrV4,
    source: io::Error,
}

impl Tftp {
    /// Binds port 69 and the data ports of `address`. No block is larger than `mtu` allows.
    pub async fn bind(address: Ipv4Addr, mtu: u16) -> Result<Self, BindError> {
        Self::bind_at(SocketAddrV4::new(address, port::TFTP), mtu).await
    }

    /// The same with the data ports of a killed daemon, whose transfers go on.
    pub async fn bind_again(address: Ipv4Addr, mtu: u16, data_ports: &[u16]) -> Result<Self, BindError> {
        let mut tftp = Self::bind(address, mtu).await?;
        for (socket, port) in tftp.sockets.data.iter_mut().zip(data_ports) {
            match bind(SocketAddrV4::new(address, *port)).await {
                Ok(old) => *socket = old,
                Err(error) => tracing::warn!(%error, "transfers of an earlier daemon are lost"),
            }
        }
        Ok(tftp)
    }

    /// The same at another port, for tests.
    pub async fn bind_at(requests: SocketAddrV4, mtu: u16) -> Result<Self, BindError> {
        let address = *requests.ip();
        let requests = bind(requests).await?;
        let mut data = Vec::with_capacity(DATA_PORTS);
        for _ in 0..DATA_PORTS {
            data.push(bind(SocketAddrV4::new(address, 0)).await?);
        }
        Ok(Self { sockets: Sockets { requests, data }, address, mtu, stats: Arc::default() })
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
        let sockets = sockets.into_std()?;
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
        let inputs = Inputs { events, results, closes };
        let (done, ended) = oneshot::channel();
        std::thread::Builder::new().name("tftp".into()).spawn(move || {
            if let Err(error) = priority::raise() {
                tracing::debug!(%error, "TFTP waits for a CPU as everybody does");
            }
            let served = runtime.block_on(async {
                let sockets = Sockets::from_std(sockets)?;
                let mut wired = Wired { sockets, fast_path, openers, aside };
                let served = serve(&mut wired, address, mtu, stats, inputs, shutdown).await;
                wired.aside.finish();
                served
            });
            // Nobody waits when the daemon has lost its patience.
            let _ = done.send(served);
        })?;
        ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread of TFTP panicked")))
    }
}

/// What comes to the server but packets and time.
struct Inputs {
    events: mpsc::Receiver<Event>,
    results: mpsc::UnboundedReceiver<(Job, Result<Accepted, Refused>)>,
    /// Grants that are closed.
    closes: mpsc::UnboundedReceiver<SessionKey>,
}

async fn serve(
    wired: &mut Wired,
    address: Ipv4Addr,
    mtu: u16,
    stats: Arc<Stats>,
    inputs: Inputs,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let Inputs { mut events, mut results, mut closes } = inputs;
    let mut server = Server::new(address, wired.sockets.ports()?, mtu, stats.clone());
    let mut performer = Performer::new(stats);
    if let Some(fast_path) = &wired.fast_path {
        server.resume(fast_path.left(), monotonic_ns());
    }
    let mut buf = vec![0; 65536];
    let mut alarm = pin!(sleep_until(Instant::now()));
    let (mut set_for, mut overdue) = (None, false);
    let mut told_to_end = pin!(shutdown.cancelled());
    loop {
        performer.perform(&mut server, wired);
        // An alarm that stands is left alone: packets move it a few times a second at most.
        let next = server.next_timeout();
        if next != set_for {
            set_for = next;
            let pause = next.map(|at_ns| Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())));
            // Many were due at once, and the rest has its turn among packets. An alarm would take a millisecond.
            overdue = pause == Some(Duration::ZERO);
            alarm.as_mut().reset(Instant::now() + pause.unwrap_or_default());
        }
        tokio::select! {
            () = &mut told_to_end => break,
            (socket, client, len) = wired.sockets.receive(&mut buf) => {
                let bytes = &buf[..len];
                match socket {
                    None => server.on_request(client, bytes, monotonic_ns()),
                    Some(port) => server.on_packet(port, client, bytes, monotonic_ns()),
                }
            }
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

/// What surrounds the server, in earnest.
struct Wired {
    sockets: Sockets,
    fast_path: Option<Arc<dyn FastPath>>,
    openers: Openers,
    aside: Aside,
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
}

/// The same without a reactor.
struct StdSockets {
    requests: std::net::UdpSocket,
    data: Vec<std::net::UdpSocket>,
}

impl Sockets {
    /// The data ports' numbers on the wire.
    fn ports(&self) -> io::Result<Vec<u16>> {
        self.data.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
    }

    /// Takes them from the reactor that they were bound with.
    fn into_std(self) -> io::Result<StdSockets> {
        let Self { requests, data } = self;
        let data = data.into_iter().map(UdpSocket::into_std).collect::<io::Result<_>>()?;
        Ok(StdSockets { requests: requests.into_std()?, data })
    }

    /// Gives them to the reactor of the caller's runtime.
    fn from_std(StdSockets { requests, data }: StdSockets) -> io::Result<Self> {
        let data = data.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>()?;
        Ok(Self { requests: UdpSocket::from_std(requests)?, data })
    }

    /// The next datagram: from which data port, or none for the request port; from whom; how long.
    async fn receive(&self, buf: &mut [u8]) -> (Option<usize>, SocketAddrV4, usize) {
        std::future::poll_fn(|cx| {
            // Transfers in progress before new ones.
            for (number, socket) in self.data.iter().enumerate() {
                if let Poll::Ready((client, len)) = poll_receive(socket, cx, buf) {
                    return Poll::Ready((Some(number), client, len));
                }
            }
            poll_receive(&self.requests, cx, buf).map(|(client, len)| (None, client, len))
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
            // An ICMP error of an earlier packet: the client's port is closed. Its timer tells, too.
            Err(error) => tracing::debug!(%error, "a client can't be reached"),
        }
    }
}

async fn bind(address: SocketAddrV4) -> Result<UdpSocket, BindError> {
    let socket = UdpSocket::bind(address).await.map_err(|source| BindError { address, source })?;
    make_room(&socket);
    Ok(socket)
}

/// The clock of `bpf_ktime_get_ns`, which sessions keep their times by.
fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
