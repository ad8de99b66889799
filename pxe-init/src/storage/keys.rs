//! The keys of encrypted volumes, which the appliance keeps: requested once a boot, when the first is needed.

use std::collections::BTreeMap;
use std::io;

use pxe_contract::hex;
use pxe_contract::paths::node;
use pxe_contract::storage::{KeysAnswer, KeysRequest};

use crate::appliance::{Appliance, Told, words};

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(
        "the plan has encrypted volumes, and bridgehead.url names no appliance that could have their keys"
    )]
    NoAppliance,
    #[error("asking {appliance} for the volumes' keys: {source}")]
    Unreachable { appliance: String, source: io::Error },
    #[error("the appliance did not give the volumes' keys: {0}")]
    Refused(String),
    #[error("the appliance gave no key for volume `{0}`")]
    Missing(String),
}

/// Keys by volume.
pub(super) struct Keys<'a> {
    told: &'a Told,
    received: Option<BTreeMap<String, Vec<u8>>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(told: &'a Told) -> Self {
        Self { told, received: None }
    }

    pub(super) fn of(&mut self, volume: &str) -> Result<&[u8], KeyError> {
        if self.received.is_none() {
            let appliance = self.told.appliance.as_ref().ok_or(KeyError::NoAppliance)?;
            self.received = Some(ask(appliance, &self.told.settings.mac)?);
        }
        let key = self.received.as_ref().and_then(|keys| keys.get(volume)).filter(|key| key.len() >= 32);
        key.map(Vec::as_slice).ok_or_else(|| KeyError::Missing(volume.to_owned()))
    }
}

fn ask(appliance: &Appliance, mac: &str) -> Result<BTreeMap<String, Vec<u8>>, KeyError> {
    let body = serde_json::to_vec(&KeysRequest { mac }).expect("it has only text keys");
    let exchanged = appliance.exchange(node::STORAGE_KEYS, &body);
    let (status, body) =
        exchanged.map_err(|source| KeyError::Unreachable { appliance: appliance.to_string(), source })?;
    if status != 200 {
        return Err(KeyError::Refused(words(status, &body)));
    }
    let unreadable = || KeyError::Refused("its answer is not readable".to_owned());
    let answer: KeysAnswer = serde_json::from_str(&body).map_err(|_| unreadable())?;
    let decoded = answer.keys.into_iter().map(|(volume, hex)| Some((volume, hex::decode(&hex)?)));
    decoded.collect::<Option<_>>().ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, SocketAddrV4, TcpListener};

    use pxe_contract::settings::Settings;

    use super::*;

    /// An appliance that answers once, and returns the request.
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

    fn told(appliance: SocketAddrV4) -> Told {
        let line = format!(
            "bridgehead.mac=52:54:00:77:00:01 bridgehead.address=10.77.0.2/24 bridgehead.url=http://{appliance}"
        );
        Told::new(Settings::parse(&line).unwrap())
    }

    #[test]
    fn keys_are_asked_for_once() {
        let (address, asked) = answering(
            "HTTP/1.1 200 OK\r\n\r\n{\"keys\":{\"db\":\"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\"}}",
        );
        let told = told(address);
        let mut keys = Keys::new(&told);
        assert_eq!(keys.of("db").unwrap()[31], 0x1f);
        assert!(matches!(keys.of("other"), Err(KeyError::Missing(_))));
        let asked = asked.join().unwrap();
        assert!(asked.ends_with(r#"{"mac":"52:54:00:77:00:01"}"#), "{asked}");
    }

    #[test]
    fn a_refusal_is_in_the_appliances_words() {
        let (address, _asked) = answering("HTTP/1.1 403 Forbidden\r\n\r\n{\"error\":\"the token was used\"}");
        let told = told(address);
        let error = Keys::new(&told).of("db").unwrap_err();
        assert_eq!(error.to_string(), "the appliance did not give the volumes' keys: the token was used");
    }
}
