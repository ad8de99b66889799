//! Accepting and ending connections.
//!
//! GRUB is why this is not `axum::serve`. After every boot it uses the same TCP ports 21550, 21551, …, with sequence
//! numbers that start at its clock, and it leaves connections open without a FIN when it starts a kernel. If we still
//! have a connection of the last boot, the next boot's SYN is answered with a challenge ACK (RFC 5961 section 4), and
//! GRUB times out. So:
//!
//! - [`Connections::forget`] resets all connections of a machine. The daemon calls it at the machine's DISCOVER, because
//!   a machine that asks for an address has forgotten its connections.
//! - We don't close first if the client would: that would leave TIME_WAIT for a minute, with the same effect, and a
//!   socket in that state can't be reset.
//! - An idle connection is half-closed, but kept until the client has closed it, too. Left to the kernel in FIN_WAIT2, it
//!   could not be reset.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{Request, Version, header};
use axum::response::IntoResponse as _;
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

use super::places::{Connections, Entry, IDLE};
use super::shared::Shared;
use super::{Failure, Kind};

/// How long the client then has to close its half.
const LINGER: Duration = Duration::from_secs(30);

/// If data is not acknowledged for this long, the client is gone.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// The limit of a request's headers, and about that of an answer's data buffered for a client, in bytes.
const BUFFER_MAX: usize = 64 << 10;

/// The time that requests in progress get at the end.
const LAST_ORDERS: Duration = Duration::from_secs(2);

/// The client's certificate, in DER, whose key it has proved to have. An extension of each request over TLS.
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
    while let Some(accepted) = next(listener.accept(), &mut tasks, &stop).await {
        let Some((stream, peer)) = accepted else { continue };
        match connections.enter(peer.ip().to_canonical()) {
            Some(entry) => {
                tasks.spawn(connection(stream, tls.clone(), peer, router.clone(), entry, stop.clone()));
            }
            None => {
                tracing::debug!(%peer, "a client that has too many connections, or is none of the segment's");
                // A FIN would leave it in TIME_WAIT.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
    drop(listener);
    end(tasks).await;
}

/// The next connection; `Some(None)` if accepting failed, `None` at the end.
pub(super) async fn next<T>(
    accept: impl Future<Output = io::Result<T>>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Option<Option<T>> {
    tokio::select! {
        accepted = accept => match accepted {
            Ok(accepted) => Some(Some(accepted)),
            // The connection's error (ECONNABORTED), or the process's (EMFILE), which passes.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some(None)
            }
        },
        Some(_) = tasks.join_next() => Some(None),
        () = stop.cancelled() => None,
    }
}

/// Gives requests in progress time to end.
pub(super) async fn end(mut tasks: JoinSet<()>) {
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
        // hyper keeps one handle; the socket closes with the last.
        let socket = Shared::new(stream);
        let closed = tokio::select! {
            closed = async {
                let worth_an_end = match tls {
                    None => requests(socket.clone(), None, peer, &entry, router, stop).await,
                    Some(tls) => {
                        let stream = tokio::time::timeout(IDLE, tls.accept(socket.clone())).await??;
                        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                        let shown = Shown(shown.cloned().map(CertificateDer::into_owned));
                        requests(stream, Some(shown), peer, &entry, router, stop).await
                    }
                };
                entry.ends();
                match worth_an_end {
                    true => half_close(&socket).await,
                    false => Ok(false),
                }
            } => closed?,
            () = entry.forgotten.cancelled() => false,
        };
        if !closed {
            // So that closing resets the connection.
            SockRef::from(socket.stream()).set_linger(Some(Duration::ZERO))?;
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "connection");
    }
}

/// Answers requests until the client has no more, or is silent for too long. False if it has not sent its first request
/// in time.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shown: Option<Shown>,
    peer: SocketAddr,
    entry: &Entry,
    router: Router,
    stop: CancellationToken,
) -> bool {
    let has_asked = AtomicBool::new(false);
    let service = service_fn(|mut request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        entry.asked();
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(shown) = &shown {
            request.extensions_mut().insert(shown.clone());
        }
        let mut router = router.clone();
        async move {
            match names_one_host(&request) {
                true => router.call(request).await,
                false => {
                    let error = "a request by HTTP/1.1 has one Host header (RFC 9112 section 3.2)";
                    Ok(Failure::new(Kind::Invalid, error, "name the appliance in it").into_response())
                }
            }
        }
    });
    let http = http1::Builder::new()
        // GRUB 2.06 looks for `Content-Length: ` in exactly this case. Without a length it waits half
        // a minute for more after each file.
        .title_case_headers(true)
        // A client that closed its sending side still waits for its answer.
        .half_close(true)
        // Bounds the memory of a client that does not read.
        .max_buf_size(BUFFER_MAX)
        .timer(TokioTimer::new())
        // Runs between requests, too.
        .header_read_timeout(entry.idle())
        .serve_connection(TokioIo::new(stream), service);
    let mut http = std::pin::pin!(http);
    let mut first = std::pin::pin!(tokio::time::sleep(entry.first()));
    let done = tokio::select! {
        done = http.as_mut() => done,
        () = stop.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
        () = async {
            first.as_mut().await;
            if has_asked.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        } => return false,
    };
    if let Err(error) = done {
        tracing::debug!(%peer, %error, "requests");
    }
    true
}

/// Whether the number of Host headers is as the protocol demands.
fn names_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// Closes our half, and waits until the connection has ended; false if it does not end in time.
///
/// The descriptor is held until then, so that the machine can be forgotten: GRUB closes with a
/// window of zero, which keeps our FIN from being sent, and a kernel-owned socket in LAST_ACK or
/// FIN_WAIT2 blocks the next boot as an open one does.
async fn half_close(socket: &Shared) -> io::Result<bool> {
    let socket = socket.stream();
    match SockRef::from(socket).shutdown(Shutdown::Write) {
        // It was reset.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(true),
        done => done?,
    }
    let mut pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(500));
    let ended = async {
        // Most clients answer our FIN with theirs at once.
        let mut rest = [0; 1024];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut rest) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        // getpeername(2) fails as soon as the socket has no connection; epoll reports the client's FIN,
        // but not its last ACK.
        while socket.peer_addr().is_ok() {
            tokio::time::sleep(pauses.pause()).await;
        }
    };
    Ok(tokio::time::timeout(LINGER, ended).await.is_ok())
}
