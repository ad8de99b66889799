//! Docker engines, the appliance's and its nodes': where they are, and how to connect to them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{self, ENGINE_PORT};
use crate::nodes::trust::authority::Identity;

/// Seconds until an answer must begin; bodies may take longer.
const TIMEOUT: u64 = 120;
/// Time for a node to accept a connection.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// A node that lost its power sends nothing. That is noticed after three of these.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// An engine that may or may not be running. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Engine(At);

#[derive(Clone, Debug)]
enum At {
    Appliance(config::Docker),
    Node { address: Ipv4Addr, tls: Tls },
}

/// TLS that authenticates the appliance and nodes' engines to each other. Cloning it is cheap.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

/// Why an identity can't be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading the certificate or key of the appliance's client: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("setting up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum NoEngine {
    #[error(
        "no Docker engine answers at {address}: {source}. Start it (`systemctl start docker`), or name its socket in [docker] socket"
    )]
    Appliance { address: String, source: DockerError },
    #[error("the node's Docker engine at {address} does not answer: {source}")]
    Node { address: Ipv4Addr, source: DockerError },
}

impl Engine {
    /// The appliance's own engine.
    pub fn new(config: &config::Docker) -> Self {
        Self(At::Appliance(config.clone()))
    }

    /// A node's engine.
    pub fn of_node(address: Ipv4Addr, tls: Tls) -> Self {
        Self(At::Node { address, tls })
    }

    /// A connection that uses an API version which the engine supports, too.
    pub async fn connect(&self) -> Result<Docker, NoEngine> {
        let failed = |source| self.unreachable(source);
        let docker = match &self.0 {
            At::Appliance(config::Docker { socket: Some(socket) }) => {
                Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT, API_DEFAULT_VERSION)
            }
            At::Appliance(config::Docker { socket: None }) => Docker::connect_with_defaults(),
            At::Node { address, tls } => {
                let (address, tls) = (*address, tls.clone());
                let transport = move |request| exchange(address, tls.clone(), request);
                let url = Some(format!("https://{address}:{ENGINE_PORT}"));
                Docker::connect_with_custom_transport(transport, url, TIMEOUT, API_DEFAULT_VERSION)
            }
        };
        docker.map_err(failed)?.negotiate_version().await.map_err(failed)
    }

    fn unreachable(&self, source: DockerError) -> NoEngine {
        match &self.0 {
            At::Appliance(config) => {
                let address = match &config.socket {
                    Some(socket) => socket.display().to_string(),
                    None => std::env::var("DOCKER_HOST").unwrap_or_else(|_| "/var/run/docker.sock".into()),
                };
                NoEngine::Appliance { address, source }
            }
            At::Node { address, .. } => NoEngine::Node { address: *address, source },
        }
    }
}

impl Tls {
    /// A client that presents `own`, and trusts certificates signed by `authority` (PEM).
    pub fn client(authority: &str, own: &Identity) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self(Arc::new(config)))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// One request on a connection of its own. Nodes come and go, and a connection that is kept could be one to an engine
/// that is gone.
async fn exchange(
    address: Ipv4Addr,
    tls: Tls,
    mut request: BollardRequest,
) -> Result<Response<Incoming>, DockerError> {
    let connecting = async {
        let stream = TcpStream::connect((address, ENGINE_PORT)).await?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls.0).connect(ServerName::IpAddress(address.into()), stream).await
    };
    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let stream = tokio::time::timeout(CONNECTS_WITHIN, connecting).await.map_err(timed_out)??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // This task ends with the answer's body.
    tokio::spawn(connection);
    // A request to a server contains a path, one to a proxy a URL (RFC 9112 section 3.2).
    if let Some(host) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
    Ok(sender.send_request(request).await?)
}

#[cfg(test)]
#[path = "engine_testing.rs"]
pub(crate) mod testing;
