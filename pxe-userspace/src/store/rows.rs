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
}

impl Document {
    pub const ALL: [Self; 3] = [Self::Hold, Self::KernelTrial, Self::BootSession];
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

/// A machine that is declared in the database, not in the configuration file.
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

/// An audit entry: something that somebody changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub id: u64,
    /// JSON.
    pub body: String,
}

/// A change to the database.
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
    /// Replaces the machine of that name.
    PutNode(NodeRow),
    RemoveNode(String),
    /// Replaces the machine of that name.
    PutNamed(NamedRow),
    RemoveNamed(String),
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
            // A power cut must not change what a machine is, or what it is called.
            Self::PutNode(_) | Self::RemoveNode(_) | Self::PutNamed(_) | Self::RemoveNamed(_) => {
                Durability::All
            }
            Self::PutDocument(document, ..) | Self::RemoveDocument(document, _) => match document {
                Document::Hold => Durability::All,
                // If a power cut takes back a kernel's count or a session, that costs one boot.
                Document::KernelTrial | Document::BootSession => Durability::AllButLast,
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
            Self::PutNode(_) | Self::RemoveNode(_) => "machines",
            Self::PutNamed(_) | Self::RemoveNamed(_) => "names of machines",
        }
    }
}

impl Document {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Hold => "holds",
            Self::KernelTrial => "how kernels fare",
            Self::BootSession => "the sessions of boots",
        }
    }
}
