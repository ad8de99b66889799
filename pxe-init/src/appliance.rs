//! The node's connection to the appliance: HTTP, and HTTPS once the boot has a session.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use pxe_contract::failure::ErrorDocument;
use pxe_contract::settings::Settings;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::head::Head;

const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// The timeout of reads and writes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The limit of answers that are read whole.
const ANSWER_MAX: u64 = 64 << 10;

/// This node's settings for this boot, and how it reaches the appliance.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) settings: Settings,
    /// By HTTP, until the boot has a session. `None`: nothing is reported.
    pub(crate) appliance: Option<Appliance>,
}

impl Told {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { appliance: settings.appliance.map(Appliance::plain), settings }
    }
}

/// Where the appliance is. Cloning it is cheap.
#[derive(Clone)]
pub struct Appliance {
    at: SocketAddrV4,
    tls: Option<Arc<ClientConfig>>,
}

impl Appliance {
    /// Over HTTP, which authenticates neither side.
    pub fn plain(at: SocketAddrV4) -> Self {
        Self { at, tls: None }
    }

    pub(crate) fn by_tls(at: SocketAddrV4, tls: ClientConfig) -> Self {
        Self { at, tls: Some(Arc::new(tls)) }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        *self.at.ip()
    }

    /// A connection whose reads and writes end after [`PATIENCE`].
    pub(crate) fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(self.at), CONNECT_PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some(tls) = &self.tls else { return Ok(Connection::Plain(stream)) };
        let name = ServerName::IpAddress((*self.at.ip()).into());
        let connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        Ok(Connection::Tls(Box::new(StreamOwned::new(connection, stream))))
    }

    /// One POST on a connection of its own: the answer's status code and body.
    pub(crate) fn exchange(&self, path: &str, body: &[u8]) -> io::Result<(u16, String)> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {self}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(body);
        let mut connection = self.connect()?;
        connection.write_all(&request)?;
        connection.flush()?;
        let mut reader = BufReader::new(connection);
        let Head { status, length, part: _ } = Head::read(&mut reader)?;
        // 204 has no body, nor a length (RFC 9110 section 8.6).
        let length = length.unwrap_or(if status == 204 { 0 } else { ANSWER_MAX }).min(ANSWER_MAX);
        let mut body = String::new();
        reader.take(length).read_to_string(&mut body)?;
        Ok((status, body))
    }

    /// The same, if only the status code matters.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> io::Result<u16> {
        self.exchange(path, body).map(|(status, _)| status)
    }
}

impl fmt::Display for Appliance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

impl fmt::Debug for Appliance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.at, if self.tls.is_some() { " by TLS" } else { "" })
    }
}

/// Compares only the address, not keys.
impl PartialEq for Appliance {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.tls.is_some()) == (other.at, other.tls.is_some())
    }
}

/// The text of a refusal, from the appliance's error document.
pub(crate) fn words(status: u16, body: &str) -> String {
    match serde_json::from_str(body) {
        Ok(ErrorDocument { error, .. }) => error,
        Err(_) => format!("HTTP status {status}"),
    }
}

/// One connection.
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
