//! The API's client: over its socket, or by TCP with a token.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use pxe_contract::failure::ErrorDocument;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::config::API_SOCKET;

/// The variable with the token. It is not an argument, because everybody on the host can see a program's arguments.
const TOKEN_VARIABLE: &str = "BRIDGEHEAD_TOKEN";

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Options of commands that read: where the API is, and how its answers are printed.
#[derive(Debug, clap::Args)]
pub struct Reading {
    #[command(flatten)]
    pub api: Place,
    /// Print JSON: one document, or one a line where there are many.
    #[arg(long)]
    pub json: bool,
}

/// Where the API is.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// Where the daemon's API answers: its socket's path, or a URL. By TCP, BRIDGEHEAD_TOKEN has a token.
    #[arg(long, env = "BRIDGEHEAD_API", value_name = "SOCKET|URL", default_value = API_SOCKET)]
    pub api: String,
    /// For https://…: the certificate of the appliance's CA, a copy of STATE-DIR/ca.pem.
    #[arg(long, env = "BRIDGEHEAD_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.api)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "no daemon answers at {api} ({source}): is `bridgehead serve` running? --api or BRIDGEHEAD_API say where"
    )]
    NoDaemon { api: Place, source: io::Error },
    #[error("you may not use {api} ({source}): its group may, and root")]
    NotYours { api: Place, source: io::Error },
    #[error(
        "{api} is no socket's path and no URL: /run/bridgehead/api.sock, http://127.0.0.1:7480, https://HOST:PORT"
    )]
    NoPlace { api: Place },
    #[error("a token is not sent to {api} in clear text: name it https://…")]
    ClearText { api: Place },
    #[error(
        "{api} is trusted by its CA's certificate: name a copy of STATE-DIR/ca.pem with --ca or BRIDGEHEAD_CA"
    )]
    NoCa { api: Place },
    #[error("{}; {}", .0.error, .0.hint)]
    Refused(ErrorDocument),
    #[error(
        "what answers at {api} is no Bridgehead daemon of this version ({what}): check --api and `bridgehead --version`"
    )]
    NotOurs { api: Place, what: String },
    #[error("the daemon at {api} ended before its answer did: its log says why")]
    Cut { api: Place },
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("launch {id}: {words}")]
    Launch { id: u64, words: String },
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
}

pub(crate) struct Client {
    place: Place,
    token: Option<Zeroizing<String>>,
    runtime: Arc<Runtime>,
}

/// A body to be sent, and its type.
pub(crate) struct Sent {
    pub(crate) content_type: &'static str,
    pub(crate) body: Body,
    /// The answer is to be lines.
    pub(crate) lines: bool,
}

/// An answer whose head has arrived. Its body is read as it arrives.
pub(crate) struct Answer {
    status: StatusCode,
    body: BodyDataStream,
    piece: Bytes,
    runtime: Arc<Runtime>,
}

/// What a [`Place`] means.
enum Target {
    Socket(PathBuf),
    /// `HOST:PORT`, and the host alone.
    Tcp {
        authority: String,
        host: String,
        tls: bool,
    },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    pub(crate) fn new(place: &Place) -> Self {
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        Self::with_token(place, token)
    }

    pub(crate) fn with_token(place: &Place, token: Option<String>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Arc::new(runtime.expect("a runtime without threads can be had"));
        Self { place: place.clone(), token: token.map(Zeroizing::new), runtime }
    }

    pub(crate) fn get(&self, path: &str) -> Result<Answer, AskError> {
        self.ask(Method::GET, path, None)
    }

    pub(crate) fn post(&self, path: &str, document: Option<&serde_json::Value>) -> Result<Answer, AskError> {
        self.ask(Method::POST, path, document.map(json))
    }

    /// The same, where the answer is lines, if the daemon is asked for them.
    pub(crate) fn post_for_lines(
        &self,
        path: &str,
        document: &serde_json::Value,
    ) -> Result<Answer, AskError> {
        self.ask(Method::POST, path, Some(Sent { lines: true, ..json(document) }))
    }

    /// Sends a body that is not a document.
    pub(crate) fn send(&self, path: &str, sent: Sent) -> Result<Answer, AskError> {
        self.ask(Method::POST, path, Some(sent))
    }

    pub(crate) fn put(&self, path: &str, document: &serde_json::Value) -> Result<Answer, AskError> {
        self.ask(Method::PUT, path, Some(json(document)))
    }

    pub(crate) fn patch(&self, path: &str, document: &serde_json::Value) -> Result<Answer, AskError> {
        self.ask(Method::PATCH, path, Some(json(document)))
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Answer, AskError> {
        self.ask(Method::DELETE, path, None)
    }

    /// The runtime on which a body's tokio sources are opened.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn document<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, AskError> {
        serde_json::from_reader(BufReader::new(answer)).map_err(|error| self.unreadable(error))
    }

    /// Calls `each` with every line of the answer, as a document and as received.
    pub(crate) fn lines<T: DeserializeOwned>(
        &self,
        answer: Answer,
        mut each: impl FnMut(T, &[u8]) -> io::Result<()>,
    ) -> Result<(), AskError> {
        self.lines_while(answer, |document, line| each(document, line).map(|()| true))
    }

    /// The same until `each` says that it is enough.
    pub(crate) fn lines_while<T: DeserializeOwned>(
        &self,
        answer: Answer,
        mut each: impl FnMut(T, &[u8]) -> io::Result<bool>,
    ) -> Result<(), AskError> {
        let mut reader = BufReader::new(answer);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(self.cut()),
            }
            let document = serde_json::from_slice(&line).map_err(|error| self.unreadable(error))?;
            if !each(document, &line).map_err(AskError::Output)? {
                return Ok(());
            }
        }
    }

    /// Calls `each` with every whole block of a pcapng file, so that an interrupted command leaves a file
    /// that ends with a complete block.
    pub(crate) fn blocks(
        &self,
        answer: Answer,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), AskError> {
        let mut reader = BufReader::with_capacity(1 << 20, answer);
        let mut block = Vec::new();
        while !reader.fill_buf().map_err(|_| self.cut())?.is_empty() {
            let mut head = [0; 8];
            reader.read_exact(&mut head).map_err(|_| self.cut())?;
            let [.., a, b, c, d] = head;
            block.clear();
            block.extend(head);
            let rest = u64::from(u32::from_le_bytes([a, b, c, d])).saturating_sub(8);
            let read = reader.by_ref().take(rest).read_to_end(&mut block).map_err(|_| self.cut())?;
            if read as u64 != rest {
                return Err(self.cut());
            }
            each(&block).map_err(AskError::Output)?;
        }
        Ok(())
    }

    fn ask(&self, method: Method, path: &str, sent: Option<Sent>) -> Result<Answer, AskError> {
        let answer = self.runtime.block_on(self.exchange(method, path, sent))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let status = answer.status;
        Err(match self.document(answer) {
            Ok(document) => AskError::Refused(document),
            Err(_) => AskError::NotOurs { api: self.place.clone(), what: format!("status {status}") },
        })
    }

    async fn exchange(&self, method: Method, path: &str, sent: Option<Sent>) -> Result<Answer, AskError> {
        let target = self.target()?;
        let (host, token) = match &target {
            // There the kernel identifies the client, and no token is needed.
            Target::Socket(_) => ("localhost", None),
            Target::Tcp { authority, host, tls } => {
                let token = self.token.as_ref();
                if !tls && token.is_some() && !is_loopback(host) {
                    return Err(AskError::ClearText { api: self.place.clone() });
                }
                (authority.as_str(), token)
            }
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        if let Some(sent) = &sent {
            request = request.header(header::CONTENT_TYPE, sent.content_type);
            if sent.lines {
                request = request.header(header::ACCEPT, "application/x-ndjson");
            }
        }
        let body = sent.map_or_else(Body::empty, |sent| sent.body);
        let request = request.body(body).map_err(|error| self.no_daemon(io::Error::other(error)))?;

        let stream = tokio::time::timeout(CONNECT_WITHIN, self.connect(&target)).await;
        let stream = stream.unwrap_or_else(|late| Err(self.no_daemon(late.into())))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.no_daemon(io::Error::other(error)))?;
        // It ends with the answer, or with this program.
        tokio::spawn(connection);
        let answer =
            sender.send_request(request).await.map_err(|error| self.no_daemon(io::Error::other(error)))?;
        Ok(Answer {
            status: answer.status(),
            body: Body::new(answer.into_body()).into_data_stream(),
            piece: Bytes::new(),
            runtime: self.runtime.clone(),
        })
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, AskError> {
        let (authority, host, tls) = match target {
            Target::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
                    io::ErrorKind::PermissionDenied => AskError::NotYours { api: self.place.clone(), source },
                    _ => self.no_daemon(source),
                })?;
                return Ok(Box::new(stream));
            }
            Target::Tcp { authority, host, tls } => (authority, host, *tls),
        };
        let stream = TcpStream::connect(authority).await.map_err(|error| self.no_daemon(error))?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let Some(ca) = &self.place.ca else { return Err(AskError::NoCa { api: self.place.clone() }) };
        let file = |error: &dyn fmt::Display| AskError::File {
            path: ca.clone(),
            source: io::Error::other(error.to_string()),
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| file(&error))? {
            roots.add(certificate.map_err(|error| file(&error))?).map_err(|error| file(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name =
            ServerName::try_from(host.clone()).map_err(|_| AskError::NoPlace { api: self.place.clone() })?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|error| self.no_daemon(error))?;
        Ok(Box::new(stream))
    }

    fn target(&self) -> Result<Target, AskError> {
        let api = self.place.api.trim_end_matches('/');
        let (authority, tls) = match api.split_once("://") {
            Some(("http", authority)) => (authority, false),
            Some(("https", authority)) => (authority, true),
            Some(("unix", path)) => return Ok(Target::Socket(path.into())),
            None if api.contains('/') => return Ok(Target::Socket(api.into())),
            // The form from before there was a socket.
            None if api.contains(':') => (api, false),
            _ => return Err(AskError::NoPlace { api: self.place.clone() }),
        };
        let parsed = authority.parse::<axum::http::uri::Authority>();
        let parsed = parsed.map_err(|_| AskError::NoPlace { api: self.place.clone() })?;
        let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = parsed.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Target::Tcp { authority, host, tls })
    }

    fn no_daemon(&self, source: io::Error) -> AskError {
        AskError::NoDaemon { api: self.place.clone(), source }
    }

    fn cut(&self) -> AskError {
        AskError::Cut { api: self.place.clone() }
    }

    fn unreadable(&self, error: serde_json::Error) -> AskError {
        match error.classify() {
            serde_json::error::Category::Io | serde_json::error::Category::Eof => self.cut(),
            _ => AskError::NotOurs { api: self.place.clone(), what: error.to_string() },
        }
    }
}

fn json(document: &serde_json::Value) -> Sent {
    Sent { content_type: "application/json", body: document.to_string().into(), lines: false }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.body.next()) {
                Some(piece) => self.piece = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
