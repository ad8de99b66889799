//! Accepting and ending connections.
//!
//! GRUB is why this is not `axum::serve`. After every boot it uses the same TCP ports 21550, 21551, …, with sequence
//! numbers that start at its clock, and it leaves connections open without a FIN when it jumps into a kernel. A
//! connection of the last boot that we still hold then answers the next boot's SYN with a challenge ACK (RFC 5961
//! section 4), and GRUB times out. So:
//!
//! - [`Connections::forget`] resets all connections of a machine. The daemon calls it at the machine's DISCOVER: a
//!   machine that asks for an address has forgotten its connections.
//! - We don't close first where the client would: that would leave TIME_WAIT for a minute, with the same effect, and
//!   a socket in that state can't be reset.
//! - An idle connection is half-closed, but kept until the client has closed it, too: left to the kernel in
//!   FIN_WAIT2, it could not be reset.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pxe_contract::backoff::Backoff;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::base::lock::Unpoisoned as _;

/// Without a request for this long, a connection is half-closed.
const IDLE: Duration = Duration::from_secs(5);

/// The same of nodes. GRUB opens all initrds, and closes them when the last is loaded: a connection that we had
/// half-closed by then would be in TIME_WAIT for the next minute, and so for the next boot.
const NODE_IDLE: Duration = Duration::from_secs(15 * 60);

/// After that, the client has so long to close its half.
const LINGER: Duration = Duration::from_secs(30);

/// Data that is not acknowledged for this long: the client is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Connections that a node may have at a time; GRUB has two. One that sends a byte an hour on each
/// must not have all of the daemon's descriptors.
pub const PER_NODE: usize = 64;

/// What requests in progress get at the end.
const LAST_ORDERS: Duration = Duration::from_secs(2);

/// The open connections of a listener. Cloning it is cheap.
#[derive(Clone)]
pub struct Connections(Arc<Mutex<Open>>);

pub(super) struct Open {
    per_peer: usize,
    idle: Duration,
    next: u64,
    pub(super) by_peer: HashMap<IpAddr, HashMap<u64, CancellationToken>>,
}

impl Connections {
    /// None yet, and at most [`PER_NODE`] from one address.
    pub fn of_nodes() -> Self {
        Self::new(PER_NODE, NODE_IDLE)
    }

    fn new(per_peer: usize, idle: Duration) -> Self {
        Self(Arc::new(Mutex::new(Open { per_peer, idle, next: 0, by_peer: HashMap::new() })))
    }

    /// Resets every connection from `peer`. It has restarted, and will use its ports again.
    pub fn forget(&self, peer: IpAddr) {
        for forgotten in self.open().by_peer.get(&peer).into_iter().flat_map(HashMap::values) {
            forgotten.cancel();
        }
    }

    /// None when `peer` has as many as it may.
    fn enter(&self, peer: IpAddr) -> Option<Entry> {
        let mut open = self.open();
        open.next += 1;
        let (id, per_peer, idle) = (open.next, open.per_peer, open.idle);
        let of_peer = open.by_peer.entry(peer).or_default();
        if of_peer.len() >= per_peer {
            return None;
        }
        let forgotten = CancellationToken::new();
        of_peer.insert(id, forgotten.clone());
        Some(Entry { connections: self.clone(), peer, id, idle, forgotten })
    }

    pub(super) fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unpoisoned()
    }
}

/// A connection's place among the open ones.
struct Entry {
    connections: Connections,
    peer: IpAddr,
    id: u64,
    /// How long it may be without a request.
    idle: Duration,
    forgotten: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        if let Some(of_peer) = open.by_peer.get_mut(&self.peer) {
            of_peer.remove(&self.id);
            if of_peer.is_empty() {
                open.by_peer.remove(&self.peer);
            }
        }
    }
}

/// The certificate, in DER, that a client showed and proved to have the key of. With each request over TLS.
#[derive(Clone, Debug)]
pub(super) struct Shown(pub(super) Option<CertificateDer<'static>>);

/// Serves `router` until `stop`; requests in progress then have two seconds to end.
pub async fn serve(listener: TcpListener, router: Router, connections: Connections, stop: CancellationToken) {
    serve_either(listener, None, router, connections, stop).await;
}

/// The same over TLS.
pub async fn serve_tls(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    connections: Connections,
    stop: CancellationToken,
) {
    serve_either(listener, Some(TlsAcceptor::from(Arc::new(tls))), router, connections, stop).await;
}

async fn serve_either(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    connections: Connections,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => match connections.enter(peer.ip().to_canonical()) {
                Some(entry) => {
                    tasks.spawn(connection(stream, tls.clone(), peer, router.clone(), entry, stop.clone()));
                }
                None => tracing::debug!(%peer, "a client with too many connections"),
            },
            // Of the connection (ECONNABORTED), or of the process (EMFILE): the latter passes.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_ORDERS, async { while tasks.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
    router: Router,
    entry: Entry,
    stop: CancellationToken,
) {
    let ended = async {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        // A second descriptor: hyper keeps the first to itself, and the socket closes with the last.
        let stream = stream.into_std()?;
        let socket = TcpStream::from_std(stream.try_clone()?)?;
        let stream = TcpStream::from_std(stream)?;
        let closed = tokio::select! {
            closed = async {
                match tls {
                    None => requests(stream, None, peer, entry.idle, router, stop).await,
                    Some(tls) => {
                        let stream = tokio::time::timeout(IDLE, tls.accept(stream)).await??;
                        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                        let shown = Shown(shown.cloned().map(CertificateDer::into_owned));
                        requests(stream, Some(shown), peer, entry.idle, router, stop).await;
                    }
                }
                half_close(&socket).await
            } => closed?,
            () = entry.forgotten.cancelled() => false,
        };
        if !closed {
            // Closing then resets.
            SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "connection");
    }
}

/// Answers requests until the client has no more, or is silent for too long.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shown: Option<Shown>,
    peer: SocketAddr,
    idle: Duration,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(shown) = &shown {
            request.extensions_mut().insert(shown.clone());
        }
        router.clone().call(request)
    });
    let http = http1::Builder::new()
        // GRUB 2.06 looks for `Content-Length: ` in exactly this case. Without a length it waits half
        // a minute for more after each file.
        .title_case_headers(true)
        .timer(TokioTimer::new())
        // Runs between requests, too.
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = std::pin::pin!(http);
    let done = tokio::select! {
        done = http.as_mut() => done,
        () = stop.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%peer, %error, "requests");
    }
}

/// Closes our half, and waits until the connection is at its end; false when it does not come.
///
/// The descriptor is held until then, so that the machine can be forgotten: GRUB closes with a
/// window of zero, which keeps our FIN from being sent, and a kernel-owned socket in LAST_ACK or
/// FIN_WAIT2 is as much in the next boot's way as an open one.
async fn half_close(socket: &TcpStream) -> io::Result<bool> {
    match SockRef::from(socket).shutdown(Shutdown::Write) {
        // It was reset.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(true),
        done => done?,
    }
    let mut pauses = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
    let ended = async {
        // getpeername(2) fails from the moment that the socket has no connection; epoll tells of
        // the client's FIN, but not of its last ACK.
        while socket.peer_addr().is_ok() {
            tokio::time::sleep(pauses.pause()).await;
        }
    };
    Ok(tokio::time::timeout(LINGER, ended).await.is_ok())
}
