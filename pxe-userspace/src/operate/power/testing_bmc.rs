//! A Redfish service that has the faults of real ones. What a sound one does is judged by sushy-tools' emulator.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::base::lock::Unpoisoned as _;

/// What is wrong with one of them, by the first part of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Says `On`, whatever is ordered.
    Lies,
    /// Never answers.
    Silent,
    /// So many times 500 before it is well.
    Error(u32),
    /// Forgets each session after so many requests.
    Forgets(u32),
    /// Knows no UefiHttp, and no mode.
    OldBoot,
    /// Tells the password in its errors.
    Talks,
    /// Leads to another host.
    Leads,
    /// Answers without end.
    Endless,
}

/// One BMC.
#[derive(Clone, Debug, Default)]
pub(super) struct Bmc {
    pub(super) on: bool,
    pub(super) boot: Value,
    pub(super) resets: Vec<String>,
    /// Sessions that were opened.
    pub(super) sessions: u32,
    left: u32,
    errors: u32,
}

#[derive(Clone)]
pub(super) struct Bmcs {
    pub(super) at: SocketAddr,
    pub(super) all: Arc<Mutex<HashMap<String, Bmc>>>,
    faults: Arc<HashMap<String, Fault>>,
    /// Requests in progress, and the most that there were at once.
    busy: Arc<Mutex<(usize, usize)>>,
}

pub(super) const PASSWORD: &str = "hunter2hunter2";

impl Bmcs {
    pub(super) async fn start(faults: impl IntoIterator<Item = (String, Fault)>) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let bmcs = Self {
            at: listener.local_addr().unwrap(),
            all: Arc::default(),
            faults: Arc::new(faults.into_iter().collect()),
            busy: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(bmcs.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        bmcs
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.at)
    }

    pub(super) fn get(&self, name: &str) -> Bmc {
        self.all.lock().unpoisoned().get(name).cloned().unwrap_or_default()
    }

    pub(super) fn most(&self) -> usize {
        self.busy.lock().unpoisoned().1
    }
}

async fn answer(State(bmcs): State<Bmcs>, request: Request) -> Response {
    {
        let mut busy = bmcs.busy.lock().unpoisoned();
        *busy = (busy.0 + 1, busy.1.max(busy.0 + 1));
    }
    let path = request.uri().path().to_owned();
    let name = path.split('/').nth(1).unwrap_or_default().to_owned();
    let fault = bmcs.faults.get(&name).copied().unwrap_or(Fault::None);
    let response = match fault {
        Fault::Silent => std::future::pending().await,
        Fault::Endless => vec![b'['; 2 << 20].into_response(),
        Fault::None
        | Fault::Lies
        | Fault::Error(_)
        | Fault::Forgets(_)
        | Fault::OldBoot
        | Fault::Talks
        | Fault::Leads => {
            // Others have their turn meanwhile.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 16).await.unwrap_or_else(|_| Bytes::new());
            let token = head.headers.get("x-auth-token").is_some_and(|token| token == "secret-token");
            let mut all = bmcs.all.lock().unpoisoned();
            let bmc = all.entry(name.clone()).or_default();
            let below = path.trim_start_matches(&format!("/{name}/redfish/v1/")).to_owned();
            bmc.answer(&name, fault, (&head.method, &below), token, &body)
        }
    };
    bmcs.busy.lock().unpoisoned().0 -= 1;
    response
}

impl Bmc {
    fn answer(
        &mut self,
        name: &str,
        fault: Fault,
        (method, path): (&Method, &str),
        token: bool,
        body: &Bytes,
    ) -> Response {
        let json = |status, document: Value| (status, axum::Json(document)).into_response();
        let document: Value = serde_json::from_slice(body).unwrap_or_default();
        let root = format!("/{name}/redfish/v1");
        match (method.as_str(), path) {
            ("GET", "") => {
                let sessions = format!("{root}/SessionService/Sessions");
                json(StatusCode::OK, json!({ "Links": { "Sessions": { "@odata.id": sessions } } }))
            }
            ("POST", "SessionService/Sessions") => {
                if document["UserName"] != "root" || document["Password"] != PASSWORD {
                    let words = if fault == Fault::Talks { format!("not {document}") } else { "no".into() };
                    return json(StatusCode::UNAUTHORIZED, json!({ "error": { "message": words } }));
                }
                self.sessions += 1;
                self.left = if let Fault::Forgets(requests) = fault { requests } else { u32::MAX };
                let mut response = json(StatusCode::CREATED, json!({}));
                response.headers_mut().insert("x-auth-token", "secret-token".parse().unwrap());
                response
            }
            _ if !token || self.left == 0 => json(StatusCode::UNAUTHORIZED, json!({})),
            (method, path) => {
                self.left -= 1;
                if let Fault::Error(times) = fault
                    && self.errors < times
                {
                    self.errors += 1;
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    return json(status, json!({ "error": { "message": "out of\u{1b}[2J memory" } }));
                }
                self.system(&root, fault, (method, path), &document)
            }
        }
    }

    fn system(&mut self, root: &str, fault: Fault, asked: (&str, &str), document: &Value) -> Response {
        let json = |status, document: Value| (status, axum::Json(document)).into_response();
        match asked {
            ("GET", "Systems") => {
                let path = if fault == Fault::Leads {
                    "https://evil.example/".into()
                } else {
                    format!("{root}/Systems/1")
                };
                json(StatusCode::OK, json!({ "Members": [{ "@odata.id": path }] }))
            }
            ("GET", "Systems/1") => {
                let on = self.on || fault == Fault::Lies;
                let targets = if fault == Fault::OldBoot { vec!["Pxe"] } else { vec!["Pxe", "UefiHttp"] };
                let system = json!({
                    "PowerState": if on { "On" } else { "Off" },
                    "Boot": { "BootSourceOverrideTarget@Redfish.AllowableValues": targets },
                    "Actions": { "#ComputerSystem.Reset": {
                        "target": format!("{root}/Systems/1/Actions/ComputerSystem.Reset"),
                        "ResetType@Redfish.AllowableValues": ["On", "ForceOff"],
                    } },
                });
                json(StatusCode::OK, system)
            }
            ("PATCH", "Systems/1") => {
                let has_mode = document["Boot"].get("BootSourceOverrideMode").is_some();
                if fault == Fault::OldBoot && has_mode {
                    let message = json!({ "error": { "message": "BootSourceOverrideMode is unknown" } });
                    return json(StatusCode::BAD_REQUEST, message);
                }
                self.boot = document["Boot"].clone();
                StatusCode::NO_CONTENT.into_response()
            }
            ("POST", "Systems/1/Actions/ComputerSystem.Reset") => {
                let reset = document["ResetType"].as_str().unwrap_or_default().to_owned();
                self.on = reset == "On";
                self.resets.push(reset);
                StatusCode::NO_CONTENT.into_response()
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }
}
