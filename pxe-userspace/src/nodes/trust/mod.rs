//! How nodes and appliance authenticate each other: docs/trust.md.
//!
//! A machine that boots loads a small initrd with a ticket ([`pxe_contract::ticket`]): the CA's certificate and a
//! token. It trades the token for its session ([`boots`]), which is a certificate of the appliance's own CA
//! ([`authority`]).

pub mod authority;
pub mod boots;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use jiff::Timestamp;
use pxe_common::Mac;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::base::lock::Unpoisoned as _;
use crate::base::text::hex;
use crate::machines::timeline::{Happened, Timeline, Who};
use crate::store::{Change, Document, Pending, ReadError, Store, WriteError};

pub use authority::{Authority, AuthorityError, Identity, Usage};
use boots::{Boots, Good, Issued, Misused, Refused};
pub use boots::{Rekeyed, Running, Scope};

/// How long a session's certificate is valid: longer than machines run. The session itself ends with the next boot.
const SESSION: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// Tokens, sessions and the CA. Cloning it is cheap.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    authority: Authority,
    boots: Mutex<Boots>,
    store: Store,
    timeline: Timeline,
}

/// Trust can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(transparent)]
    Running(#[from] Running),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why a token was not traded for a session.
#[derive(Debug, thiserror::Error)]
pub enum TradeError {
    #[error("the token is refused: {0}")]
    Refused(Refused),
    #[error("the request for a certificate is refused: {0}")]
    Request(AuthorityError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Trust {
    pub fn open(state_dir: &Path, store: Store, timeline: Timeline) -> Result<Self, TrustError> {
        let authority = Authority::open(state_dir, authority::NODES)?;
        // A row that can't be parsed loses its session: that machine must boot again.
        let kept = store.reader().documents(Document::BootSession)?.into_iter();
        let boots =
            Boots::kept(kept.filter_map(|(mac, boot)| Some((mac, serde_json::from_str(&boot).ok()?))));
        Ok(Self(Arc::new(Inner { authority, boots: Mutex::new(boots), store, timeline })))
    }

    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// A token for a boot of the machine, which asks from `address`; `keys` are those that the boot may have.
    pub fn issue(
        &self,
        mac: Mac,
        address: Ipv4Addr,
        keys: Option<Scope>,
    ) -> Result<Zeroizing<String>, IssueError> {
        let mut token = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(&mut *token);
        let token = Zeroizing::new(hex(&*token));
        let (issued, kept) = {
            let mut boots = self.boots();
            let issued = boots.issue(mac, address, &token, keys, Timestamp::now())?;
            (issued, self.keep(mac, &boots))
        };
        kept.wait()?;
        let second = "it was given a second token without having asked for an address since its session began: if it \
                      still runs, somebody boots in its name.";
        let words = match issued {
            Issued::Boot => return Ok(token),
            Issued::Second => {
                "No keys are released to this boot; power it off and on, or say by `bridgehead rekey` that it is the \
                 machine"
            }
            Issued::Vouched => {
                "Its keys are released to this boot: `bridgehead rekey` said that it is the machine"
            }
        };
        self.0.timeline.record(Happened::warning(Who::Mac(mac), format!("{second} {words}")));
        Ok(token)
    }

    /// A person confirms that the machine boots, and that it is the machine. The keys that were withheld from its boot
    /// are released, or those of its next boot will be.
    pub fn rekey(&self, mac: Mac) -> Result<Rekeyed, WriteError> {
        let (rekeyed, kept) = {
            let mut boots = self.boots();
            (boots.rekey(mac, Timestamp::now()), self.keep(mac, &boots))
        };
        kept.wait()?;
        if rekeyed == Rekeyed::ThisBoot {
            let words = "the keys that were kept back from this boot are released: `bridgehead rekey` said that it is the \
                         machine";
            self.0.timeline.record(Happened::warning(Who::Mac(mac), words));
        }
        Ok(rekeyed)
    }

    /// Trades `token` for a certificate, in PEM, for the key of `request`. Both came from `mac` at `address`. A token
    /// that comes from another machine is a warning in the timeline of its own.
    pub fn trade(
        &self,
        mac: Mac,
        address: Ipv4Addr,
        token: &str,
        request: &[u8],
    ) -> Result<String, TradeError> {
        let mut boots = self.boots();
        match boots.judge(mac, address, token, request, Timestamp::now()) {
            Ok(Good::Again(certificate)) => Ok(certificate),
            Ok(Good::First) => {
                let name = mac.to_string();
                let signed = self.0.authority.sign(request, &name, Some(address), Usage::Client, SESSION);
                let certificate = signed.map_err(TradeError::Request)?;
                boots.begin(mac, request, certificate.clone());
                let kept = self.keep(mac, &boots);
                drop(boots);
                kept.wait()?;
                Ok(certificate)
            }
            Err(Misused { owner, why }) => {
                tracing::warn!(%mac, %address, owner = owner.map(|o| o.to_string()), %why, "a token is refused");
                if let Some(owner) = owner {
                    let kept = self.keep(owner, &boots);
                    drop(boots);
                    kept.wait()?;
                    let words = format!(
                        "a token of this machine's came from {mac} at {address} and was refused: {why}. Somebody may \
                         have read it off the boot segment"
                    );
                    self.0.timeline.record(Happened::warning(Who::Mac(owner), words));
                }
                Err(TradeError::Refused(why))
            }
        }
    }

    /// Whether a connection may speak for the machine, by the certificate that was shown on it. A boot with a session
    /// needs that session's certificate. A boot without one must show none.
    pub fn speaks_for(&self, mac: Mac, shown: Option<&CertificateDer<'_>>) -> bool {
        let boots = self.boots();
        let session = boots.get(mac).and_then(|boot| boot.session.as_ref());
        match (session, shown) {
            (None, None) => true,
            (Some(session), Some(shown)) => {
                let own = CertificateDer::from_pem_slice(session.certificate.as_bytes());
                own.is_ok_and(|own| own == *shown)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// The keys that the machine's boot may get; `None` without a session.
    pub fn keys(&self, mac: Mac) -> Option<Scope> {
        self.boots().get(mac).filter(|boot| boot.session.is_some())?.keys.clone()
    }

    /// The machine restarted.
    pub fn restarted(&self, mac: Mac) {
        self.boots().restarted(mac);
    }

    /// Hands over what is known of the machine's boot. The caller still holds the lock, so that changes are stored in
    /// order, and waits for the disk without it.
    fn keep(&self, mac: Mac, boots: &Boots) -> Pending {
        let boot = boots.get(mac).map(|boot| serde_json::to_string(boot).expect("it has only text keys"));
        let change = boot.map(|boot| Change::PutDocument(Document::BootSession, mac, boot));
        self.0.store.write(change.into_iter().collect())
    }

    fn boots(&self) -> MutexGuard<'_, Boots> {
        self.0.boots.lock().unpoisoned()
    }
}
