//! The keys of encrypted volumes, which the appliance keeps: asked for once a boot, when the first is needed.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use serde::Deserialize;

use crate::settings::Settings;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(
        "the plan has encrypted volumes, and the appliance gave this boot no token to ask for their keys"
    )]
    NoToken,
    #[error(
        "the plan has encrypted volumes, and bridgehead.url names no appliance that could have their keys"
    )]
    NoAppliance,
    #[error("asking {appliance} for the volumes' keys: {source}")]
    Unreachable { appliance: SocketAddrV4, source: io::Error },
    #[error("the appliance did not give the volumes' keys: {0}")]
    Refused(String),
    #[error("the appliance gave no key for volume `{0}`")]
    Missing(String),
}

/// Keys by volume.
pub(super) struct Keys<'a> {
    settings: &'a Settings,
    token: Option<String>,
    received: Option<BTreeMap<String, Vec<u8>>>,
}

/// What the appliance answers.
#[derive(Deserialize)]
struct Answer {
    /// Hexadecimal, by volume.
    keys: BTreeMap<String, String>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(settings: &'a Settings, token: Option<String>) -> Self {
        Self { settings, token, received: None }
    }

    pub(super) fn of(&mut self, volume: &str) -> Result<&[u8], KeyError> {
        if self.received.is_none() {
            // A token is good for one answer.
            let token = self.token.take().ok_or(KeyError::NoToken)?;
            let appliance = self.settings.appliance.ok_or(KeyError::NoAppliance)?;
            self.received = Some(ask(appliance, &self.settings.mac, &token)?);
        }
        let key = self.received.as_ref().and_then(|keys| keys.get(volume)).filter(|key| key.len() >= 32);
        key.map(Vec::as_slice).ok_or_else(|| KeyError::Missing(volume.to_owned()))
    }
}

fn ask(appliance: SocketAddrV4, mac: &str, token: &str) -> Result<BTreeMap<String, Vec<u8>>, KeyError> {
    let body = serde_json::json!({ "mac": mac, "token": token }).to_string();
    let answer = exchange(appliance, "/node/storage-keys", &body)
        .map_err(|source| KeyError::Unreachable { appliance, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        // The appliance's errors are documents with words in them.
        let words = serde_json::from_str::<serde_json::Value>(body).ok();
        let words = words.and_then(|w| Some(w.get("error")?.as_str()?.to_owned()));
        let status = || head.lines().next().unwrap_or("no answer").to_owned();
        return Err(KeyError::Refused(words.unwrap_or_else(status)));
    }
    let unreadable = || KeyError::Refused("its answer is not readable".to_owned());
    let answer: Answer = serde_json::from_str(body).map_err(|_| unreadable())?;
    let decoded = answer.keys.into_iter().map(|(volume, hex)| Some((volume, crate::xattr::bytes(&hex)?)));
    decoded.collect::<Option<_>>().ok_or_else(unreadable)
}

/// One HTTP/1.0 exchange: the end of the connection is the end of the answer.
pub(crate) fn exchange(appliance: SocketAddrV4, path: &str, body: &str) -> io::Result<String> {
    /// A key is 64 digits; a plan has few volumes.
    const LONGEST: u64 = 64 << 10;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(appliance), Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: {appliance}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// An appliance that answers once, and what it was asked.
    fn answering(answer: &'static str) -> (SocketAddrV4, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        (address, asked)
    }

    fn settings(appliance: SocketAddrV4) -> Settings {
        let line = format!(
            "bridgehead.mac=52:54:00:77:00:01 bridgehead.address=10.77.0.2/24 bridgehead.url=http://{appliance}"
        );
        Settings::parse(&line).unwrap()
    }

    #[test]
    fn keys_are_asked_for_once_and_the_token_is_not_in_the_path() {
        let (address, asked) = answering(
            "HTTP/1.1 200 OK\r\n\r\n{\"keys\":{\"db\":\"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\"}}",
        );
        let settings = settings(address);
        let mut keys = Keys::new(&settings, Some("secret".into()));
        assert_eq!(keys.of("db").unwrap()[31], 0x1f);
        assert!(matches!(keys.of("other"), Err(KeyError::Missing(_))));
        let asked = asked.join().unwrap();
        assert!(!asked.lines().next().unwrap().contains("secret"), "{asked}");
        assert!(asked.ends_with(r#"{"mac":"52:54:00:77:00:01","token":"secret"}"#), "{asked}");
    }

    #[test]
    fn a_refusal_is_in_the_appliances_words() {
        let (address, _asked) = answering("HTTP/1.1 403 Forbidden\r\n\r\n{\"error\":\"the token was used\"}");
        let settings = settings(address);
        let error = Keys::new(&settings, Some("t".into())).of("db").unwrap_err();
        assert_eq!(error.to_string(), "the appliance did not give the volumes' keys: the token was used");
        let none = Keys::new(&settings, None).of("db").unwrap_err();
        assert!(matches!(none, KeyError::NoToken));
    }
}
