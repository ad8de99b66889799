//! Sessions with BMCs (DSP0266 section 13.3.4). A BMC has few of them, so one is kept and used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::super::{Driver as _, PowerError};
use super::http::Asked;
use super::{Redfish, documents, is_passing};
use crate::base::lock::Unpoisoned as _;
use crate::base::text::base64;

/// What a request is allowed by.
#[derive(Clone)]
pub(super) enum Authority {
    /// Nothing: the BMC asks nobody who he is.
    Nobody,
    /// `X-Auth-Token`.
    Token(Arc<Zeroizing<String>>),
    /// `Authorization` (RFC 7617).
    Basic(Arc<Zeroizing<String>>),
}

/// The sessions that are open. Cloning it is cheap.
#[derive(Clone, Default)]
pub(in super::super) struct Sessions(Arc<Mutex<HashMap<Key, Authority>>>);

/// The service, and the credentials that it was opened with.
type Key = (String, String, Timestamp);

impl Redfish {
    /// What the next request is allowed by: the session that is kept, or a new one.
    pub(super) async fn authority(&mut self) -> Result<Authority, PowerError> {
        if let Some(authority) = &self.authority {
            return Ok(authority.clone());
        }
        let kept = self.key().and_then(|key| self.parts.sessions.0.lock().unpoisoned().get(&key).cloned());
        let authority = match kept {
            Some(authority) => authority,
            None => {
                let opened = self.open().await?;
                self.fresh = true;
                if let Some(key) = self.key() {
                    self.parts.sessions.0.lock().unpoisoned().insert(key, opened.clone());
                }
                opened
            }
        };
        Ok(self.authority.insert(authority).clone())
    }

    pub(super) fn forget_session(&mut self) {
        self.authority = None;
        if let Some(key) = self.key() {
            self.parts.sessions.0.lock().unpoisoned().remove(&key);
        }
    }

    fn key(&self) -> Option<Key> {
        let login = self.login.as_ref()?;
        Some((format!("{}{}", self.place(), self.root()), login.name.clone(), login.added))
    }

    /// A session, where the service has them; else the password with every request.
    async fn open(&mut self) -> Result<Authority, PowerError> {
        let Some(login) = &self.login else { return Ok(Authority::Nobody) };
        let pair = Zeroizing::new(format!("{}:{}", login.user, login.password.as_str()));
        let basic = Authority::Basic(Arc::new(Zeroizing::new(format!("Basic {}", base64(pair.as_bytes())))));
        let root = self.root();
        // Everybody may read it (section 9.4.2), and some ask all the same.
        let answer = self.patiently(Asked::open(Method::GET, &root, None)).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            return Ok(basic);
        }
        if is_passing(answer.status) {
            return Err(self.broken(&answer, &Method::GET, &root));
        }
        if !answer.status.is_success() {
            return Err(self.refused(&answer, &Method::GET, &root));
        }
        let document = answer.document().map_err(|what| self.not_redfish(what))?;
        let Some(path) = documents::sessions(&document) else { return Ok(basic) };
        let Some(login) = &self.login else { return Ok(Authority::Nobody) };
        let body = json!({ "UserName": login.user, "Password": login.password.as_str() });
        let answer = self.patiently(Asked::open(Method::POST, &path, Some(&body))).await?;
        match answer.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(basic),
            status if status.is_success() => match answer.token {
                Some(token) => Ok(Authority::Token(Arc::new(token))),
                None => Err(self.not_redfish("it opened a session without an X-Auth-Token".into())),
            },
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(self.denied(&answer))
            }
            status if is_passing(status) => Err(self.broken(&answer, &Method::POST, &path)),
            _ => Err(self.refused(&answer, &Method::POST, &path)),
        }
    }
}
