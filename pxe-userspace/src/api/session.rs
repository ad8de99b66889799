//! Sessions of nodes: the machine that a connection authenticates, and the certificate that a boot gets for its token.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Json;
use axum::extract::{ConnectInfo, FromRequest as _, FromRequestParts, Path, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use pxe_common::Mac;
use pxe_contract::paths::Generated;
use pxe_contract::ticket::{SessionAnswer, SessionRequest};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::documents::{Rekey, ReleasedTo};
use super::door::By;
use super::listener::Shown;
use super::{ApiState, BootState, Failure, Kind, files, read, report};
use crate::base::text;
use crate::machines::diagnosis::{Note, Refusal};
use crate::machines::timeline::{Happened, Stage, Who};
use crate::nodes::trust::{Rekeyed, TradeError};
use crate::operate::audit::Did;

/// The client of a connection.
pub(super) struct Speaker {
    pub(super) address: Ipv4Addr,
    tls: Option<Shown>,
}

impl<S: Sync> FromRequestParts<S> for Speaker {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let ConnectInfo(peer) = peer.ok_or_else(|| Failure::internal("a connection without an address"))?;
        Ok(Self { address: files::ipv4(peer.ip()), tls: parts.extensions.get().cloned() })
    }
}

impl Speaker {
    /// Whether the client is this machine: it uses the machine's address, and the session of its boot, if that has one.
    pub(super) fn is(&self, state: &BootState, mac: Mac) -> Result<(), Failure> {
        let address = self.address;
        if state.machines.by_address(address).is_none_or(|machine| machine.mac != mac) {
            let error = format!("{address} is not the address of {mac}");
            state.timeline.note(Who::Mac(mac), Note::Refused { what: Refusal::Address, why: error.clone() });
            let hint = "a node speaks for itself, from the address of its lease";
            return Err(Failure::new(Kind::Forbidden, error, hint));
        }
        if !state.trust.speaks_for(mac, self.shown()) {
            let error = format!("this is not the session of {mac}'s boot");
            state.timeline.note(Who::Mac(mac), Note::Refused { what: Refusal::Session, why: error.clone() });
            let hint = "a node speaks by HTTPS, with the certificate that its boot got for its token";
            return Err(Failure::new(Kind::Forbidden, error, hint));
        }
        Ok(())
    }

    /// The certificate that it showed.
    pub(super) fn shown(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.0.as_ref()
    }

    fn by_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// The initrd of one machine, for its present boot.
pub(super) async fn initrd(
    State(state): State<BootState>,
    Path(mac): Path<String>,
    speaker: Speaker,
) -> Result<impl IntoResponse, Failure> {
    let name = Generated::Node(&mac).to_string();
    let mac: Mac =
        mac.parse().map_err(|_| files::failure(&name, crate::serve::files::OpenError::NotFound))?;
    let (files, address) = (state.files.clone(), speaker.address);
    let made = tokio::task::spawn_blocking(move || files.node(mac, address)).await;
    let initrd = made.map_err(Failure::internal)?.map_err(|error| {
        let note = Note::NotServed { path: name.clone(), why: error.to_string() };
        state.timeline.note(Who::Address(address), note);
        files::failure(&name, error)
    })?;
    let opened = Note::Opened { path: name.clone(), bytes: initrd.len() as u64, blksize: None };
    for note in [opened, Note::Sent { path: name.clone(), repeated: 0 }] {
        state.timeline.note(Who::Mac(mac), note);
    }
    let happened = Happened::new(Who::Mac(mac), Stage::Initrd).detail(name);
    state.timeline.record(Happened { bytes: Some(initrd.len() as u64), ..happened });
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, initrd))
}

pub(super) const BODY_MAX: usize = 4096;

pub(super) async fn begin(
    State(state): State<BootState>,
    speaker: Speaker,
    request: Request,
) -> Result<impl IntoResponse, Failure> {
    if !speaker.by_tls() {
        let error = "a token in clear text is none";
        return Err(Failure::new(Kind::Forbidden, error, "ask by HTTPS, at [http] tls-port"));
    }
    let invalid = || Failure::new(Kind::Invalid, "this is no request for a session", "docs/api.md shows one");
    // A rejection by the extractor would quote the body, and so perhaps the token.
    let asked = tokio::time::timeout(report::ARRIVES_WITHIN, Json::from_request(request, &())).await;
    let Ok(Ok(Json(SessionRequest::<Mac> { mac, token, request }))) = asked else { return Err(invalid()) };
    let token = Zeroizing::new(token);
    let request = text::unhex(&request).ok_or_else(invalid)?;
    let (trust, address) = (state.trust.clone(), speaker.address);
    let traded = tokio::task::spawn_blocking(move || trust.trade(mac, address, &token, &request)).await;
    match traded.map_err(Failure::internal)? {
        Ok(certificate) => Ok(([(header::CACHE_CONTROL, "no-store")], Json(SessionAnswer { certificate }))),
        Err(error @ TradeError::Refused(_)) => {
            state
                .timeline
                .note(Who::Mac(mac), Note::Refused { what: Refusal::Token, why: error.to_string() });
            let hint = "boot the machine again; its timeline says more";
            Err(Failure::new(Kind::Forbidden, error.to_string(), hint))
        }
        Err(TradeError::Request(_)) => Err(invalid()),
        Err(error @ TradeError::Write(_)) => Err(Failure::internal(error)),
    }
}

/// A person says that a machine which seems to run already boots, and that it is the machine.
pub(super) async fn rekey(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<Json<Rekey>, Failure> {
    let machine = read::find(&state.boot.machines, &name)?;
    let (trust, mac) = (state.boot.trust.clone(), machine.mac);
    let rekeyed = tokio::task::spawn_blocking(move || trust.rekey(mac)).await;
    let (keys, until) = match rekeyed.map_err(Failure::internal)?.map_err(Failure::internal)? {
        Rekeyed::ThisBoot => (ReleasedTo::ThisBoot, None),
        Rekeyed::NextBoot(until) => (ReleasedTo::NextBoot, Some(until)),
    };
    by.did(Did::new("node.rekey").on(machine.label()).after(Some(keys))).await;
    Ok(Json(Rekey { node: machine.label(), keys, until }))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
