//! Why a machine's power could not be switched or asked for. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{State, Verb};
use crate::base::sealing::SealingKeyError;
use crate::store::{ReadError, WriteError};

/// Why not, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    #[error(
        "nothing says how its power is switched: give it `power = {{ … }}`, or `bridgehead node set NAME --set \
         power.redfish=URL` (docs/power.md)"
    )]
    NoPower,
    #[error("no credentials are called {0}: `bridgehead power credentials add {0} --user USER`")]
    NoCredentials(String),
    #[error(
        "its BMC at {bmc} asks who is there: add credentials (`bridgehead power credentials add`), and name them \
         in `power`"
    )]
    CredentialsWanted { bmc: String },
    #[error(
        "the credentials {0} can't be unsealed: the database and power.key do not belong together; add them again"
    )]
    Unsealed(String),
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("its BMC at {bmc} can't be reached: {why}")]
    Unreachable { bmc: String, why: String },
    #[error("its BMC at {bmc} did not answer within {} s while {doing}", .limit.as_secs())]
    Slow { bmc: String, doing: &'static str, limit: Duration },
    #[error("its BMC at {bmc} refuses the credentials {credentials}: {said}")]
    Denied { bmc: String, credentials: String, said: String },
    #[error(
        "its BMC at {bmc} forgets its session again and again: it was opened anew once, and lost at once"
    )]
    SessionLost { bmc: String },
    #[error(
        "its BMC at {bmc} shows another certificate than before (now SHA-256 {found}, before {pinned}): no \
         password was sent. If that is right, `bridgehead power trust NODE` accepts it"
    )]
    OtherCertificate { bmc: String, pinned: String, found: String },
    #[error("TLS with its BMC at {bmc} failed: {why}")]
    Tls { bmc: String, why: String },
    #[error("its BMC at {bmc} answers {status} to {asked}, also when asked again: {said}")]
    Broken { bmc: String, status: u16, asked: String, said: String },
    #[error("its BMC at {bmc} refuses {asked} ({status}): {said}")]
    Refused { bmc: String, status: u16, asked: String, said: String },
    #[error("its BMC at {bmc} refuses `{asked}`: {said}")]
    Rejected { bmc: String, asked: String, said: String },
    #[error("what answers at {bmc} is no Redfish service: {what}")]
    NotRedfish { bmc: String, what: String },
    #[error("its BMC at {bmc} is that of {count} systems: name one in the URL, such as https://HOST{first}")]
    SeveralSystems { bmc: String, count: usize, first: String },
    #[error("its BMC at {bmc} knows no way to {verb}: it allows {}", .allowed.join(", "))]
    NotAllowed { bmc: String, verb: Verb, allowed: Vec<String> },
    #[error("its BMC at {bmc} took the order to switch {wanted}, and still says {says} after {} s", .waited.as_secs())]
    NotDone { bmc: String, wanted: State, says: State, waited: Duration },
    #[error("{driver} says that it is {says}, and {evidence}: do not believe it")]
    Contradicted { driver: &'static str, says: State, evidence: String },
    #[error("a magic packet only wakes a machine: it can't {0}. A BMC or a command could")]
    OnlyWakes(Verb),
    #[error("the magic packet could not be sent: {0}")]
    NotSent(std::io::Error),
    #[error("{program} can't be run: {source}")]
    NotRun { program: String, source: std::io::Error },
    #[error("{program} failed ({how}): {said}")]
    Failed { program: String, how: String, said: String },
    #[error("{program} ran for more than {} s and was ended", .limit.as_secs())]
    Overran { program: String, limit: Duration },
    #[error("{program} does not say `on` or `off` when asked for the status: {said}")]
    SaysNothing { program: String, said: String },
    #[error("the password of {0} is longer than the 20 bytes that IPMI 2.0 has room for")]
    LongPassword(String),
}

/// The kinds of causes, for who has to decide what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Somebody has to say something first: no power, no credentials, several systems.
    NotSetUp,
    Unreachable,
    Slow,
    Denied,
    SessionLost,
    Certificate,
    /// It answers, and can't do its work: 500.
    Broken,
    /// It refuses, or can't do this.
    Refused,
    /// It says something that is not so.
    Lies,
    /// The program of the machine's owner failed.
    Command,
    /// Something of the appliance's own: its database, its network.
    Own,
}

impl PowerError {
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoPower
            | Self::NoCredentials(_)
            | Self::CredentialsWanted { .. }
            | Self::SeveralSystems { .. }
            | Self::LongPassword(_) => Kind::NotSetUp,
            Self::Unsealed(_)
            | Self::Sealing(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::NotSent(_)
            | Self::NotRun { .. } => Kind::Own,
            Self::Unreachable { .. } | Self::NotRedfish { .. } => Kind::Unreachable,
            Self::Slow { .. } => Kind::Slow,
            Self::Denied { .. } => Kind::Denied,
            Self::SessionLost { .. } => Kind::SessionLost,
            Self::OtherCertificate { .. } | Self::Tls { .. } => Kind::Certificate,
            Self::Broken { .. } => Kind::Broken,
            Self::Refused { .. } | Self::Rejected { .. } | Self::NotAllowed { .. } | Self::OnlyWakes(_) => {
                Kind::Refused
            }
            Self::NotDone { .. } | Self::Contradicted { .. } => Kind::Lies,
            Self::Failed { .. } | Self::Overran { .. } | Self::SaysNothing { .. } => Kind::Command,
        }
    }

    /// Whether the same may succeed a while later, without anybody's doing.
    pub fn may_pass(&self) -> bool {
        matches!(self.kind(), Kind::Unreachable | Kind::Slow | Kind::SessionLost | Kind::Broken)
    }
}
