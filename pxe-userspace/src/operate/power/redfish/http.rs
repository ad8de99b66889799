//! One connection to a BMC: HTTP/1.1, over TLS with the certificate that is pinned for it.

use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::super::pins::{Fingerprint, Pins};
use super::super::{Limits, PowerError};
use super::session::Authority;
use crate::base::lock::Unpoisoned as _;
use crate::base::text::{chain, hex};
use crate::config::power::BmcUrl;

/// Bytes of an answer. A system's document has some ten thousand.
const BODY_MAX: usize = 1 << 20;
/// Bytes of a session's token.
const TOKEN_MAX: usize = 1024;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// It ends with this value.
pub(super) struct Connection {
    sender: SendRequest<Body>,
    _driving: AbortOnDropHandle<()>,
}

/// A request.
#[derive(Clone)]
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) body: Option<&'a Value>,
    /// What the document was when it was read: a change is refused where it is another by now.
    pub(super) etag: Option<&'a str>,
    pub(super) authority: Option<&'a Authority>,
}

impl<'a> Asked<'a> {
    /// One that nobody has to be known for.
    pub(super) fn open(method: Method, path: &'a str, body: Option<&'a Value>) -> Self {
        Self { method, path, body, etag: None, authority: None }
    }
}

/// An answer, read to its end.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    pub(super) etag: Option<String>,
    /// Of a session that was opened.
    pub(super) token: Option<Zeroizing<String>>,
}

impl Answer {
    pub(super) fn document(&self) -> Result<Value, String> {
        serde_json::from_slice(&self.body).map_err(|error| format!("its answer is no JSON ({error})"))
    }
}

/// Connects, and goes no further where the certificate is not the pinned one. The first one that it ever shows is pinned,
/// before anything secret is sent.
pub(super) async fn connect(url: &BmcUrl, pins: &Pins, limits: &Limits) -> Result<Connection, PowerError> {
    let place = url.authority();
    let pinned = pins.get(&place);
    let (stream, shown) = open(url, limits, pinned).await?;
    if let (None, Some(shown)) = (pinned, shown) {
        tracing::info!(
            bmc = place,
            fingerprint = hex(&shown),
            "a BMC's certificate was seen first, and is trusted"
        );
        pins.put(&place, shown).await?;
    }
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| unreachable(url, &error))?;
    let driving = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a BMC's connection");
        }
    });
    Ok(Connection { sender, _driving: AbortOnDropHandle::new(driving) })
}

/// The certificate that a BMC shows, whichever it is. Nothing is sent.
pub(super) async fn certificate_of(url: &BmcUrl, limits: &Limits) -> Result<Fingerprint, PowerError> {
    let none = || PowerError::Tls { bmc: url.authority(), why: "it shows no certificate".into() };
    open(url, limits, None).await?.1.ok_or_else(none)
}

async fn open(
    url: &BmcUrl,
    limits: &Limits,
    pinned: Option<Fingerprint>,
) -> Result<(Box<dyn Stream>, Option<Fingerprint>), PowerError> {
    let opening = async {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await;
        let stream = stream.map_err(|error| unreachable(url, &error))?;
        let _ = stream.set_nodelay(true);
        if url.tls { secured(url, stream, pinned).await } else { Ok((Box::new(stream) as _, None)) }
    };
    let slow = |_| PowerError::Slow { bmc: url.authority(), doing: "connecting", limit: limits.connect };
    tokio::time::timeout(limits.connect, opening).await.map_err(slow)?
}

async fn secured(
    url: &BmcUrl,
    stream: TcpStream,
    pinned: Option<Fingerprint>,
) -> Result<(Box<dyn Stream>, Option<Fingerprint>), PowerError> {
    let bmc = url.authority();
    let failed = |why: String| PowerError::Tls { bmc: url.authority(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { pinned, shown: Mutex::default(), provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        // Most BMCs of today know no 1.3.
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring has both")
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(url.host.clone()).map_err(|error| failed(error.to_string()))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connected = connector.connect(name, stream).await;
    let shown = *verifier.shown.lock().unpoisoned();
    match (connected, pinned, shown) {
        (_, Some(pinned), Some(found)) if found != pinned => {
            Err(PowerError::OtherCertificate { bmc, pinned: hex(&pinned), found: hex(&found) })
        }
        (Ok(stream), ..) => Ok((Box::new(stream), shown)),
        (Err(error), ..) => Err(failed(chain(&error))),
    }
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn exchange(
        &mut self,
        url: &BmcUrl,
        asked: Asked<'_>,
        limits: &Limits,
    ) -> Result<Answer, PowerError> {
        let request = request(url, asked).map_err(|error| unreachable(url, &error))?;
        let exchanging = async {
            let ready = self.sender.ready().await;
            ready.map_err(|error| unreachable(url, &error))?;
            let response = self.sender.send_request(request).await;
            answer(url, response.map_err(|error| unreachable(url, &error))?).await
        };
        let slow =
            |_| PowerError::Slow { bmc: url.authority(), doing: "it was asked", limit: limits.request };
        tokio::time::timeout(limits.request, exchanging).await.map_err(slow)?
    }
}

fn request(url: &BmcUrl, asked: Asked<'_>) -> Result<Request<Body>, hyper::http::Error> {
    let mut request = Request::builder()
        .method(asked.method)
        .uri(asked.path)
        .header(header::HOST, url.authority())
        .header(header::ACCEPT, "application/json")
        .header("OData-Version", "4.0");
    let secret = |text: &str| {
        let value = HeaderValue::from_str(text);
        value.map(|mut value| {
            value.set_sensitive(true);
            value
        })
    };
    match asked.authority {
        None | Some(Authority::Nobody) => {}
        Some(Authority::Token(token)) => request = request.header("X-Auth-Token", secret(token)?),
        Some(Authority::Basic(basic)) => request = request.header(header::AUTHORIZATION, secret(basic)?),
    }
    if let Some(etag) = asked.etag {
        request = request.header(header::IF_MATCH, etag);
    }
    match asked.body {
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            request.body(Body::from(body.to_string()))
        }
        None => request.body(Body::empty()),
    }
}

async fn answer(url: &BmcUrl, response: Response<hyper::body::Incoming>) -> Result<Answer, PowerError> {
    let (head, body) = response.into_parts();
    let text = |name: &str| {
        let value = head.headers.get(name)?.to_str().ok()?;
        (value.len() <= TOKEN_MAX).then(|| value.to_owned())
    };
    let body = to_bytes(Body::new(body), BODY_MAX).await;
    let long = |error: axum::Error| PowerError::NotRedfish {
        bmc: url.authority(),
        what: format!("an answer that breaks off, or is longer than {} KiB ({error})", BODY_MAX >> 10),
    };
    Ok(Answer {
        status: head.status,
        etag: text("etag"),
        token: text("x-auth-token").map(Zeroizing::new),
        body: body.map_err(long)?.into(),
    })
}

fn unreachable(url: &BmcUrl, error: &(dyn std::error::Error + 'static)) -> PowerError {
    PowerError::Unreachable { bmc: url.authority(), why: chain(error) }
}

/// Takes the certificate that is pinned, and without a pin any. Names and dates are not looked at: BMCs show the ones
/// that they left the factory with. That it has the certificate's key is verified as always.
#[derive(Debug)]
struct Pinned {
    pinned: Option<Fingerprint>,
    shown: Mutex<Option<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::from(Sha256::digest(end_entity));
        *self.shown.lock().unpoisoned() = Some(shown);
        match self.pinned {
            Some(pinned) if pinned != shown => {
                Err(rustls::CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
