//! The listeners for people: the socket, and TCP where the configuration says so.
//!
//! The number of connections is limited, so that they don't take the descriptors that machines need. The socket has a
//! limit of its own: whatever happens on TCP, the command line on the appliance gets through. On TCP, a connection
//! without a token or login is closed to make room for a new one.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use super::listener::{self, UNACKNOWLEDGED};
use super::places::IDLE;
use crate::base::lock::Unpoisoned as _;

/// Connections at a time, of the socket and of TCP, each.
pub const CONNECTIONS_MAX: usize = 256;

/// How long and how much is still read of a request that was refused before its end. Otherwise a reset would destroy the
/// answer before the client has read it.
const DRAINED_FOR: Duration = Duration::from_secs(1);
const DRAINED: u64 = 256 * 1024;

/// The group whose members may use the socket, where there is one.
pub const GROUP: &str = "bridgehead";

/// How a request arrived.
#[derive(Clone, Debug)]
pub(super) enum Came {
    /// From a process of this user, as the kernel says.
    Socket {
        uid: u32,
    },
    Tcp {
        local: SocketAddr,
        peer: SocketAddr,
        tls: bool,
        known: Known,
    },
}

/// Whether a request on the connection had a valid token or login.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "another daemon serves its API at {0}: stop it, or give this one a path of its own, [api] socket"
    )]
    Taken(PathBuf),
    #[error("{0} is there, and no socket: move it away, or name another path, [api] socket")]
    NoSocket(PathBuf),
    #[error("{path}: {source}; [api] socket names another path")]
    Io { path: PathBuf, source: io::Error },
}

/// The socket's listener. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Opens it for root and the group [`GROUP`]. A socket that a killed daemon left is replaced.
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            std::fs::create_dir_all(directory).map_err(failed)?;
            // The group needs access to the directory, whatever the umask.
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Ok(_) => return Err(SocketError::Taken(path.to_owned())),
                // The queue is full, so a daemon is alive there, too.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SocketError::Taken(path.to_owned()));
                }
                Err(error) => return Err(failed(error)),
            },
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
        // Until here the umask keeps everybody out. First set the group, then its permissions.
        if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) {
            chown(path, None, Some(group.gid.as_raw())).map_err(failed)?;
        }
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves `router` until `stop`.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let places = Places::default();
        let mut tasks = JoinSet::new();
        while let Some(accepted) = listener::next(self.listener.accept(), &mut tasks, &stop).await {
            let Some((stream, _)) = accepted else { continue };
            let uid = match stream.peer_cred() {
                Ok(peer) => peer.uid(),
                Err(error) => {
                    tracing::debug!(%error, "a client whose user is not known");
                    continue;
                }
            };
            let known = Known::default();
            known.set();
            let Some(place) = places.take(known) else {
                tracing::debug!(uid, "too many connections to the socket");
                continue;
            };
            let came = Came::Socket { uid };
            tasks.spawn(place.hold(by_socket(stream, came, router.clone(), stop.clone())));
        }
        drop(self);
        listener::end(tasks).await;
    }
}

/// Serves `router` over TCP until `stop`, with TLS if there is a configuration for it.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let tls = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
    let places = Places::default();
    let mut tasks = JoinSet::new();
    while let Some(accepted) = listener::next(listener.accept(), &mut tasks, &stop).await {
        let Some((stream, peer)) = accepted else { continue };
        let known = Known::default();
        let Some(place) = places.take(known.clone()) else {
            tracing::debug!(%peer, "too many connections to [api] listen");
            continue;
        };
        let serving = by_tcp(stream, peer, known, tls.clone(), router.clone(), stop.clone());
        tasks.spawn(place.hold(serving));
    }
    drop(listener);
    listener::end(tasks).await;
}

async fn by_socket(stream: UnixStream, came: Came, router: Router, stop: CancellationToken) {
    // Clients on the socket have no address; where addresses count, they have the appliance's own.
    let peer = SocketAddr::from(([127, 0, 0, 1], 0));
    requests(stream, came, peer, router, stop).await;
}

async fn by_tcp(
    stream: TcpStream,
    peer: SocketAddr,
    known: Known,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    let served = async {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        let came = Came::Tcp { local: stream.local_addr()?, peer, tls: tls.is_some(), known };
        match tls {
            None => requests(stream, came, peer, router, stop).await,
            Some(tls) => {
                let stream = tokio::time::timeout(IDLE, tls.accept(stream)).await??;
                requests(stream, came, peer, router, stop).await;
            }
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = served.await {
        tracing::debug!(%peer, %error, "connection to the API");
    }
}

/// Answers requests until the client has no more, or is silent for too long.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    came: Came,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(came.clone());
        router.clone().call(request)
    });
    let mut http = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs between requests, too.
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopped = false;
    let done = loop {
        tokio::select! {
            done = std::future::poll_fn(|context| http.poll_without_shutdown(context)) => break done,
            () = stop.cancelled(), if !stopped => {
                stopped = true;
                std::pin::Pin::new(&mut http).graceful_shutdown();
            }
        }
    };
    if let Err(error) = done {
        tracing::debug!(%peer, %error, "requests to the API");
    }
    let mut stream = http.into_parts().io.into_inner();
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(DRAINED);
        let mut nowhere = tokio::io::sink();
        let drained = tokio::io::copy(&mut rest, &mut nowhere);
        let _ = tokio::time::timeout(DRAINED_FOR, drained).await;
    }
}

/// The open connections, in the order in which they were accepted.
#[derive(Clone, Default)]
struct Places {
    taken: Arc<Mutex<Vec<Taken>>>,
    next: Arc<AtomicU64>,
}

struct Taken {
    id: u64,
    known: Known,
    gives_way: CancellationToken,
}

/// A connection's place among them.
struct Place {
    places: Places,
    id: u64,
    gives_way: CancellationToken,
}

impl Places {
    /// A place; if none is left, that of the oldest unauthenticated connection.
    fn take(&self, known: Known) -> Option<Place> {
        let mut taken = self.taken.lock().unpoisoned();
        if taken.len() >= CONNECTIONS_MAX {
            let stranger = taken.iter().position(|other| !other.known.get())?;
            taken.remove(stranger).gives_way.cancel();
        }
        let (id, gives_way) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        taken.push(Taken { id, known, gives_way: gives_way.clone() });
        Some(Place { places: self.clone(), id, gives_way })
    }
}

impl Place {
    /// Runs until the connection is served to its end, or closed to make room.
    async fn hold(self, serving: impl Future<Output = ()>) {
        tokio::select! {
            () = serving => {}
            () = self.gives_way.cancelled() => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().unpoisoned().retain(|taken| taken.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_known_gives_way_and_who_is_known_stays() {
        let places = Places::default();
        let known = Known::default();
        known.set();
        let first = places.take(known.clone()).unwrap();
        let strangers: Vec<Place> =
            (1..CONNECTIONS_MAX).map(|_| places.take(Known::default()).unwrap()).collect();
        let late = places.take(known.clone()).unwrap();
        assert!(strangers[0].gives_way.is_cancelled(), "the oldest stranger");
        assert!(!first.gives_way.is_cancelled() && !strangers[1].gives_way.is_cancelled());
        drop(strangers);
        let mut all: Vec<Place> = (2..CONNECTIONS_MAX).map(|_| places.take(known.clone()).unwrap()).collect();
        assert!(places.take(known.clone()).is_none(), "everybody is known");
        drop(all.pop());
        assert!(places.take(known).is_some());
        drop((first, late));
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/api.sock");
        let first = Socket::open(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = Socket::open(&path).unwrap_err();
        assert!(matches!(&error, SocketError::Taken(_)), "{error}");
        assert!(error.to_string().contains("[api] socket"));
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        Socket::open(&path).expect("nobody listens there");

        std::fs::write(&path, "").unwrap();
        assert!(matches!(Socket::open(&path).unwrap_err(), SocketError::NoSocket(_)));
        assert!(path.exists(), "what is not ours is left alone");
    }
}
