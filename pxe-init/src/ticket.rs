//! The document that the appliance gives to this boot alone, in the machine's own initrd: `/bridgehead.json`, with
//! settings, the CA's certificate and a token. The token is traded once, over TLS, for a certificate of a key that is
//! made here and never leaves this process; the node authenticates with it from then on.

use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pxe_contract::backoff::Backoff;
use pxe_contract::hex;
use pxe_contract::paths::{file, node};
use pxe_contract::ticket::{SessionAnswer, SessionRequest, Ticket};
use ring::rand::SystemRandom;
use rustls::client::ClientConfig;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CipherSuite, RootCertStore};
use serde::{Deserialize, Serialize};

use crate::appliance::{Appliance, words};
use crate::request;
use crate::say;
use crate::ship::uptime;

const FILE: &str = file::TICKET;

/// How long the node retries: the token is valid for some minutes only.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketError {
    #[error("{FILE}: {0}: the loader did not load this machine's own initrd")]
    Read(io::Error),
    #[error("{FILE}: {0}; this pxe-init and the appliance are of different versions")]
    Invalid(serde_json::Error),
    #[error("{FILE} has no good CA certificate: {0}")]
    Authority(String),
    #[error("no key could be made for this boot")]
    Key,
    #[error("this boot got no session at {0}: {1}")]
    Unreachable(SocketAddrV4, io::Error),
    #[error("the appliance gave this boot no session: {0}")]
    Refused(String),
    #[error("the certificate of this boot's session is not usable: {0}")]
    Certificate(String),
}

/// A boot's session. It is only in the memory of this process and of those that it starts.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    appliance: SocketAddrV4,
    ca: String,
    certificate: String,
    /// PKCS #8.
    key: Vec<u8>,
    clock: Clock,
}

/// Reads the file and removes it, so that nothing else on the node gets the token.
pub(crate) fn take() -> Result<Ticket, TicketError> {
    let text = fs::read(FILE).map_err(TicketError::Read)?;
    fs::remove_file(FILE).map_err(TicketError::Read)?;
    serde_json::from_slice(&text).map_err(TicketError::Invalid)
}

/// Trades the token for a session of the machine's.
pub(crate) fn trade(ticket: Ticket, mac: &str) -> Result<(Session, Appliance), TicketError> {
    let Ticket { appliance, ca, token, time, .. } = ticket;
    let clock = Clock::set(time);
    let random = SystemRandom::new();
    let (key, request) = request::make(&random).map_err(|_| TicketError::Key)?;
    let asked = SessionRequest { mac, request: hex::encode(&request), token };
    let body = serde_json::to_vec(&asked).expect("it has only text keys");
    let stranger = Appliance::by_tls(appliance, trusting(&ca, clock)?.with_no_client_auth());
    let certificate = ask(&stranger, appliance, &body)?;
    let session = Session { appliance, ca, certificate, key: key.as_ref().to_vec(), clock };
    let known = session.open()?;
    Ok((session, known))
}

impl Session {
    /// A connection to the appliance with this session.
    pub(crate) fn open(&self) -> Result<Appliance, TicketError> {
        let unusable = |error: &dyn std::fmt::Display| TicketError::Certificate(error.to_string());
        let own = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|e| unusable(&e))?;
        let key = PrivatePkcs8KeyDer::from(self.key.clone()).into();
        let trusting = trusting(&self.ca, self.clock)?;
        let known = trusting.with_client_auth_cert(vec![own], key).map_err(|error| unusable(&error))?;
        Ok(Appliance::by_tls(self.appliance, known))
    }
}

/// TLS that trusts this CA only.
fn trusting(
    ca: &str,
    clock: Clock,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TicketError> {
    let bad = |error: &dyn std::fmt::Display| TicketError::Authority(error.to_string());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| bad(&error))?;
    roots.add(ca).map_err(|error| bad(&error))?;
    let builder = ClientConfig::builder_with_details(suites().into(), Arc::new(clock));
    let versions = builder.with_protocol_versions(&[&rustls::version::TLS13]);
    Ok(versions.map_err(|error| bad(&error))?.with_root_certificates(roots))
}

fn ask(stranger: &Appliance, at: SocketAddrV4, body: &[u8]) -> Result<String, TicketError> {
    let started = Instant::now();
    let mut pauses = PAUSES;
    loop {
        let lost = match stranger.exchange(node::SESSION, body) {
            Ok((200, answer)) => {
                let answer: SessionAnswer =
                    serde_json::from_str(&answer).map_err(|e| TicketError::Refused(e.to_string()))?;
                return Ok(answer.certificate);
            }
            Ok((status @ 400..=499, answer)) => return Err(TicketError::Refused(words(status, &answer))),
            Ok((status, answer)) => io::Error::other(words(status, &answer)),
            // The server is not the appliance that made this initrd.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(TicketError::Unreachable(at, error));
            }
            Err(error) => error,
        };
        if started.elapsed() > PATIENCE {
            return Err(TicketError::Unreachable(at, lost));
        }
        say!("{at} gives no session yet ({lost})");
        std::thread::sleep(pauses.pause());
    }
}

/// The appliance's clock, as precisely as this node can know it: the node's own may be years off.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Clock {
    /// Seconds since 1970, when the kernel started.
    started: u64,
}

impl Clock {
    fn set(now: u64) -> Self {
        Self { started: now.saturating_sub(uptime() as u64) }
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(
            Duration::from_secs(self.started) + Duration::from_secs_f64(uptime()),
        ))
    }
}

/// Without the processor's AES instructions, ChaCha20 is several times as fast.
fn suites() -> CryptoProvider {
    let mut suites = provider::default_provider();
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    let aes = true;
    let first =
        if aes { CipherSuite::TLS13_AES_128_GCM_SHA256 } else { CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 };
    suites.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    suites
}

#[cfg(test)]
mod tests {
    use pxe_contract::cmdline;
    use pxe_contract::settings::Settings;

    use super::*;

    #[test]
    fn what_is_handed_over_counts_before_the_command_line() {
        let text = r#"{
            "settings": ["bridgehead.name=n2", "bridgehead.on-exit=stay"],
            "profile": "web", "appliance": "10.77.0.1:7443", "ca": "c", "token": "secret", "time": 1
        }"#;
        let ticket: Ticket = serde_json::from_str(text).unwrap();
        let line = "bridgehead.mac=52:54:00:77:00:01 bridgehead.address=10.77.0.2/24 bridgehead.name=n1\n";
        let line = cmdline::append(line, &ticket.settings);
        assert!(!line.contains("secret"));
        assert_eq!(Settings::parse(&line).unwrap().name, "n2");
        let error = trade(ticket, "52:54:00:77:00:01").err().unwrap();
        assert!(matches!(error, TicketError::Authority(_)), "{error}");
    }
}
