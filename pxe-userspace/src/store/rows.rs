//! What the database stores, row by row, and the changes to it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use pxe_common::Mac;

use super::Durability;

/// A lease.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseRow {
    pub address: Ipv4Addr,
    pub mac: Mac,
    /// A word that only the leases' owner interprets.
    pub state: String,
    /// At least until the end that the client was told.
    pub durable_until: Timestamp,
    /// In hexadecimal.
    pub client_ids: BTreeSet<String>,
    pub uuid: Option<String>,
}

/// An event of the timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    pub id: u64,
    pub mac: Mac,
    /// The event changed its machine's stage. False for a warning, and for an event that came too late.
    pub moves: bool,
    /// JSON.
    pub body: String,
}

/// What is stored of each machine as one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Whether its next boot stops in stage 1.
    Hold,
    /// The kernels that it was told to boot, and how that ended, in JSON.
    KernelTrial,
    /// The session of its last boot, in JSON.
    BootSession,
    /// What it is made of, in JSON.
    Facts,
}

impl Document {
    pub const ALL: [Self; 4] = [Self::Hold, Self::KernelTrial, Self::BootSession, Self::Facts];
}

/// A volume of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeKeyId {
    pub owner: String,
    pub plan: String,
    pub volume: String,
}

/// A volume's key, encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    pub nonce: Vec<u8>,
    pub sealed: Vec<u8>,
}

/// The assignment of a workload to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentRow {
    pub workload: String,
    pub node: String,
}

/// A token for the API over TCP. Only its hash is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub name: String,
    /// SHA-256, in hexadecimal.
    pub hash: String,
    /// A word that only the tokens' owner interprets.
    pub role: String,
    pub added: Timestamp,
    pub expires: Option<Timestamp>,
}

/// A browser that is logged in, by the hash of its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRow {
    /// SHA-256, in hexadecimal.
    pub hash: String,
    pub ends: Timestamp,
    /// Who it is, in JSON.
    pub body: String,
}

/// A machine that is kept here, and not in the configuration's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The form in which its owner compares names.
    pub name: String,
    pub mac: Mac,
    /// JSON.
    pub body: String,
}

/// A machine that a rule took, and the name that it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRow {
    pub name: String,
    /// How the machine is recognised, and what rules match, in JSON.
    pub facts: String,
}

/// Who the appliance is before BMCs: a user, and a password, sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsRow {
    pub name: String,
    pub user: String,
    pub nonce: Vec<u8>,
    pub sealed: Vec<u8>,
    pub added: Timestamp,
}

/// The certificate that a BMC showed when it was first asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    /// `HOST:PORT`.
    pub place: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    pub since: Timestamp,
}

/// Something that somebody changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub id: u64,
    /// JSON.
    pub body: String,
}

/// What a launch has a machine boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchedRow {
    pub mac: Mac,
    /// JSON.
    pub body: String,
}

/// A launch without its machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchRow {
    pub id: u64,
    /// JSON.
    pub body: String,
}

/// A machine in a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchMachineRow {
    pub launch: u64,
    /// Its turn among the others, from 0.
    pub turn: u32,
    pub mac: Mac,
    /// JSON.
    pub body: String,
}

/// Something that changed in a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchEventRow {
    pub id: u64,
    pub launch: u64,
    /// JSON.
    pub body: String,
}

/// Something to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Replaces the address's lease.
    PutLease(LeaseRow),
    RemoveLease(Ipv4Addr),
    AddEvent(EventRow),
    /// Replaces the machine's document.
    PutDocument(Document, Mac, String),
    RemoveDocument(Document, Mac),
    /// Replaces all assignments.
    SetAssignments(Vec<AssignmentRow>),
    /// Fails if the volume has a key: a disk may be encrypted with it.
    AddVolumeKey(VolumeKeyId, SealedKey),
    /// Fails if there is a token of that name.
    AddToken(TokenRow),
    RemoveToken(String),
    AddAudit(AuditRow),
    /// In place of all that there were.
    SetLogins(Vec<LoginRow>),
    /// In place of what there was of that name.
    PutNode(NodeRow),
    RemoveNode(String),
    /// Replaces the machine of that name.
    PutNamed(NamedRow),
    RemoveNamed(String),
    /// In place of what there was of that name.
    PutCredentials(CredentialsRow),
    RemoveCredentials(String),
    /// In place of the one that the place had.
    PutPin(PinRow),
    /// In place of what the machine had.
    PutLaunched(LaunchedRow),
    RemoveLaunched(Mac),
    /// In place of what there was of that id.
    PutLaunch(LaunchRow),
    /// With its machines.
    RemoveLaunch(u64),
    /// In place of what there was of that machine in that launch.
    PutLaunchMachine(LaunchMachineRow),
    AddLaunchEvent(LaunchEventRow),
}

impl Change {
    /// How durable the change must be before anybody is told of it.
    pub fn durability(&self) -> Durability {
        match self {
            // Without its lease, an address could be given to another machine. Without its key, a disk's data is lost.
            Self::PutLease(_) | Self::RemoveLease(_) | Self::AddVolumeKey(..) | Self::SetAssignments(_) => {
                Durability::All
            }
            // A removed token must not come back, and the audit must be complete.
            Self::AddToken(_) | Self::RemoveToken(_) | Self::AddAudit(_) => Durability::All,
            // Nor must a login whose token was removed.
            Self::SetLogins(_) => Durability::All,
            // What a machine is, and what it is called, does not depend on when the power went.
            Self::PutNode(_) | Self::RemoveNode(_) | Self::PutNamed(_) | Self::RemoveNamed(_) => {
                Durability::All
            }
            // A password that was taken away must not come back, and whom to trust is not decided twice.
            Self::PutCredentials(_) | Self::RemoveCredentials(_) | Self::PutPin(_) => Durability::All,
            // What was intended is known before it is done.
            Self::PutLaunched(_) | Self::RemoveLaunched(_) | Self::PutLaunch(_) | Self::RemoveLaunch(_) => {
                Durability::All
            }
            Self::PutLaunchMachine(_) | Self::AddLaunchEvent(_) => Durability::All,
            Self::PutDocument(document, ..) | Self::RemoveDocument(document, _) => match document {
                Document::Hold => Durability::All,
                // A count that a power cut takes back costs a boot, and so does a session. Facts are told in each boot.
                Document::KernelTrial | Document::BootSession | Document::Facts => Durability::AllButLast,
            },
            Self::AddEvent(_) => Durability::AllButLast,
        }
    }

    /// A word for errors.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::PutLease(_) | Self::RemoveLease(_) => "leases",
            Self::AddEvent(_) => "the timeline",
            Self::PutDocument(document, ..) | Self::RemoveDocument(document, _) => document.what(),
            Self::SetAssignments(_) => "assignments of workloads",
            Self::AddVolumeKey(..) => "the key of a volume",
            Self::AddToken(_) | Self::RemoveToken(_) => "tokens",
            Self::AddAudit(_) => "the audit",
            Self::SetLogins(_) => "logins",
            Self::PutNode(_) | Self::RemoveNode(_) => "machines",
            Self::PutNamed(_) | Self::RemoveNamed(_) => "names of machines",
            Self::PutCredentials(_) | Self::RemoveCredentials(_) => "credentials",
            Self::PutPin(_) => "certificates of BMCs",
            Self::PutLaunched(_) | Self::RemoveLaunched(_) => "what machines are to boot",
            Self::PutLaunch(_)
            | Self::RemoveLaunch(_)
            | Self::PutLaunchMachine(_)
            | Self::AddLaunchEvent(_) => "launches",
        }
    }
}

impl Document {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Hold => "holds",
            Self::KernelTrial => "how kernels fare",
            Self::BootSession => "the sessions of boots",
            Self::Facts => "machines' facts",
        }
    }
}
