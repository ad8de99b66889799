//! Power: switching machines on and off, and asking whether they are, by one of four drivers.
//!
//! [`Powers`] is the handle that everybody uses. It finds out how a machine's power is switched (`power = { … }` of its
//! node), and has the driver do it: `redfish` and `ipmi` by its BMC, `wol` by a magic packet, `command` by a
//! program of the appliance's owner. What all drivers have in common is here: at most 32 machines at a time, one order
//! at a time for each machine, the order of steps, and whether what a BMC says can be true.
//!
//! Passwords are sealed in the database ([`credentials`]), and appear in no error, event or document.

mod child;
mod command;
pub mod credentials;
mod error;
mod ipmi;
pub mod pins;
mod redfish;
mod steps;
mod truth;
mod wol;

#[cfg(test)]
mod peers_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod testing_bmc;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::base::lock::Unpoisoned as _;
use crate::config::{Node, Power};
use credentials::Credentials;
use pins::{NewPin, Pins};
use truth::History;

pub use error::{Kind, PowerError};
pub use wol::Link;

/// Machines whose power is switched or asked for at a time.
pub const AT_A_TIME: usize = 32;

/// What is to be done to a machine's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, where it is on already.
    On {
        boot: Option<BootOnce>,
    },
    /// At once, without asking its operating system.
    Off,
    /// Off, and on again; on, where it was off.
    Cycle {
        boot: Option<BootOnce>,
    },
    Status,
}

/// What it boots next, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct BootOnce {
    pub from: NetBoot,
    /// For firmware that can do both.
    pub mode: Mode,
}

/// A way to boot from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetBoot {
    Pxe,
    /// UEFI HTTP Boot; by PXE where the BMC does not know it.
    Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Uefi,
    Bios,
}

/// An action's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    On,
    Off,
    Cycle,
    Status,
}

/// Whether a machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    On,
    Off,
    /// Nobody says.
    Unknown,
}

/// How far a machine's power can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    Full,
    /// It can be woken, and no more.
    OnOnly,
    None,
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// `redfish`, `ipmi`, `wol` or `command`.
    pub driver: String,
    /// As it is now, as far as the driver can say.
    pub state: State,
    /// Whether its power was switched. It was not where it was so already.
    pub switched: bool,
    /// What it boots next, as the BMC took it; `None` where it was not asked to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot: Option<BootOnce>,
    /// When the appliance itself heard of the machine last.
    #[serde(
        serialize_with = "crate::base::text::micros_if_any",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub heard: Option<Timestamp>,
}

impl Action {
    pub fn verb(self) -> Verb {
        match self {
            Self::On { .. } => Verb::On,
            Self::Off => Verb::Off,
            Self::Cycle { .. } => Verb::Cycle,
            Self::Status => Verb::Status,
        }
    }

    fn boot(self) -> Option<BootOnce> {
        match self {
            Self::On { boot } | Self::Cycle { boot } => boot,
            Self::Off | Self::Status => None,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Cycle => "cycle",
            Self::Status => "status",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Unknown => "unknown",
        })
    }
}

/// When the appliance itself heard of machines.
pub trait Heard: Send + Sync + 'static {
    /// When something came from the machine last: a step of its boot, or any frame.
    fn heard(&self, mac: Mac) -> Option<Timestamp>;
}

/// A way to switch one machine's power. Steps are small and can be repeated; their order is [`steps`]'.
trait Driver: Send {
    /// Whether the machine is on.
    fn state(&mut self) -> impl Future<Output = Result<State, PowerError>> + Send;

    /// Orders it on or off. It may take a while until [`state`](Self::state) says so.
    fn switch(&mut self, on: bool) -> impl Future<Output = Result<(), PowerError>> + Send;

    /// Has it boot so the next time, or in the nearest way that the BMC knows. Returns which.
    fn boot_once(
        &mut self,
        boot: BootOnce,
    ) -> impl Future<Output = Result<Option<BootOnce>, PowerError>> + Send;

    /// Where the BMC is, for errors.
    fn place(&self) -> String;
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a BMC has taken a connection, with TLS.
    pub connect: Duration,
    /// For one request to a BMC.
    pub request: Duration,
    /// Of a whole status.
    pub status: Duration,
    /// Until a machine is as it was switched.
    pub done: Duration,
    /// Between two looks whether it is.
    pub look_every: Duration,
    /// Before a BMC that answered 500 or 503 is asked again, at first.
    pub again_after: Duration,
    /// For a program.
    pub program: Duration,
    /// A machine that was switched on is heard of before that: firmware that counts much memory takes minutes.
    pub heard_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(15),
            status: Duration::from_secs(30),
            done: Duration::from_secs(60),
            look_every: Duration::from_secs(1),
            again_after: Duration::from_millis(500),
            program: Duration::from_secs(60),
            heard_within: Duration::from_secs(10 * 60),
        }
    }
}

/// The machines' power. Cloning it is cheap.
#[derive(Clone)]
pub struct Powers(Arc<Inner>);

struct Inner {
    credentials: Credentials,
    pins: Pins,
    sessions: redfish::Sessions,
    link: Link,
    heard: Box<dyn Heard>,
    limits: Limits,
    places: Semaphore,
    /// Held while a machine's power is switched.
    orders: Mutex<HashMap<Mac, Arc<tokio::sync::Mutex<()>>>>,
    /// What was said of machines' power since the daemon's start.
    histories: Mutex<HashMap<Mac, History>>,
}

impl Powers {
    pub fn new(credentials: Credentials, pins: Pins, link: Link, heard: impl Heard, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            credentials,
            pins,
            sessions: redfish::Sessions::default(),
            link,
            heard: Box::new(heard),
            limits,
            places: Semaphore::new(AT_A_TIME),
            orders: Mutex::default(),
            histories: Mutex::default(),
        }))
    }

    pub fn credentials(&self) -> &Credentials {
        &self.0.credentials
    }

    /// How far the machine's power can be switched.
    pub fn can(&self, node: &Node) -> Reach {
        match &node.power {
            None => Reach::None,
            Some(Power::Wol) => Reach::OnOnly,
            Some(Power::Redfish { .. } | Power::Ipmi { .. } | Power::Command(_)) => Reach::Full,
        }
    }

    /// Does it, when it is this machine's turn. A future that is dropped stops between two steps.
    pub fn act(
        &self,
        node: &Node,
        action: Action,
    ) -> impl Future<Output = Result<Outcome, PowerError>> + Send + use<> {
        let (powers, node) = (self.clone(), node.clone());
        async move {
            let order = powers.order_of(node.mac, action);
            // Two orders for one machine would undo each other's steps.
            let _turn = match &order {
                Some(order) => Some(order.lock().await),
                None => None,
            };
            let _place = powers.0.places.acquire().await.expect("it is never closed");
            let result = powers.perform(&node, action).await;
            if let Err(error) = &result {
                tracing::info!(node = node.name, mac = %node.mac, action = %action.verb(), %error, "power");
            }
            result
        }
    }

    /// Accepts the certificate that a machine's BMC shows now, in place of the one that it showed before.
    /// `fingerprint` is what it must have, if that is known: SHA-256, in hexadecimal.
    pub async fn trust(&self, node: &Node, fingerprint: Option<&str>) -> Result<NewPin, PowerError> {
        let _place = self.0.places.acquire().await.expect("it is never closed");
        match node.power.as_ref().map(|power| power.of(&node.name)) {
            Some(Power::Redfish { url, .. }) => {
                redfish::trust(&url, &self.0.pins, &self.0.limits, fingerprint).await
            }
            Some(Power::Ipmi { .. } | Power::Wol | Power::Command(_)) => Err(PowerError::NoCertificate),
            None => Err(PowerError::NoPower),
        }
    }

    fn order_of(&self, mac: Mac, action: Action) -> Option<Arc<tokio::sync::Mutex<()>>> {
        if action == Action::Status {
            return None;
        }
        let mut orders = self.0.orders.lock().unpoisoned();
        // Nobody else has those that only the table holds.
        orders.retain(|_, order| Arc::strong_count(order) > 1);
        Some(orders.entry(mac).or_default().clone())
    }

    async fn perform(&self, node: &Node, action: Action) -> Result<Outcome, PowerError> {
        let inner = &*self.0;
        let power = node.power.as_ref().ok_or(PowerError::NoPower)?.of(&node.name);
        let driver = power.driver();
        let done = match power {
            Power::Redfish { url, credentials } => {
                let login = self.login(credentials).await?;
                let parts = redfish::Parts {
                    pins: inner.pins.clone(),
                    sessions: inner.sessions.clone(),
                    limits: inner.limits,
                };
                self.steps(redfish::Redfish::new(url, login, parts), action).await
            }
            Power::Ipmi { host, port, credentials } => {
                let login = self.login(credentials).await?;
                self.steps(ipmi::Ipmi::new(host, port, login, inner.limits)?, action).await
            }
            Power::Command(words) => {
                self.steps(command::Command::new(words, node, inner.limits), action).await
            }
            Power::Wol => self.wake(node, action).await,
        }?;
        let (now, heard) = (Timestamp::now(), inner.heard.heard(node.mac));
        let contradiction = {
            let mut histories = inner.histories.lock().unpoisoned();
            let history = histories.entry(node.mac).or_default();
            history.say(done.state, done.switched, now);
            history.contradiction(done.state, heard, now, inner.limits.heard_within)
        };
        if let Some(evidence) = contradiction {
            return Err(PowerError::Contradicted { driver, says: done.state, evidence });
        }
        let steps::Done { state, switched, boot } = done;
        Ok(Outcome { driver: driver.to_owned(), state, switched, boot, heard })
    }

    async fn steps(&self, mut driver: impl Driver, action: Action) -> Result<steps::Done, PowerError> {
        let limits = &self.0.limits;
        if action != Action::Status {
            return steps::perform(&mut driver, action, limits).await;
        }
        let place = driver.place();
        let asked = tokio::time::timeout(limits.status, driver.state()).await;
        let slow = |_| PowerError::Slow { bmc: place, doing: "it was asked", limit: limits.status };
        Ok(steps::Done { state: asked.map_err(slow)??, switched: false, boot: None })
    }

    async fn wake(&self, node: &Node, action: Action) -> Result<steps::Done, PowerError> {
        match action {
            Action::On { .. } => self.0.link.wake(node.mac).map_err(PowerError::NotSent)?,
            // Nobody can be asked. When the machine was heard of is said with the outcome.
            Action::Status => {}
            Action::Off | Action::Cycle { .. } => return Err(PowerError::OnlyWakes(action.verb())),
        }
        Ok(steps::Done { state: State::Unknown, switched: action != Action::Status, boot: None })
    }

    async fn login(&self, name: Option<String>) -> Result<Option<credentials::Login>, PowerError> {
        let Some(name) = name else { return Ok(None) };
        let credentials = self.0.credentials.clone();
        // It reads two files.
        let login = tokio::task::spawn_blocking(move || credentials.login(&name));
        login.await.expect("it does not panic").map(Some)
    }
}
