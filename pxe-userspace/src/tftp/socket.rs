//! TFTP's sockets and clock, around the `server` that decides.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::time::{ClockId, clock_gettime};
use pxe_common::map::Event;
use pxe_common::wire::port;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::FastPath;
use super::job::{Accepted, Job, Refused};
use super::server::{Outbox, Server};
use super::stats::Stats;
use crate::files::Files;
use crate::net::room::make_room;
use crate::timeline::Timeline;

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

    /// Answers until `shutdown`; `events` are the kernel programs'.
    pub async fn run(
        self,
        files: Arc<dyn Files>,
        fast_path: Option<Arc<dyn FastPath>>,
        mut events: mpsc::Receiver<Event>,
        timeline: Timeline,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let Self { mut sockets, address, mtu, stats } = self;
        let ports = sockets.data.iter().map(|s| Ok(s.local_addr()?.port())).collect::<io::Result<_>>()?;
        let mut server = Server::new(address, ports, mtu, fast_path, timeline, stats);
        server.resume(monotonic_ns());
        let (opened, mut results) = mpsc::unbounded_channel();
        let openers = Openers { permits: Arc::new(Semaphore::new(OPENERS)), files, opened };
        let mut buf = vec![0; 65536];
        let mut ticked = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                (socket, client, len) = sockets.receive(&mut buf) => {
                    let bytes = &buf[..len];
                    match socket {
                        None => {
                            if let Some(job) = server.on_request(client, bytes, monotonic_ns(), &mut sockets) {
                                openers.open(job);
                            }
                        }
                        Some(port) => server.on_packet(port, client, bytes, monotonic_ns(), &mut sockets),
                    }
                }
                Some((job, result)) = results.recv() => {
                    server.on_opened(&job, result, monotonic_ns(), &mut sockets);
                }
                Some(event) = events.recv() => server.on_event(&event, monotonic_ns()),
                () = tokio::time::sleep_until(ticked + server.tick()), if !server.is_idle() => {
                    server.on_tick(monotonic_ns(), &mut sockets);
                    ticked = Instant::now();
                }
            }
        }
        server.shut_down(monotonic_ns());
        Ok(())
    }
}

/// Opens files off the server's task.
struct Openers {
    permits: Arc<Semaphore>,
    files: Arc<dyn Files>,
    opened: mpsc::UnboundedSender<(Job, Result<Accepted, Refused>)>,
}

impl Openers {
    fn open(&self, job: Job) {
        let (permits, files, opened) = (self.permits.clone(), self.files.clone(), self.opened.clone());
        tokio::spawn(async move {
            // Fails only when closed, which nobody does.
            let _permit = permits.acquire_owned().await;
            let work = tokio::task::spawn_blocking(move || {
                let result = job.run(&*files, monotonic_ns);
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

impl Sockets {
    /// The next datagram: from which data port, or none for the request port; from whom; how long.
    async fn receive(&self, buf: &mut [u8]) -> (Option<usize>, SocketAddrV4, usize) {
        std::future::poll_fn(|cx| {
            // Transfers under way before new ones.
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

impl Outbox for Sockets {
    fn send(&mut self, port: usize, to: SocketAddrV4, packet: &[u8]) {
        if let Err(error) = self.data[port].try_send_to(packet, to.into()) {
            tracing::debug!(%to, %error, "packet lost");
        }
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
