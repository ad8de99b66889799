//! Power by Redfish (DMTF DSP0266): the BMC's HTTP service.
//!
//! What is used of it: the service root, a session (section 13.3.4; Basic where there is no session service), the one
//! system (or the one that the URL names), its boot override and `ComputerSystem.Reset`. [`http`] has the connection,
//! with the pinned certificate, and [`documents`] what is read of the BMC's documents.

mod documents;
mod http;
mod session;

use std::time::Duration;

use hyper::{Method, StatusCode};
use pxe_contract::backoff::Backoff;
use serde_json::{Value, json};

use super::credentials::{Login, bounded};
use super::pins::{Fingerprint, NewPin, Pins};
use super::{BootOnce, Driver, Limits, Mode, PowerError, State, Verb};
use crate::base::text::{hex, unhex};
use crate::config::power::BmcUrl;
use documents::System;
use http::{Answer, Asked, Connection};
use session::Authority;

pub(super) use session::Sessions;

/// How often a BMC that answers 500 or 503 is asked again.
const AGAIN: u32 = 3;
/// The longest pause before that.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// What all BMCs share.
pub(super) struct Parts {
    pub(super) pins: Pins,
    pub(super) sessions: Sessions,
    pub(super) limits: Limits,
}

/// One machine's BMC.
pub(super) struct Redfish {
    url: BmcUrl,
    login: Option<Login>,
    parts: Parts,
    connection: Option<Connection>,
    authority: Option<Authority>,
    /// The session was opened for this order, so it can't be too old.
    fresh: bool,
    /// The path of the system.
    system: Option<String>,
}

impl Redfish {
    pub(super) fn new(url: BmcUrl, login: Option<Login>, parts: Parts) -> Self {
        Self { url, login, parts, connection: None, authority: None, fresh: false, system: None }
    }

    /// The path that the service begins at; the URL may say more than that.
    fn root(&self) -> String {
        let path = &self.url.path;
        let before = path.find("/redfish/v1").map_or(path.as_str(), |at| &path[..at]);
        format!("{before}/redfish/v1/")
    }

    async fn read(&mut self) -> Result<System, PowerError> {
        let path = self.system_path().await?;
        let answer = self.ask(Method::GET, &path, None, None).await?;
        let document = answer.document().map_err(|what| self.not_redfish(what))?;
        let mut system = documents::system(&document, answer.etag).map_err(|what| self.not_redfish(what))?;
        if let (true, Some(info)) = (system.resets.is_empty(), &system.action_info) {
            let answer = self.ask(Method::GET, &info.clone(), None, None).await?;
            let document = answer.document().map_err(|what| self.not_redfish(what))?;
            system.resets = documents::allowed_by_action_info(&document);
        }
        Ok(system)
    }

    /// That of the URL, else the one that the service has.
    async fn system_path(&mut self) -> Result<String, PowerError> {
        if let Some(path) = &self.system {
            return Ok(path.clone());
        }
        let path = if self.url.path.contains("/redfish/v1/Systems/") {
            self.url.path.clone()
        } else {
            let answer = self.ask(Method::GET, &format!("{}Systems", self.root()), None, None).await?;
            let document = answer.document().map_err(|what| self.not_redfish(what))?;
            let members = documents::members(&document).map_err(|what| self.not_redfish(what))?;
            match members.as_slice() {
                [one] => one.clone(),
                [] => return Err(self.not_redfish("it has no system".into())),
                [first, ..] => {
                    let (bmc, count) = (self.place(), members.len());
                    return Err(PowerError::SeveralSystems { bmc, count, first: bounded(first) });
                }
            }
        };
        Ok(self.system.insert(path).clone())
    }

    /// Asks, as somebody whom the BMC knows. A session that it has forgotten is opened anew, once; a BMC that answers 500
    /// or 503 is asked again a few times. Orders are safe to repeat: the caller has read the state before.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Answer, PowerError> {
        loop {
            let authority = self.authority().await?;
            let asked = Asked { method: method.clone(), path, body, etag, authority: Some(&authority) };
            let answer = self.patiently(asked).await?;
            match answer.status {
                status if status.is_success() => return Ok(answer),
                StatusCode::UNAUTHORIZED if matches!(authority, Authority::Token(_)) => {
                    if self.fresh {
                        self.forget_session();
                        return Err(PowerError::SessionLost { bmc: self.place() });
                    }
                    tracing::debug!(bmc = self.place(), "the session is lost: another is opened");
                    self.forget_session();
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(&answer)),
                status if is_passing(status) => return Err(self.broken(&answer, &method, path)),
                _ => return Err(self.refused(&answer, &method, path)),
            }
        }
    }

    /// Asks, and asks again a few times where it answers 500 or 503.
    async fn patiently(&mut self, asked: Asked<'_>) -> Result<Answer, PowerError> {
        let mut pauses = Backoff::new(self.parts.limits.again_after, PAUSE_MAX);
        for _ in 0..AGAIN {
            let answer = self.send(asked.clone()).await?;
            if !is_passing(answer.status) {
                return Ok(answer);
            }
            tokio::time::sleep(pauses.pause()).await;
        }
        self.send(asked).await
    }

    /// One request and its answer, on the connection that there is, or a new one where the BMC closed it.
    async fn send(&mut self, asked: Asked<'_>) -> Result<Answer, PowerError> {
        let kept = self.connection.take().filter(|connection| !connection.is_closed());
        let mut connection = match kept {
            Some(connection) => connection,
            None => http::connect(&self.url, &self.parts.pins, &self.parts.limits).await?,
        };
        let answer = connection.exchange(&self.url, asked, &self.parts.limits).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    fn not_redfish(&self, what: String) -> PowerError {
        PowerError::NotRedfish { bmc: self.place(), what: bounded(&what) }
    }

    /// What the BMC says in an answer, without the password.
    fn said(&self, answer: &Answer) -> String {
        let words = documents::words(&answer.body);
        self.login.as_ref().map_or_else(|| bounded(&words), |login| login.scrub(&words))
    }

    fn denied(&self, answer: &Answer) -> PowerError {
        let bmc = self.place();
        match &self.login {
            None => PowerError::CredentialsWanted { bmc },
            Some(login) => {
                PowerError::Denied { bmc, credentials: login.name.clone(), said: self.said(answer) }
            }
        }
    }

    fn broken(&self, answer: &Answer, method: &Method, path: &str) -> PowerError {
        let (asked, said) = (format!("{method} {}", bounded(path)), self.said(answer));
        PowerError::Broken { bmc: self.place(), status: answer.status.as_u16(), asked, said }
    }

    fn refused(&self, answer: &Answer, method: &Method, path: &str) -> PowerError {
        let (asked, said) = (format!("{method} {}", bounded(path)), self.said(answer));
        PowerError::Refused { bmc: self.place(), status: answer.status.as_u16(), asked, said }
    }
}

impl Driver for Redfish {
    async fn state(&mut self) -> Result<State, PowerError> {
        Ok(self.read().await?.state)
    }

    async fn switch(&mut self, on: bool) -> Result<(), PowerError> {
        let system = self.read().await?;
        let (wanted, verb) = if on { (State::On, Verb::On) } else { (State::Off, Verb::Off) };
        // An earlier order may have been obeyed meanwhile. That matters where the only way is a button.
        if system.state == wanted {
            return Ok(());
        }
        let Some(reset) = system.reset(verb) else {
            let allowed = system.resets.iter().map(|reset| bounded(reset)).collect();
            return Err(PowerError::NotAllowed { bmc: self.place(), verb, allowed });
        };
        let body = json!({ "ResetType": reset });
        match self.ask(Method::POST, &system.reset_target, Some(&body), None).await {
            Ok(_) => Ok(()),
            // What it says to an order that came to nothing, because the machine is so already.
            Err(refused @ PowerError::Refused { .. }) => {
                if self.read().await?.state == wanted {
                    Ok(())
                } else {
                    Err(refused)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The nearest that the BMC takes: HTTP, else PXE; with the mode, else without it.
    async fn boot_once(&mut self, boot: BootOnce) -> Result<Option<BootOnce>, PowerError> {
        let system = self.read().await?;
        let path = self.system_path().await?;
        let mut refused = None;
        for (target, from) in system.boot_targets(boot) {
            for mode in [Some(boot.mode), None] {
                let mut settings =
                    json!({ "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target });
                match mode {
                    Some(Mode::Uefi) => settings["BootSourceOverrideMode"] = "UEFI".into(),
                    Some(Mode::Bios) => settings["BootSourceOverrideMode"] = "Legacy".into(),
                    None => {}
                }
                let body = json!({ "Boot": settings });
                match self.ask(Method::PATCH, &path, Some(&body), system.etag.as_deref()).await {
                    Ok(_) => return Ok(Some(BootOnce { from, ..boot })),
                    Err(error @ PowerError::Refused { .. }) => refused = Some(error),
                    Err(error) => return Err(error),
                }
            }
        }
        Err(refused.unwrap_or_else(|| self.not_redfish("its system has no boot override".into())))
    }

    fn place(&self) -> String {
        self.url.authority()
    }
}

/// What may be better a moment later.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE)
}

/// Pins the certificate that a BMC shows now.
pub(super) async fn trust(
    url: &BmcUrl,
    pins: &Pins,
    limits: &Limits,
    wanted: Option<&str>,
) -> Result<NewPin, PowerError> {
    let bmc = url.authority();
    if !url.tls {
        return Err(PowerError::Tls { bmc, why: "it is asked without TLS, as its URL says".into() });
    }
    let found = http::certificate_of(url, limits).await?;
    if let Some(wanted) = wanted {
        // As `openssl x509 -fingerprint` prints it, too.
        let plain = wanted.replace([':', ' '], "");
        if unhex(&plain).and_then(|bytes| Fingerprint::try_from(bytes).ok()) != Some(found) {
            let pinned = bounded(wanted);
            return Err(PowerError::OtherCertificate { bmc, pinned, found: hex(&found) });
        }
    }
    Ok(pins.put(&bmc, found).await?)
}
