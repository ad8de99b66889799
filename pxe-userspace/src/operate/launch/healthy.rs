//! A URL that says whether a machine is healthy: `http://{address}:8080/health`. Only the machine's own address is ever
//! asked, over the bridge.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpSocket;

use crate::config::nodes::quoted;

/// How long a machine has to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Bytes of an answer's head.
const HEAD_MAX: usize = 16 * 1024;

/// Characters of a URL.
const URL_MAX: usize = 1024;

/// Names of a machine in a URL.
const ADDRESS: &str = "{address}";
const NAME: &str = "{name}";

/// A URL with places for a machine's address and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthUrl {
    /// `{address}` or `{name}`, which is what the machine is asked for.
    host: &'static str,
    port: u16,
    /// With its query.
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} can't say whether a machine is healthy: {why}", quoted(.url))]
pub struct UrlError {
    url: String,
    why: &'static str,
}

impl FromStr for HealthUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let wrong = |why| Err(UrlError { url: url.to_owned(), why });
        if url.len() > URL_MAX || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("at most 1024 visible characters, without spaces");
        }
        let Some(rest) = url.strip_prefix("http://") else {
            return wrong("it begins with http://; a node has no certificate that could be verified");
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = match authority.strip_prefix(ADDRESS) {
            Some(port) => (ADDRESS, port),
            None => match authority.strip_prefix(NAME) {
                Some(port) => (NAME, port),
                None => return wrong("its host is {address} or {name}: only the machine itself is asked"),
            },
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => Some(80),
            None => None,
            Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0),
        };
        let Some(port) = port else {
            return wrong("behind its host stands a port, such as :8080, or its path");
        };
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { host, port, path })
    }
}

impl fmt::Display for HealthUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// What was wrong with the answer, or that there was none.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{url}: {source}")]
    Io { url: String, source: std::io::Error },
    #[error("{url}: {source}")]
    Http { url: String, source: hyper::Error },
    #[error("{url}: {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url}: no answer within {} s", WITHIN.as_secs())]
    Late { url: String },
    #[error("{url} is no URL: {source}")]
    Url { url: String, source: axum::http::Error },
}

impl HealthUrl {
    fn host(&self, address: Ipv4Addr, name: &str) -> String {
        let host = if self.host == NAME { name.to_owned() } else { address.to_string() };
        if self.port == 80 { host } else { format!("{host}:{}", self.port) }
    }

    fn path(&self, address: Ipv4Addr, name: &str) -> String {
        self.path.replace(ADDRESS, &address.to_string()).replace(NAME, name)
    }

    /// Asks the machine at `address`, by the interface `bridge`. Whatever it is called, nobody else is asked. A status
    /// from 200 to 399 is well; a redirection is not followed.
    pub async fn check(&self, bridge: &str, address: Ipv4Addr, name: &str) -> Result<(), CheckError> {
        let url = format!("http://{}{}", self.host(address, name), self.path(address, name));
        let asking = self.ask(Some(bridge), address, name, &url);
        tokio::time::timeout(WITHIN, asking).await.map_err(|_| CheckError::Late { url: url.clone() })?
    }

    async fn ask(
        &self,
        bridge: Option<&str>,
        address: Ipv4Addr,
        name: &str,
        url: &str,
    ) -> Result<(), CheckError> {
        let io = |source| CheckError::Io { url: url.to_owned(), source };
        let http = |source| CheckError::Http { url: url.to_owned(), source };
        let request = Request::get(self.path(address, name))
            .header(header::HOST, self.host(address, name))
            .header(header::USER_AGENT, "bridgehead")
            .header(header::CONNECTION, "close")
            .body(Body::empty())
            .map_err(|source| CheckError::Url { url: url.to_owned(), source })?;
        let socket = TcpSocket::new_v4().map_err(io)?;
        if let Some(bridge) = bridge {
            SockRef::from(&socket).bind_device(Some(bridge.as_bytes())).map_err(io)?;
        }
        let stream = socket.connect(SocketAddr::from((address, self.port))).await.map_err(io)?;
        let mut client = hyper::client::conn::http1::Builder::new();
        let (mut sender, connection) =
            client.max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await.map_err(http)?;
        // It ends when the answer is dropped, whose body nobody reads.
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(http);
        connection.abort();
        match answer?.status() {
            status if (200..400).contains(&status.as_u16()) => Ok(()),
            status => Err(CheckError::Status { url: url.to_owned(), status }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_the_machine_itself_can_be_asked() {
        for (url, shown) in [
            ("http://{address}", "http://{address}:80/"),
            ("http://{name}:8080/health?of={name}#x", "http://{name}:8080/health?of={name}"),
            ("http://{address}?a", "http://{address}:80/?a"),
        ] {
            assert_eq!(url.parse::<HealthUrl>().unwrap().to_string(), shown);
        }
        for url in [
            "",
            "https://{address}/",
            "http://10.77.0.1/",
            "http://{address}.example.org/",
            "http://{address}@example.org/",
            "http://x@{address}/",
            "http://{address}:0/",
            "http://{address}:x/",
            "http://{address}/a b",
            "http://{address}/\r\nX: y",
            "http:///{address}",
        ] {
            assert!(url.parse::<HealthUrl>().is_err(), "{url}");
        }
        let url: HealthUrl = "http://{name}:81/{address}/{name}".parse().unwrap();
        let address = Ipv4Addr::new(10, 77, 0, 9);
        assert_eq!(
            (url.host(address, "n1"), url.path(address, "n1")),
            ("n1:81".into(), "/10.77.0.9/n1".into())
        );
    }

    #[tokio::test]
    async fn an_answer_counts_by_its_status() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url: HealthUrl = format!("http://{{address}}:{port}/x").parse().unwrap();
        let answers = [
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
            "HTTP/1.1 503 No\r\n\r\n",
            "what?\r\n\r\n",
        ];
        let serving = tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /x HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let ask = async || url.ask(None, Ipv4Addr::LOCALHOST, "n1", "u").await;
        ask().await.unwrap();
        assert_eq!(ask().await.unwrap_err().to_string(), "u: 503 Service Unavailable");
        assert!(matches!(ask().await.unwrap_err(), CheckError::Http { .. }));
        serving.await.unwrap();
        assert!(matches!(ask().await.unwrap_err(), CheckError::Io { .. }), "nobody listens any more");
    }
}
