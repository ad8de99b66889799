//! A certificate authority of the appliance's own. Its key is in the state directory and is made at the first start.
//!
//! Each authority signs for one purpose. A server that accepts clients by their certificate's issuer alone, as a
//! Docker engine with `--tlsverify` does, needs an authority that signs for nobody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use zeroize::{Zeroize as _, Zeroizing};

use crate::base::secret_file;

/// The file stem, in the state directory, of the authority by which nodes and the appliance authenticate each other.
pub const NODES: &str = "ca";

/// Longer than any machine stays in a rack: a CA that expires is of no use to a node.
const CA_LIFETIME: Duration = Duration::from_secs(30 * YEAR);
const YEAR: u64 = 365 * 24 * 3600;
/// Certificates are valid from this much earlier, because clocks differ.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// An authority can't be opened, or can't sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{key} is missing, and {certificate} was made with it: bring it back, or remove the certificate, too; \
         nodes that run then need another boot"
    )]
    KeyLost { key: PathBuf, certificate: PathBuf },
    #[error("{path} is no authority's: {source}; it was made by another program, or is damaged")]
    Damaged { path: PathBuf, source: rcgen::Error },
    #[error("making a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("setting up TLS: {0}")]
    Tls(String),
}

/// What a certificate is valid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    Both,
}

/// A key and its certificate, both in PEM. The key is in memory only.
pub struct Identity {
    pub certificate: String,
    pub key: Zeroizing<String>,
}

/// A key that is wiped from memory when it is dropped, as far as rcgen holds it.
struct Key(KeyPair);

/// Signs. Its key is in its file and in memory.
pub struct Authority {
    issuer: Issuer<'static, Key>,
    certificate: String,
}

impl Authority {
    /// Opens the authority whose files in `directory` are called `stem.key` and `stem.pem`. Makes it if it is missing.
    pub fn open(directory: &Path, stem: &str) -> Result<Self, AuthorityError> {
        let (key, certificate) =
            (directory.join(stem).with_extension("key"), directory.join(stem).with_extension("pem"));
        let damaged = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::Damaged { path, source }
        };
        let pair = match (read(&key)?, certificate.exists()) {
            (Some(pem), _) => Key(KeyPair::from_pem(&pem).map_err(damaged(&key))?),
            (None, true) => return Err(AuthorityError::KeyLost { key, certificate }),
            (None, false) => {
                let pair = Key(KeyPair::generate()?);
                write(&key, &Zeroizing::new(pair.0.serialize_pem()))?;
                pair
            }
        };
        // A power cut may have come after the key and before the certificate.
        let pem = match read(&certificate)? {
            Some(pem) => pem.to_string(),
            None => {
                let pem = own_certificate(stem)?.self_signed(&pair)?.pem();
                write(&certificate, &pem)?;
                pem
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(damaged(&certificate))?;
        Ok(Self { issuer, certificate: pem })
    }

    /// Its own certificate, in PEM, which others are to trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key, in memory, and a certificate for it.
    pub fn identity(
        &self,
        name: &str,
        address: Option<Ipv4Addr>,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<Identity, AuthorityError> {
        let pair = Key(KeyPair::generate()?);
        let certificate = self.certify(&pair, name, address, usage, lifetime)?.pem();
        let key = Zeroizing::new(pair.0.serialize_pem());
        Ok(Identity { certificate, key })
    }

    /// A certificate, in PEM, for the key of a PKCS #10 request (DER). The request is signed with that key, which
    /// proves its possession. Name, address and usage are the caller's, whatever the request asks for.
    pub fn sign(
        &self,
        request: &[u8],
        name: &str,
        address: Option<Ipv4Addr>,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<String, AuthorityError> {
        // This verifies the request's signature.
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        Ok(self.certify(&request.public_key, name, address, usage, lifetime)?.pem())
    }

    /// TLS for a server at `address`. Its clients may show a certificate of this authority.
    pub fn server(&self, address: Ipv4Addr) -> Result<ServerConfig, AuthorityError> {
        let tls = |error: &dyn std::fmt::Display| AuthorityError::Tls(error.to_string());
        let (own, key) = self.own(vec![SanType::IpAddress(IpAddr::V4(address))])?;
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|e| tls(&e))?;
        roots.add(root).map_err(|e| tls(&e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|config| config.with_client_cert_verifier(clients).with_single_cert(vec![own], key))
            .map_err(|e| tls(&e))
    }

    /// TLS for the API, which people reach at these addresses and names. It asks for no client certificates: people
    /// have tokens.
    pub fn people(&self, addresses: &[IpAddr], names: &[String]) -> Result<ServerConfig, AuthorityError> {
        let tls = |error: &dyn std::fmt::Display| AuthorityError::Tls(error.to_string());
        let mut subjects: Vec<SanType> = addresses.iter().copied().map(SanType::IpAddress).collect();
        for name in names {
            subjects.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let (own, key) = self.own(subjects)?;
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|config| config.with_no_client_auth().with_single_cert(vec![own], key))
            .map_err(|e| tls(&e))
    }

    /// A server's certificate, and a new key that ends with the process.
    fn own(
        &self,
        subjects: Vec<SanType>,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), AuthorityError> {
        let pair = Key(KeyPair::generate()?);
        let lifetime = CA_LIFETIME - BACKDATED;
        let own = self.certify_for(&pair, "bridgehead", subjects, Usage::Server, lifetime)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.0.serialize_der()));
        Ok((CertificateDer::from(own.der().to_vec()), key))
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        address: Option<Ipv4Addr>,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<rcgen::Certificate, rcgen::Error> {
        let subjects = address.map(|address| SanType::IpAddress(IpAddr::V4(address)));
        self.certify_for(key, name, subjects.into_iter().collect(), usage, lifetime)
    }

    fn certify_for(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        subjects: Vec<SanType>,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<rcgen::Certificate, rcgen::Error> {
        let mut params = lasting(lifetime)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = subjects;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
        params.extended_key_usages = match usage {
            Usage::Client => vec![client],
            Usage::Server => vec![server],
            Usage::Both => vec![client, server],
        };
        params.signed_by(key, &self.issuer)
    }
}

fn own_certificate(stem: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = lasting(CA_LIFETIME)?;
    params.distinguished_name.push(DnType::CommonName, format!("Bridgehead {stem}"));
    // It signs no authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn lasting(lifetime: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Text, or nothing if there is no such file. Either may be a key.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, AuthorityError> {
    let failed = |source| AuthorityError::File { path: path.to_owned(), source };
    match secret_file::read(path) {
        Ok(bytes) => match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
            Err(error) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, error))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    secret_file::write(path, text.as_bytes())
        .map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    #[test]
    fn an_authority_is_made_once_and_its_key_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path(), NODES).unwrap();
        let again = Authority::open(dir.path(), NODES).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        assert_ne!(first.certificate(), Authority::open(dir.path(), "other").unwrap().certificate());
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        Authority::open(dir.path(), NODES).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::open(dir.path(), NODES), Err(AuthorityError::KeyLost { .. })));
        fs::write(dir.path().join("ca.key"), "x").unwrap();
        assert!(matches!(Authority::open(dir.path(), NODES), Err(AuthorityError::Damaged { .. })));
    }

    /// OpenSSL is the judge.
    #[test]
    fn certificates_are_what_openssl_accepts_for_their_purpose_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let openssl = |args: &[&str]| Command::new("openssl").args(args).output().unwrap();
        let authority = Authority::open(dir.path(), NODES).unwrap();

        let (key, csr) = (at("node.key"), at("node.csr"));
        let made = openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-subj",
            "/CN=somebody else",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-outform",
            "DER",
            "-out",
            &csr,
        ]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut request = fs::read(&csr).unwrap();
        let signed = authority.sign(&request, "n1", Some(NODE), Usage::Client, HOUR).unwrap();
        fs::write(at("node.pem"), signed).unwrap();
        let verify = |purpose: &str, file: &str| {
            let (ca, file) = (at("ca.pem"), at(file));
            openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &ca, &file]).status.success()
        };
        assert!(verify("sslclient", "node.pem"));
        assert!(!verify("sslserver", "node.pem"));
        let text = openssl(&["x509", "-noout", "-text", "-in", &at("node.pem")]).stdout;
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("CN = n1") && text.contains("IP Address:10.77.0.100"), "{text}");
        assert!(!text.contains("CA:TRUE") && !text.contains("somebody"), "{text}");

        let engine = authority.identity("n1", Some(NODE), Usage::Server, HOUR).unwrap();
        fs::write(at("engine.pem"), &engine.certificate).unwrap();
        assert!(verify("sslserver", "engine.pem"));
        assert!(!verify("sslclient", "engine.pem"));

        // A request that somebody changed proves nothing.
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(authority.sign(&request, "n1", None, Usage::Client, HOUR).is_err());
        assert!(authority.sign(b"noise", "n1", None, Usage::Client, HOUR).is_err());
    }
}
